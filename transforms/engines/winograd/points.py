"""The matrices of Winograd's minimal filtering, exact, from the points that they evaluate polynomials at.

F(m, 3) computes m outputs of a filter g of 3 taps from n = m + 2 inputs d, with n multiplications instead of 3·m:

    y = Aᵀ [(G g) ⊙ (Bᵀ d)]            and in two dimensions        Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

Sources: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015 (arXiv:1509.09308), equations 5 and
8; Toom and Cook's construction of the matrices: Blahut, "Fast Algorithms for Signal Processing", 2010, chapter 5.
With the points p_0 … p_(n-2), and infinity as the last one:

    A_ki = p_i^k    G_ik = p_i^k / Π_(j≠i) (p_i - p_j)    (Bᵀ)_i = coefficients of Π_(j≠i) (x - p_j)

`python -m transforms.engines.winograd.points > transforms/engines/winograd/matrices.hpp` writes them for the kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import prod

TAPS = 3
# In pairs of ±p behind the zero, where polynomials are cheaper. Not the usual 1 and 2: with these, which lie closer to
# each other, a tile's frequencies are of like size, and the errors of float32 and of 14 bits are a third as large.
POINTS = (0, Fraction(3, 4), -Fraction(3, 4), Fraction(3, 2), -Fraction(3, 2))
Matrix = tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True)
class Transform:
    """The matrices of F(m, 3).

    Attributes:
        m: Outputs on a tile's side.
        n: Inputs on a tile's side, and frequencies.
        outputs: Aᵀ, m×n.
        filters: G, n×3.
        inputs: Bᵀ, n×n. The two rows of a pair ±p are equal in even columns, and opposite in odd ones.
    """

    m: int
    n: int
    outputs: Matrix
    filters: Matrix
    inputs: Matrix


def transform() -> Transform:
    """Returns the matrices of F(4, 3)."""
    points = [Fraction(p) for p in POINTS]
    n = len(points) + 1
    m = n - TAPS + 1
    others = [[q for q in points if q != p] for p in points]
    outputs = [[p**k for p in points] + [Fraction(k == m - 1)] for k in range(m)]
    filters = [[p**k / prod(p - q for q in rest) for k in range(TAPS)] for p, rest in zip(points, others, strict=True)]
    inputs = [[*_polynomial(rest), Fraction(0)] for rest in others]
    filters.append([Fraction(k == TAPS - 1) for k in range(TAPS)])
    inputs.append(_polynomial(points))
    return Transform(m, n, _frozen(outputs), _frozen(filters), _frozen(inputs))


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """Returns the coefficients of Π (x - root), that of x⁰ first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [*(-root * value for value in coefficients), Fraction(0)]
        coefficients = [a + b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


def _frozen(rows: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(row) for row in rows)


def header() -> str:
    """Returns `matrices.hpp`."""
    lines = ["// Written by points.py, which says where the numbers come from; don't edit.", "#pragma once", ""]
    found = transform()
    lines.append(f"constexpr int m = {found.m}, n = {found.n};")
    for name, matrix in (("AT", found.outputs), ("BT", found.inputs)):
        lines.append(f"constexpr float {name}[{len(matrix)}][{len(matrix[0])}] = {{")
        # All are sums of powers of two that float32 holds exactly.
        lines += [f"    {{{', '.join(f'{float(value)!r}f' for value in row)}}}," for row in matrix]
        lines.append("};")
    return "\n".join(lines)


if __name__ == "__main__":
    print(header())

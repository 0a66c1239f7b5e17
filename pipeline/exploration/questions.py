"""Reads the questions of `query`: images, keys of stored rows and vectors, each as a vector like the stored ones."""

import io
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from transforms import storage
from transforms.engines import load_stored_engine
from transforms.engines.engine import Engine
from transforms.errors import FeaturemillError
from transforms.images.decode import PIXEL_CEILING, ImageError, decode_image
from transforms.isolated import Crashed, Isolated
from transforms.network.weights import stored_source
from transforms.rows.lookup import read_vectors
from transforms.rows.sandbox import nearest_texts
from transforms.rows.table import Table
from transforms.spec import FeatureSpec
from transforms.text import clean, one_line, printable

if TYPE_CHECKING:
    from collections.abc import Callable

# More than that isn't a file of query vectors.
_MOST_BYTES = 2**30
# Of computing, for a query image.
_DECODE_SECONDS = 30.0
# Of what numpy.save and numpy.savez write.
_MAGIC = (b"\x93NUMPY", b"PK\x03\x04")


@dataclass(frozen=True)
class Query:
    """One thing to look for.

    Attributes:
        name: What the user called it: the file, the key, or the file and the row's number.
        kind: `image`, `key` or `vector`.
        row: Of a key, its row; else -1.
        image: Of an image, its encoded bytes; else None.
    """

    name: str
    kind: str
    row: int = -1
    image: bytes | None = None


def read_queries(
    table: Table,
    *,
    images: Sequence[str],
    keys: Sequence[str],
    vectors: Sequence[str],
    engine: str = "auto",
    weights: str | None = None,
    load: "Callable[[FeatureSpec], Engine] | None" = None,
) -> tuple[list[Query], np.ndarray]:
    """Reads all that is asked for: images first, then keys, then vectors.

    Args:
        table: What is searched.
        images: Files, embedded as the table's spec says.
        keys: Of stored rows.
        vectors: `.npy` files of D or n×D numbers; `-` is standard input.
        engine: One of `engines.ENGINES`.
        weights: Where the weights are now; by default where OUT's manifest says they came from.
        load: Makes the engine; tests inject one without weights.

    Returns:
        Q queries, and Q×D float64.

    Raises:
        FeaturemillError: With the first thing that can't be used, and why.
    """
    found: list[Query] = []
    blocks: list[np.ndarray] = []
    if images:
        queries = [_read_image(path) for path in images]
        found += queries
        blocks.append(
            _embed(
                queries,
                table,
                load or (lambda spec: load_stored_engine(engine, spec, stored_source(weights, table.weights))),
            )
        )
    if keys:
        rows = find_keys(table, keys)
        found += [Query(key, "key", row) for key, row in zip(keys, rows, strict=True)]
        blocks.append(read_vectors(table, rows).astype(np.float64))
    for path in vectors:
        matrix = _read_matrix(path, table)
        names = [path] if len(matrix) == 1 else [f"{path}#{number}" for number in range(len(matrix))]
        found += [Query(name, "vector") for name in names]
        blocks.append(matrix)
    return found, np.concatenate(blocks)


def find_keys(table: Table, keys: Sequence[str]) -> list[int]:
    """Returns the row of each key; where a key repeats, the first one.

    Raises:
        FeaturemillError: A key that isn't there, with those like it.
    """
    asked = [clean(key) for key in keys]
    there = np.flatnonzero(pc.is_in(table.keys, value_set=pa.array(asked, pa.string())).to_numpy())
    # Backwards, so that the first row of a repeated key stays.
    rows = dict(zip(table.keys.take(there[::-1]).to_pylist(), there[::-1].tolist(), strict=True))
    for key in asked:
        if key not in rows:
            near = " or ".join(map(printable, nearest_texts(table.keys, key)))
            cure = f"did you mean {near}?" if near else _key_cure(table)
            raise FeaturemillError(f"{table.location} has no key {printable(key)}; {cure}")
    return [rows[key] for key in asked]


def _key_cure(table: Table) -> str:
    if not table.is_output:
        return f"its keys are like {printable(table.keys[0].as_py())}"
    return f'featuremill sql {shlex.quote(table.location)} "SELECT key FROM features" lists them'


def _read_image(path: str) -> Query:
    try:
        return Query(clean(path), "image", image=storage.read_bytes(storage.absolute(path)))
    except OSError as error:
        raise FeaturemillError(f"cannot read {clean(path)}: {clean(one_line(error))}; check --image") from error


def _embed(queries: Sequence[Query], table: Table, load: "Callable[[FeatureSpec], Engine]") -> np.ndarray:
    spec = table.spec
    if table.fingerprints:
        raise FeaturemillError(
            f"{'+'.join(table.columns)} of {table.location} are of several networks, so an image can't be embedded at "
            "once; pass --vector or --key, or one --feature"
        )
    if spec is None:
        raise FeaturemillError(
            f"{table.location} wasn't written by featuremill extract, so how to embed an image isn't known; "
            "pass --vector or --key"
        )
    pixels = []
    with Isolated(seconds=_DECODE_SECONDS) as child:
        for query in queries:
            try:
                decoded = child.call(partial(decode_image, query.image, spec, max_pixels=PIXEL_CEILING))
            except (ImageError, Crashed) as error:
                raise FeaturemillError(f"cannot decode {query.name}: {error}") from error
            pixels.append(decoded.pixels)
    engine = load(spec)
    blocks = []
    for first in range(0, len(pixels), engine.batch_size):
        embedded = engine.embed(np.stack(pixels[first : first + engine.batch_size]))
        blocks.append(np.concatenate([embedded[name] for name in table.columns], axis=1))
    # Rounded as the stored ones are, so that a stored image finds itself.
    matrix = np.concatenate(blocks).astype(spec.dtype).astype(np.float64)
    for query, finite in zip(queries, np.isfinite(matrix).all(axis=1), strict=True):
        if not finite:
            raise FeaturemillError(f"the features of {query.name} hold NaN or numbers too large for {spec.dtype}")
    return matrix


def _read_matrix(path: str, table: Table) -> np.ndarray:
    """Returns n×D float64 of a `.npy` file."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(_MOST_BYTES)
        else:
            with storage.open_read(storage.absolute(path)) as file:
                data = file.read(_MOST_BYTES)
        if not data.startswith(_MAGIC):
            raise FeaturemillError(
                f"cannot read {clean(path)}: it is no .npy file; --vector takes what numpy.save wrote, --image an image"
            )
        matrix = np.load(io.BytesIO(data), allow_pickle=False)
    except FeaturemillError:
        raise
    except Exception as error:
        # NumPy raises whatever the damage leads to.
        raise FeaturemillError(
            f"cannot read {clean(path)}: {clean(one_line(error))}; --vector takes what numpy.save wrote"
        ) from error
    dims = table.vectors.dims
    kind = getattr(matrix, "dtype", None)
    if kind is None or kind.kind not in "fiu" or matrix.ndim not in (1, 2) or 0 in matrix.shape:
        shape = f"{kind} {matrix.shape}" if kind is not None else "several arrays"
        raise FeaturemillError(f"{clean(path)} holds {shape}; --vector takes {dims} numbers, or rows of as many")
    matrix = np.atleast_2d(matrix).astype(np.float64)
    if matrix.shape[1] != dims:
        raise FeaturemillError(
            f"{clean(path)} has vectors of {matrix.shape[1]:,} numbers, but {'+'.join(table.columns)} of "
            f"{table.location} has {dims:,}; pass one that was embedded the same way, or another --feature"
        )
    with np.errstate(over="ignore"):
        bad = ~np.isfinite(matrix.astype(np.float32)).all(axis=1)
    if bad.any():
        raise FeaturemillError(
            f"{clean(path)}: {bad.sum():,} of {len(matrix):,} vectors hold NaN or infinity, the first is row "
            f"{int(bad.argmax())}; leave them out (float32 ends at 3.4e38)"
        )
    return matrix

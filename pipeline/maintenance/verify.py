"""Verify: embeds a sample of the rows again, from their sources, and says how far the stored features are off."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from transforms.declared import AT_LEAST_ONE, SEED, Bound, check, declared
from transforms.engines import ENGINES, load_stored_engine
from transforms.engines.engine import Engine
from transforms.errors import FeaturemillError
from transforms.network.weights import stored_source
from transforms.parquet.files import open_parquet
from transforms.rows.sources import planned_unit, reread_pixels
from transforms.spec import FeatureSpec
from transforms.storage import readable
from transforms.store.features import Features, open_features
from transforms.store.listing import Footer, read_footers
from transforms.store.output import Output
from transforms.text import counted, shown_within

# A shard's unit is read from its start to the last row wanted, so the sample comes from a few units, not from all.
UNITS = 8


@dataclass(frozen=True)
class VerifyOptions:
    """The options of `verify`, on OUT."""

    output: str
    engine: str = declared("auto", help="What computes the network", choices=ENGINES)
    sample: int = declared(32, help="Compare N rows; all if there are fewer", bounds=(AT_LEAST_ONE,), metavar="N")
    weights: str | None = declared(None, help="Where the weights are now", unset="where they were")
    tolerance: float | None = declared(
        None,
        help="Largest drift, as a share of a vector's largest value",
        # As `default_tolerance` says.
        unset="1e-4; 1e-3 if stored as float16; 5e-3 at int16; 2e-2 at other precisions than float32",
        bounds=(Bound(lambda drift: drift >= 0, "{flag} must be at least 0, not {value}"),),
    )
    seed: int = declared(0, help="Seed of the sample; another one draws other rows", bounds=(SEED,))

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Drift:
    """The distance of one feature's stored vectors from those computed now, over the rows of the sample.

    A row's drift is its largest difference, as a share of its largest stored value.

    Attributes:
        worst: Largest drift of a row.
        median: Of the rows' drifts.
        cosine_worst: Smallest cosine between stored and new.
        cosine_median: Of the rows' cosines.
        worst_key: The row with the largest drift.
    """

    worst: float
    median: float
    cosine_worst: float
    cosine_median: float
    worst_key: str


@dataclass(frozen=True)
class Verification:
    """The comparison of a sample of OUT's rows with the same rows embedded again.

    Attributes:
        engine: What embedded it, with its device.
        stored_by: What embedded OUT's rows, as far as its manifest says.
        rows: Rows of OUT.
        sampled: Rows drawn.
        compared: Rows whose source is still there, with the content of then.
        tolerance: The largest drift that is fine.
        features: {feature: drift}; empty if no row could be compared.
        problems: Rows that couldn't be compared, a line each: their sources are gone, or changed.
    """

    output: str
    engine: str
    stored_by: tuple[str, ...]
    rows: int
    sampled: int
    compared: int
    tolerance: float
    features: dict[str, Drift]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True if every sampled row was compared, and none is off by more than the tolerance."""
        # Written so that NaN isn't fine.
        return not self.problems and all(drift.worst <= self.tolerance for drift in self.features.values())


def default_tolerance(spec: FeatureSpec) -> float:
    """Returns the drift that engines and machines may differ by at a spec's precision.

    At int16 every machine finds the same bits from the same pixels, but another decoder's may round to other numbers.
    """
    if spec.precision == "int16":
        return 5e-3
    if spec.precision != "float32":
        return 2e-2
    return 1e-3 if spec.dtype == "float16" else 1e-4


def verify(options: VerifyOptions) -> Verification:
    """Embeds a random sample of OUT's rows again, and compares.

    Raises:
        FeaturemillError: No features in that folder, or weights or engine can't be loaded, or weights of another hash.
    """
    out = Output(options.output)
    opened = open_features(out)
    # Each added feature has weights and a tolerance of its own.
    features = replace(opened, added=())
    if not features.rows:
        raise FeaturemillError(f"{features.output} holds no rows: there is nothing to verify")
    loaded = load_stored_engine(options.engine, features.spec, stored_source(options.weights, out.manifest.weights))
    units = {planned.unit_id: planned.unit for planned in out.plan}
    found = _Comparison()
    for place, rows in _draw(features, options.sample, options.seed):
        wanted = _read_rows(place.part, rows, features.names)
        unit = planned_unit(units, place.unit_id, place.part)
        _compare(reread_pixels(unit, wanted, features.spec, found.problems), loaded, found)
    found_here = Verification(
        output=features.output,
        engine=loaded.description,
        stored_by=tuple(out.manifest.engines),
        rows=features.rows,
        sampled=min(options.sample, features.rows),
        compared=found.compared,
        tolerance=default_tolerance(features.spec) if options.tolerance is None else options.tolerance,
        features=found.drifts(),
        problems=tuple(found.problems),
    )
    return _together(found_here, [verify(replace(options, output=side.output, weights=None)) for side in opened.added])


def _together(one: Verification, others: Sequence[Verification]) -> Verification:
    """Returns OUT's verification with those of its added features, by the widest of their tolerances."""
    all_of = (one, *others)
    return replace(
        one,
        compared=min(each.compared for each in all_of),
        tolerance=max(each.tolerance for each in all_of),
        features={name: drift for each in all_of for name, drift in each.features.items()},
        problems=tuple(dict.fromkeys(problem for each in all_of for problem in each.problems)),
    )


@dataclass(frozen=True)
class _Place:
    """The part and the row numbers of a unit."""

    part: str
    unit_id: str


def _draw(features: Features, sample: int, seed: int) -> Iterator[tuple[_Place, list[int]]]:
    """Yields (unit, row numbers in its part): units drawn by their rows, then rows of these units."""
    places, counts, footers = [], [], {}
    for part, footer in zip(features.parts, read_footers(features.parts), strict=True):
        places += [_Place(part, report.unit_id) for report in footer.reports]
        counts += [report.rows_embedded for report in footer.reports]
        if len(footer.reports) > 1:
            footers[part] = footer
    counts = np.array(counts)
    random = np.random.default_rng(seed)
    order = random.choice(len(counts), int((counts > 0).sum()), replace=False, p=counts / counts.sum())
    enough = int(np.searchsorted(counts[order].cumsum(), sample)) + 1
    chosen = sorted(order[: max(UNITS, enough)])
    ends = counts[chosen].cumsum()
    rows = np.sort(random.choice(ends[-1], min(sample, ends[-1]), replace=False))
    for number, end, count in zip(chosen, ends, counts[chosen], strict=True):
        inside = rows[(rows >= end - count) & (rows < end)] - (end - count)
        if len(inside):
            place = places[number]
            if place.part in footers:
                inside = _rows_of(footers[place.part], place.unit_id)[inside]
            yield place, inside.tolist()


def _rows_of(merged: Footer, unit_id: str) -> np.ndarray:
    [number] = [i for i, report in enumerate(merged.reports) if report.unit_id == unit_id]
    return np.flatnonzero(merged.unit_numbers() == number)


@dataclass(frozen=True)
class _Stored:
    """A row of the sample, as it is stored."""

    key: str
    position: int
    sha256: bytes
    vectors: dict[str, np.ndarray]


def _read_rows(part: str, rows: Sequence[int], names: Sequence[str]) -> list[_Stored]:
    found, first = [], 0
    with open_parquet(part) as parquet:
        for batch in parquet.iter_batches(batch_size=1024, columns=["key", "position", "sha256", *names]):
            here = [row - first for row in rows if first <= row < first + len(batch)]
            first += len(batch)
            for row in batch.take(here).to_pylist() if here else ():
                vectors = {name: np.asarray(row.pop(name), np.float32) for name in names}
                found.append(_Stored(**row, vectors=vectors))
    return found


@dataclass
class _Comparison:
    """Adds up, row by row and feature by feature."""

    problems: list[str] = field(default_factory=list)
    compared: int = 0
    # {feature: [(drift, cosine, key)]}
    figures: dict[str, list[tuple[float, float, str]]] = field(default_factory=dict)

    def drifts(self) -> dict[str, Drift]:
        found = {}
        for name, rows in self.figures.items():
            drifts, cosines = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
            found[name] = Drift(
                worst=float(drifts.max()),
                median=float(np.median(drifts)),
                cosine_worst=float(cosines.min()),
                cosine_median=float(np.median(cosines)),
                worst_key=rows[int(drifts.argmax())][2],
            )
        return found


def _compare(images: Iterator[tuple[_Stored, np.ndarray]], engine: Engine, found: _Comparison) -> None:
    while batch := list(islice(images, engine.batch_size)):
        vectors = engine.embed(np.stack([pixels for _, pixels in batch]))
        found.compared += len(batch)
        for name, values in vectors.items():
            for (stored, _), now in zip(batch, values, strict=True):
                figures = _drift(stored.vectors[name], now)
                found.figures.setdefault(name, []).append((*figures, stored.key))


def _drift(stored: np.ndarray, now: np.ndarray) -> tuple[float, float]:
    """Returns the drift of a vector of D numbers, and the cosine between the two; in float64."""
    stored, now = stored.astype(np.float64), now.astype(np.float64)
    difference, largest = np.abs(stored - now).max(), np.abs(stored).max()
    norms = np.linalg.norm(stored) * np.linalg.norm(now)
    if difference == 0:
        return 0.0, 1.0
    return (
        float(difference / largest) if largest else float("inf"),
        float(stored @ now / norms) if norms else 0.0,
    )


def verification_json(verification: Verification) -> dict[str, Any]:
    """Returns the verification for programs."""
    return {**asdict(verification), "ok": verification.ok}


def verification_text(verification: Verification) -> str:
    """Returns the verification for people."""
    v = verification
    lines = [
        f"{readable(v.output)}: {v.compared} of {counted(v.sampled, 'sampled row')} embedded again, "
        f"{counted(v.rows, 'row')} in all",
        f"engine   {v.engine}; stored by {', '.join(v.stored_by) or 'an engine that is not noted'}",
    ]
    for name, drift in v.features.items():
        lines.append(
            f"{name:12} drift {drift.worst:.2e} worst, {drift.median:.2e} median; "
            f"cosine {drift.cosine_worst:.7f} worst, {drift.cosine_median:.7f} median"
        )
        if not drift.worst <= v.tolerance:
            lines.append(f"PROBLEM  {name} drifts by {drift.worst:.2e} at {shown_within(str(drift.worst_key))}")
    lines += [f"PROBLEM  {shown_within(problem)}" for problem in v.problems[:10]]
    if len(v.problems) > 10:
        lines.append(f"PROBLEM  and {counted(len(v.problems) - 10, 'more row')} that couldn't be compared")
    verdict = "the stored features are what their sources give" if v.ok else "not verified"
    return "\n".join([*lines, f"{verdict} (tolerance {v.tolerance:.0e} of a vector's largest value)"])

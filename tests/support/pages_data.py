"""An OUT of given rows, written as `extract` writes it, without images or a network."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from transforms.records import Failure, FileInfo, Shard, Unit, UnitReport
from transforms.spec import ADDED_COLUMNS, Feature, FeatureSpec
from transforms.store.manifest import new_manifest, write_manifest
from transforms.store.output import Output
from transforms.store.parts import PartWriter
from transforms.store.reports import add_up
from transforms.store.units import PlannedUnit, unit_id

# What somebody puts into a file name to see what happens.
HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\u202egpj.exe & \"quotes' {{ 7 * 7 }} \u2028 \x07",
    "long " * 820,
    "日本語 עברית 🐜",
)


def write_out(
    folder: Path,
    vectors: np.ndarray,
    *,
    keys: list[str] | None = None,
    labels: list[str | None] | None = None,
    units: int = 2,
    failures: tuple[Failure, ...] = (),
    sha256: list[bytes] | None = None,
    complete: bool = True,
) -> str:
    """Writes N×D vectors as the feature `embedding` of a finished OUT; returns its folder's name.

    The failures go to the first unit. Sources are /gone/shardUNIT.tar, which is nowhere.
    """
    rows, dims = vectors.shape
    keys = keys or [f"/gone/shard.tar#photo{i:06}.jpg" for i in range(rows)]
    labels = labels or [None] * rows
    sha256 = sha256 or [i.to_bytes(32, "big") for i in range(rows)]
    spec = FeatureSpec("vgg19", "0" * 64, (Feature("embedding", "block5_pool", "avg"),), dtype=str(vectors.dtype))
    out = str(folder)
    for name in ("features", "failures", "_tmp"):
        (folder / name).mkdir(parents=True)
    planned, reports = [], []
    for number, part in enumerate(np.array_split(np.arange(rows), units)):
        source = f"/gone/shard{number}.tar"
        unit = Unit(Shard(FileInfo(source, 1000, "1"), "tar"))
        name = unit_id(unit, spec.fingerprint)
        failed = failures if number == 0 else ()
        counts = (len(part) + len(failed), len(part), len(failed), 5000 * len(part))
        report = UnitReport(name, source, 0, -1, *counts, 0.5, 1.0, 4.0 + number, 0.25, 4.5 + number, "fake")
        with PartWriter(
            out, name, spec=spec, sizes={"embedding": dims}, added=dict.fromkeys(ADDED_COLUMNS, "string")
        ) as writer:
            for failure in failed:
                writer.fail(failure)
            for start in range(0, len(part), 20_000):
                some = part[start : start + 20_000]
                facts = [(keys[i], labels[i], source, int(i), sha256[i], 500, 375 + int(i) % 2, None) for i in some]
                writer.add(facts, {"embedding": vectors[some]})
            writer.commit(report)
        planned.append(PlannedUnit(name, unit))
        reports.append(report)
    Output(out).write_plan(planned)
    manifest = new_manifest(spec, weights="fake", weights_are_random=False, limit=None, versions={})
    if complete:
        Output(out).write_reports(reports)
        manifest = replace(manifest, status="complete", totals=add_up(reports))
    write_manifest(out, manifest)
    return out


def clusters(rows: int, dims: int = 16, *, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Returns vectors in clouds far from each other, N×D float32, and which cloud each is of."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, dims)) * 4
    codes = random.integers(0, classes, rows)
    vectors = (centres[codes] + random.normal(size=(rows, dims))).astype(np.float32)
    return vectors, [f"class {code}" for code in codes]

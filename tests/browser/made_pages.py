"""The pages of all commands, with images, sources that are gone, and names that mean harm."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.demo.samples import draw_items, write_folder, write_parquet
from pipeline.exploration.duplicates import write_duplicates_page
from pipeline.exploration.outliers import write_outliers_page
from pipeline.exploration.query import QueryOptions, query, write_query_page
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from pipeline.maintenance.report import ReportOptions, run_report
from pipeline.maps.run import MapOptions, make_map
from pipeline.rendering.html import write_page
from pipeline.training.errors import JudgedRows, errors_html
from pipeline.training.report import report_html
from pipeline.training.suspects import Suspect, SuspectOptions, Suspects, write_suspects_page
from tests.pipeline.training.test_report import make_run
from tests.support.fakes import WEIGHTS, FakeEngine, load_fake
from tests.support.pages_data import HOSTILE, clusters, write_out
from transforms.evaluation.metrics import judge, score_rows
from transforms.records import Failure
from transforms.rows.labels import encode_as
from transforms.rows.lookup import read_rows
from transforms.rows.table import open_table
from transforms.similarity.copies import find_duplicates
from transforms.similarity.outlying import find_outliers
from transforms.store.features import open_features

# One that can be a file's name: without a slash, and short.
_FILE_NAME = HOSTILE[1]


def write_features(folder: Path) -> str:
    """Writes an OUT by the real run and its fake engine: drawn images, some of which are gone afterwards.

    Keys, labels, names of shards and OUT's own are HOSTILE; one image stands three times, under two labels and none.

    Returns:
        OUT.
    """
    drawn = [item for item in draw_items(per_class=8, size=120, seed=1) if "007" not in item.name]
    harm = [replace(item, name=text) for item, text in zip(drawn, HOSTILE, strict=False)]
    harm += [replace(item, label=text) for item, text in zip(drawn[len(harm) :], HOSTILE, strict=False)]
    [copied, *rest] = drawn[len(harm) :]
    copies = [
        copied,
        replace(copied, name="copy.jpg", label="another"),
        replace(copied, name="unlabelled.jpg", label=None),
    ]
    shards = folder / "shards"
    shards.mkdir()
    write_parquet(shards / f"{_FILE_NAME}.parquet", [*harm, *copies])
    write_parquet(shards / "gone.parquet", rest[:4])
    write_folder(shards / "plain", rest[4:])
    names = (f"{_FILE_NAME}.parquet", "gone.parquet", "plain")
    out = str(folder / f"out {_FILE_NAME}")
    options = ExtractOptions(
        inputs=tuple(str(shards / name) for name in names), output=out, image_size=32, batch_size=4
    )
    run(options, load=load_fake, weights=WEIGHTS)
    (shards / "gone.parquet").unlink()
    return out


@dataclass(frozen=True)
class Made:
    """The pages, {name: file}, and the OUT that the sheets and the map are of."""

    folder: Path
    out: str
    pages: dict[str, Path]


def write_pages(folder: Path) -> Made:
    """Writes all of them."""
    out = write_features(folder)
    pages = {
        "query": query_page(out, folder),
        "duplicates": duplicates_page(out, folder),
        "outliers": outliers_page(out, folder),
        "heads": heads_page(folder),
        "errors": errors_page(out, folder),
        "suspects": suspects_page(out, folder),
        "report": run_page(folder),
        "map": map_page(out, folder),
    }
    return Made(folder, out, pages)


def query_page(out: str, folder: Path) -> Path:
    """Writes the sheet of an image that isn't stored and of some rows."""
    image = folder / f"{_FILE_NAME}.jpg"
    image.write_bytes(draw_items(per_class=2, size=200, seed=9)[0].data)
    keys = open_features(out).keys
    asked = [key for key in keys if "gone.parquet" in key][:1] + [
        key for key in keys if HOSTILE[3].strip()[:40] in key
    ][:1]
    page = folder / "query.html"
    options = QueryOptions(output=out, images=(str(image),), keys=tuple(asked))
    found = query(options, load=lambda spec: FakeEngine({"embedding": 512}, 4))
    write_query_page(found, str(page))
    return page


def duplicates_page(out: str, folder: Path) -> Path:
    """Writes the sheet of the copies, exact ones and near ones."""
    page = folder / "duplicates.html"
    write_duplicates_page(find_duplicates(out, cosine=0.999), str(page))
    return page


def outliers_page(out: str, folder: Path) -> Path:
    """Writes the sheet of the rows far from their class."""
    page = folder / "outliers.html"
    write_outliers_page(find_outliers(out, top=24), str(page))
    return page


def heads_page(folder: Path) -> Path:
    """Writes the report of two heads, with few classes and with many."""
    page = folder / "heads.html"
    keys = [f"{HOSTILE[i % len(HOSTILE)]}{i}" for i in range(90)]
    many = [f"class {i}" for i in range(30)]
    runs = [
        make_run("ridge", rows=90, keys=keys, classes=HOSTILE[:4], right=1.0),
        make_run("logistic", rows=400, classes=many, right=3.0),
    ]
    page.write_text(report_html(f"Head {HOSTILE[0]}", runs, {"data": "90 rows of 4 classes", HOSTILE[1]: HOSTILE[2]}))
    return page


def errors_page(out: str, folder: Path) -> Path:
    """Writes the errors of a head that guesses: of rows whose labels mean harm, and of some whose images are gone."""
    table = open_table(out)
    known = np.flatnonzero(table.labels.is_valid().to_numpy())
    classes = sorted(set(table.labels.take(known).to_pylist()))
    codes = encode_as(table.labels.take(known), classes)
    random = np.random.default_rng(2)
    probabilities = random.dirichlet(np.ones(len(classes)), len(known)) + np.eye(len(classes))[codes] / 3
    keys = table.keys.take(known)
    scores = score_rows(probabilities / probabilities.sum(axis=1, keepdims=True), codes, keys=keys)
    judged = judge(scores, codes, classes, keys=keys, groups=None, seed=0, judged_on="inputs")
    rows = JudgedRows([table], known, scores, codes, known)
    page = folder / "errors.html"
    write_page(
        str(page), errors_html(f"Errors of {HOSTILE[0]}", judged, rows, {"head": HOSTILE[1], "rows": HOSTILE[2]})
    )
    return page


def suspects_page(out: str, folder: Path) -> Path:
    """Writes the sheet of labels in doubt: half of the rows, each to be called what means harm."""
    table = open_table(out)
    rows = read_rows(table, range(0, table.vectors.rows, 2))
    found = tuple(
        Suspect(row, HOSTILE[number % len(HOSTILE)], own=0.1, other=0.8, confident=True, copies=number % 3)
        for number, row in enumerate(rows)
    )
    page = folder / "suspects.html"
    write_suspects_page(Suspects(table, len(rows), 2, found, SuspectOptions(features=out)), str(page))
    return page


def run_page(folder: Path) -> Path:
    """Writes the report on a run whose labels and failures are HOSTILE."""
    vectors, labels = clusters(300, classes=10)
    labels[: len(HOSTILE)] = HOSTILE
    failures = tuple(
        Failure(f"/gone/{text}", None, "/gone/shard0.tar", i, "decode", "truncated", f"cut off {text}")
        for i, text in enumerate(HOSTILE)
    )
    out = write_out(folder / "run", vectors, labels=labels, failures=failures, units=7)
    run_report(ReportOptions(out, page=str(folder / "report.html")))
    return folder / "report.html"


def map_page(out: str, folder: Path) -> Path:
    """Writes a map with thumbnails."""
    make_map(MapOptions(out, str(folder / "map.html"), method="pca"))
    return folder / "map.html"

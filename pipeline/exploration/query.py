"""Query: the stored rows nearest to images, to other rows, or to vectors. Exact, in one pass, without an index."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.exploration.questions import Query, read_queries
from pipeline.rendering.contact_sheet import Section, Tile, row_tile, write_sheet
from pipeline.rendering.tables import row_json, text_table, write_stored_rows
from transforms.declared import AT_LEAST_ONE, check, declared
from transforms.engines import ENGINES, check_engine
from transforms.engines.engine import Engine
from transforms.errors import FeaturemillError, UsageError
from transforms.rows.lookup import StoredRow, fact_batches, facts_schema, read_rows
from transforms.rows.sandbox import matching_rows
from transforms.rows.table import Table, open_table
from transforms.rows.thumbnails import Thumbnail, Thumbnailer, thumbnails
from transforms.similarity.neighbours import METRICS, Nearest, nearest_stored
from transforms.spec import FeatureSpec
from transforms.storage import readable
from transforms.text import counted, printable, shown, shown_within


@dataclass(frozen=True, kw_only=True)
class QueryOptions:
    """The options of `query`, on OUT or other Parquet with vectors."""

    output: str
    images: tuple[str, ...] = declared(
        (), help="Look for what is near an image, embedded as OUT's were", flags=("--image",), metavar="FILE"
    )
    keys: tuple[str, ...] = declared(
        (), help="Look for what is near a stored row; not the row itself", flags=("--key",), metavar="KEY"
    )
    vectors: tuple[str, ...] = declared(
        (),
        help="Look for what is near the vectors in a .npy file; - is standard input",
        flags=("--vector",),
        metavar="FILE",
    )
    top: int = declared(10, help="Neighbours of each query", bounds=(AT_LEAST_ONE,))
    metric: str = declared("cosine", help="How nearness is measured", choices=METRICS)
    feature: str | None = declared(None, help="Column of vectors", metavar="NAME", unset="embedding")
    where: str | None = declared(
        None, help="Only rows that meet this, such as \"label = 'cat' AND width > 300\"", metavar="SQL"
    )
    engine: str = declared("auto", help="What embeds images", choices=ENGINES)
    weights: str | None = declared(None, help="Where the weights are now", unset="where they were")

    def __post_init__(self):
        if not (self.images or self.keys or self.vectors):
            raise UsageError("nothing to look for; pass --image FILE, --key KEY or --vector FILE.npy")
        check(self)
        check_engine(self.engine, "float32")
        if self.vectors.count("-") > 1:
            raise UsageError("--vector - can be given once: standard input is read to its end")


@dataclass(frozen=True)
class Neighbour:
    """A stored row near a query, and how near: its cosine, product or distance."""

    score: float
    row: StoredRow


@dataclass(frozen=True)
class Found:
    """The neighbours of each query.

    Attributes:
        table: What was searched.
        metric: One of METRICS.
        queries: Q of them.
        neighbours: Q tuples, nearest first, equally near ones by key.
        searched: Rows that met the condition.
        seconds: What the search took, without embedding.
    """

    table: Table
    metric: str
    queries: tuple[Query, ...]
    neighbours: tuple[tuple[Neighbour, ...], ...]
    searched: int
    seconds: float

    def __repr__(self) -> str:
        return shown(found_text(self))


def query(options: QueryOptions, *, load: Callable[[FeatureSpec], Engine] | None = None) -> Found:
    """Finds the stored rows nearest to each query, in one pass over the stored vectors.

    A key's own row isn't among its neighbours. Rows of zeros have no cosine, and are never near by it.

    Args:
        load: Makes the engine for images; tests inject one without weights.

    Raises:
        FeaturemillError: With the thing, the cause and the cure.
    """
    table = open_table(options.output, columns=(options.feature,) if options.feature else ())
    queries, matrix = read_queries(
        table,
        images=options.images,
        keys=options.keys,
        vectors=options.vectors,
        engine=options.engine,
        weights=options.weights,
        load=load,
    )
    if options.metric == "cosine":
        for asked, vector in zip(queries, matrix, strict=True):
            if not vector.any():
                raise FeaturemillError(f"{asked.name} is nothing but zeros, which have no cosine; pass --metric l2")
    started = time.perf_counter()
    wanted = _wanted(table, options.where)
    nearest = nearest_stored(
        table.vectors,
        table.keys,
        matrix,
        top=min(options.top, table.vectors.rows),
        metric=options.metric,
        wanted=wanted,
        without=np.array([asked.row for asked in queries]),
    )
    return Found(
        table=table,
        metric=options.metric,
        queries=tuple(queries),
        neighbours=_neighbours(table, nearest),
        searched=table.vectors.rows if wanted is None else int(wanted.sum()),
        seconds=time.perf_counter() - started,
    )


def _wanted(table: Table, where: str | None) -> np.ndarray | None:
    if where is None:
        return None
    schema = facts_schema(table, where)
    wanted = matching_rows(fact_batches(table, schema), schema, where, table.vectors.rows)
    if not wanted.any():
        raise FeaturemillError(
            f"no row of {table.location} meets the condition {where!r}; the columns are {', '.join(schema.names)}"
        )
    return wanted


def _neighbours(table: Table, nearest: Nearest) -> tuple[tuple[Neighbour, ...], ...]:
    rows = {row.row: row for row in read_rows(table, np.unique(nearest.rows[nearest.rows >= 0]))}
    return tuple(
        tuple(Neighbour(float(score), rows[int(row)]) for score, row in zip(*pair, strict=True) if row >= 0)
        for pair in zip(nearest.scores, nearest.rows, strict=True)
    )


def found_json(found: Found) -> dict[str, Any]:
    """Returns the neighbours for programs."""
    return {
        "output": found.table.location,
        "features": list(found.table.columns),
        "metric": found.metric,
        "rows": found.table.vectors.rows,
        "searched": found.searched,
        "seconds": found.seconds,
        "queries": [
            {
                "query": asked.name,
                "kind": asked.kind,
                "neighbours": [
                    row_json({"rank": rank, "score": near.score}, near.row) for rank, near in enumerate(some, 1)
                ],
            }
            for asked, some in zip(found.queries, found.neighbours, strict=True)
        ],
    }


def found_text(found: Found) -> str:
    """Returns the neighbours for people: a table for each query."""
    lines, names = [], ("", found.metric, "label", *map(printable, found.table.kept), "key")
    for asked, some in zip(found.queries, found.neighbours, strict=True):
        rows = [
            (rank, f"{near.score:.6g}", near.row.label, *near.row.kept.values(), near.row.key)
            for rank, near in enumerate(some, 1)
        ]
        lines += [f"{asked.kind} {shown_within(asked.name)}", text_table(names, rows), ""]
    rows = found.table.vectors.rows
    of = "" if found.searched == rows else f"{found.searched:,} of "
    return "\n".join([*lines, f"{of}{counted(rows, 'row')} compared in {found.seconds:.1f} s"])


def write_found(found: Found, path: str) -> None:
    """Writes the neighbours as Parquet, a row for each.

    Raises:
        FeaturemillError: It can't be written there.
    """
    own = [("query", pa.string()), ("kind", pa.string()), ("rank", pa.int32()), ("score", pa.float64())]
    rows = (
        ({"query": asked.name, "kind": asked.kind, "rank": rank, "score": near.score}, near.row)
        for asked, some in zip(found.queries, found.neighbours, strict=True)
        for rank, near in enumerate(some, 1)
    )
    write_stored_rows(path, own, found.table.kept, rows)


def write_query_page(found: Found, path: str) -> None:
    """Writes the sheet; the sources of the rows on it are opened, and nothing else.

    Raises:
        FeaturemillError: It can't be written there.
    """
    table = found.table
    asked_rows = {row.row: row for row in read_rows(table, [q.row for q in found.queries if q.row >= 0])}
    rows = [*asked_rows.values(), *(near.row for some in found.neighbours for near in some)]
    images = thumbnails(table.output, rows)

    def tile(asked: Query) -> Tile:
        if asked.row >= 0:
            return row_tile(asked_rows[asked.row], images, "query", marked=True)
        if asked.image is None:
            return Tile(Thumbnail(problem="a vector, no image"), "query", marked=True)
        return Tile(thumbnailer.make(asked.image), "query", marked=True)

    with Thumbnailer() as thumbnailer:
        sections = [
            Section(
                f"{asked.kind} {asked.name}",
                "",
                (tile(asked), *(row_tile(near.row, images, f"{found.metric} {near.score:.4f}") for near in some)),
            )
            for asked, some in zip(found.queries, found.neighbours, strict=True)
        ]
    count = len(found.queries)
    write_sheet(
        path,
        title=f"Nearest in {readable(table.location)}",
        headline=f"{count:,} {'query' if count == 1 else 'queries'}, {counted(found.searched, 'row')} compared",
        facts={
            "features": f"{' + '.join(table.columns)} of {table.location}",
            "nearest by": found.metric,
            "rows": f"{found.searched:,} of {table.vectors.rows:,}",
        },
        sections=sections,
    )

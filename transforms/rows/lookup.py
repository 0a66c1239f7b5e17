"""Single rows of stored features, by their numbers: what is known of each, and where its image lies."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as types

from transforms.labels.kept import arrow_type, type_name
from transforms.parquet.files import open_parquet
from transforms.rows.table import Table
from transforms.rows.vectors import StoredGroup, row_groups
from transforms.spec import ADDED_COLUMNS, OWN_COLUMNS, ROW_COLUMNS


@dataclass(frozen=True)
class StoredRow:
    """A row without its vectors; None for what plain Parquet doesn't say.

    Attributes:
        row: Its number.
        key, label, source, position, sha256, width, height: As in a part.
        part: The file that it lies in.
        part_row: Its number there.
        kept: The values that came along with its image, by their columns.
    """

    row: int
    key: str
    label: str | None
    source: str | None
    position: int | None
    sha256: bytes | None
    width: int | None
    height: int | None
    part: str
    part_row: int
    kept: Mapping[str, Any] = field(default_factory=dict, hash=False)


def read_rows(table: Table, rows: Sequence[int]) -> list[StoredRow]:
    """Reads rows, in the order that they are asked for; only the row groups that hold one are opened.

    Raises:
        FeaturemillError: A part that can't be read.
    """
    wanted = np.unique(np.asarray(rows, np.int64))
    found: dict[int, StoredRow] = {}
    for group in row_groups(table.vectors.parts):
        start, stop = (group.first + row for row in (group.inside.start, group.inside.stop))
        here = wanted[(wanted >= start) & (wanted < stop)]
        if not len(here):
            continue
        values = _read_group(group, (here - start).tolist(), table.kept)
        for at, row in enumerate(here.tolist()):
            columns = {name: values[name][at] if name in values else None for name in ROW_COLUMNS}
            columns |= {"key": table.keys[row].as_py(), "label": table.labels[row].as_py()}
            kept = {name: values[name][at] if name in values else None for name in table.kept}
            found[row] = StoredRow(row=row, **columns, part=group.part.uri, part_row=row - group.first, kept=kept)
    return [found[row] for row in rows]


def _read_group(group: StoredGroup, rows: list[int], kept: Iterable[str]) -> dict[str, list]:
    with open_parquet(group.part.uri) as parquet:
        columns = [*_facts(parquet.schema_arrow), *kept]
        # An empty list of columns would have no rows.
        return parquet.read_row_group(group.number, columns).take(rows).to_pydict() if columns else {}


def read_vectors(table: Table, rows: Sequence[int]) -> np.ndarray:
    """Returns n×D float32, in the order that the rows are asked for."""
    rows = np.asarray(rows, np.int64)
    wanted = np.zeros(table.vectors.rows, bool)
    wanted[rows] = True
    unique = np.unique(rows)
    matrix = np.empty((len(unique), table.vectors.dims), np.float32)
    for numbers, batch in replace(table.vectors, zeros_pass=True).batches(wanted):
        matrix[np.searchsorted(unique, numbers)] = batch
    return matrix[np.searchsorted(unique, rows)]


def _facts(schema: pa.Schema) -> list[str]:
    """Returns the columns of a part that a file has, without key and label.

    Those of other people's Parquet that only have the name, such as a position in words, don't count.
    """
    texts = types.is_string, types.is_large_string, types.is_string_view
    bytes_ = types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view
    numbers = (types.is_integer,)
    valid = {"source": texts, "position": numbers, "sha256": bytes_, "width": numbers, "height": numbers}
    valid |= dict.fromkeys(ADDED_COLUMNS, texts)
    kinds = {field.name: field.type.value_type if types.is_dictionary(field.type) else field.type for field in schema}
    return [name for name in valid if name in kinds and any(is_a(kinds[name]) for is_a in valid[name])]


def facts_schema(table: Table, condition: str) -> pa.Schema:
    """Returns columns for a condition: a part's own, and plain ones that it names, as far as all files have these."""
    own = dict.fromkeys(OWN_COLUMNS, pa.string())
    own |= {"position": pa.int64(), "sha256": pa.binary(), "width": pa.int32(), "height": pa.int32()}
    found = None
    for part in table.vectors.parts:
        with open_parquet(part.uri) as parquet:
            schema = parquet.schema_arrow
        there = {"key", "label", *_facts(schema)}
        kinds = {field.name: type_name(field.type) for field in schema if field.name not in own}
        # Only what is asked for is read, and vectors may be plain lists.
        named = {name: kind for name, kind in kinds.items() if kind and name.lower() in condition.lower()}
        others = {name: arrow_type(kind) for name, kind in named.items() if not kind.startswith("list")}
        columns = {name: kind for name, kind in own.items() if name in there} | others
        found = columns if found is None else {n: kind for n, kind in found.items() if columns.get(n) == kind}
    return pa.schema(list((found or own).items()))


def fact_batches(table: Table, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yields the columns of `facts_schema` for all N rows, in order."""
    first = 0
    names = [name for name in schema.names if name not in ("key", "label")]
    for part in table.vectors.parts:
        with open_parquet(part.uri) as parquet:
            for group in range(parquet.num_row_groups):
                rows = part.group_rows[group]
                facts = parquet.read_row_group(group, names) if names else None
                columns = {"key": table.keys.slice(first, rows), "label": table.labels.slice(first, rows)}
                columns |= {name: facts.column(name) for name in names}
                whole = pa.table([columns[name] for name in schema.names], schema.names).cast(schema)
                yield from whole.combine_chunks().to_batches()
                first += rows

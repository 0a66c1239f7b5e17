"""What OUT holds, unit by unit, and whether it adds up to what was read."""

import io
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import pyarrow as pa
import pyarrow.parquet as pq

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.records import UnitReport
from transforms.store.features import Features
from transforms.store.layout import failures_uri, part_uri, write_file
from transforms.store.listing import Listing, is_merged, read_footers
from transforms.text import one_line

# Beyond this many rows the summary doesn't look for repeated keys and contents by itself; `inspect` always does.
REPEATS_UP_TO_ROWS = 10_000_000
UNITS_PER_GROUP = 65_536
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Totals:
    """Sums over units; `rows_read = rows_embedded + rows_failed`."""

    units: int
    rows_read: int
    rows_embedded: int
    rows_failed: int
    input_bytes: int
    read_seconds: float
    decode_seconds: float
    embed_seconds: float
    write_seconds: float


def add_up(reports: Iterable[UnitReport]) -> Totals:
    """Returns the sums over the reports."""
    reports = list(reports)
    sums = {f.name: sum(getattr(report, f.name) for report in reports) for f in fields(Totals) if f.name != "units"}
    return Totals(units=len(reports), **sums)


def collect_reports(
    output: str, unit_ids: Collection[str], *, listing: Listing, fresh: Collection[str]
) -> list[UnitReport]:
    """Returns the reports of the units, from units.parquet where it has them, else from the parts' footers.

    Args:
        output: OUT.
        unit_ids: All units that OUT should hold.
        listing: Its parts.
        fresh: Those of this run: what units.parquet says of them is of an earlier time.
    """
    known = {report.unit_id: report for report in read_units(output) if report.unit_id not in fresh}
    merged = {report.unit_id: report for footer in listing.merged.values() for report in footer.reports}
    known.update((unit_id, merged[unit_id]) for unit_id in unit_ids if unit_id in merged and unit_id not in known)
    missing = [unit_id for unit_id in unit_ids if unit_id not in known]
    for footer in read_footers([part_uri(output, unit_id) for unit_id in missing]):
        known.update((report.unit_id, report) for report in footer.reports)
    return [known[unit_id] for unit_id in sorted(unit_ids)]


def _units_uri(output: str) -> str:
    return storage.join(output, "units.parquet")


def read_units(output: str) -> list[UnitReport]:
    """Returns what units.parquet holds; nothing if it isn't there yet."""

    uri = _units_uri(output)
    if storage.stat(uri) is None:
        return []
    try:
        with storage.open_read(uri) as file:
            batches = pq.ParquetFile(file).iter_batches(columns=[f.name for f in fields(UnitReport)])
            # By columns: a million rows as dictionaries would take two gigabytes.
            columns = ([column.to_pylist() for column in batch.columns] for batch in batches)
            return [UnitReport(*row) for some in columns for row in zip(*some, strict=True)]
    except (OSError, TypeError, pa.ArrowException) as error:
        raise FeaturemillError(
            f"cannot read {uri}: {one_line(error)}; delete it and run featuremill extract again"
        ) from error


def write_units(output: str, reports: Sequence[UnitReport]) -> None:
    """Writes units.parquet, one row per unit."""

    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    schema = pa.schema([(f.name, arrow[f.type]) for f in fields(UnitReport)])
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for first in range(0, len(reports), UNITS_PER_GROUP):
            some = reports[first : first + UNITS_PER_GROUP]
            columns = [pa.array([getattr(report, f.name) for report in some], f.type) for f in schema]
            writer.write_table(pa.table(columns, schema=schema))
    write_file(output, "units.parquet", buffer.getvalue())


def failures_by_reason(output: str, reports: Iterable[UnitReport]) -> Counter[str]:
    """Returns {`stage: error`: count}, the commonest first."""

    def count(unit_id: str) -> Counter[str]:
        uri = failures_uri(output, unit_id)
        try:
            with storage.open_read(uri) as file:
                table = pq.ParquetFile(file).read(["stage", "error"])
        except (OSError, pa.ArrowException) as error:
            raise FeaturemillError(
                f"{uri} can't be read ({one_line(error)}); delete it and its part, and run extract again"
            ) from error
        rows = zip(table["stage"].to_pylist(), table["error"].to_pylist(), strict=True)
        return Counter(f"{stage}: {error}" for stage, error in rows)

    total: Counter[str] = Counter()
    with ThreadPoolExecutor(16) as pool:
        for part in pool.map(count, [report.unit_id for report in reports if report.rows_failed]):
            total.update(part)
    return Counter(dict(sorted(total.items(), key=lambda item: (-item[1], item[0]))))


@dataclass(frozen=True)
class Repeats:
    """Keys and contents that more than one row has.

    Attributes:
        keys: How many keys.
        contents: How many contents, by the hash of the encoded bytes.
        named_keys: Some of them.
        named_contents: Some groups of keys with the same content.
    """

    keys: int
    contents: int
    named_keys: tuple[str, ...]
    named_contents: tuple[tuple[str, ...], ...]


def find_repeats(features: Features, *, named: int = 5) -> Repeats | None:
    """Counts the keys and contents that were seen more than once, and names the first few.

    DuckDB does it, because it spills to disk: a group-by in memory would grow with the rows.

    Returns:
        None if even that didn't fit on this machine, in memory or on disk; the books don't hang on it.
    """
    import duckdb

    try:
        return _find_repeats(features, named)
    except (duckdb.Error, OSError) as error:
        _log.warning("keys and contents seen twice were not counted: %s", one_line(error))
        return None


def _find_repeats(features: Features, named: int) -> Repeats:
    import duckdb

    schema = pa.schema([("key", pa.string()), ("sha256", pa.binary(32))])
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as database:
        database.execute("SET memory_limit = '512MB'; SET preserve_insertion_order = false")
        database.execute(f"SET temp_directory = '{folder}'")
        batches = (batch.cast(schema) for batch in features.batches(["key", "sha256"]))
        database.register("parts", pa.RecordBatchReader.from_batches(schema, batches))
        database.execute("CREATE TABLE rows AS SELECT key, sha256 FROM parts")

        def repeated(column: str) -> tuple[int, list]:
            same = f"SELECT {column}, min(key) AS first FROM rows GROUP BY {column} HAVING count(*) > 1"
            [(count,)] = database.execute(f"SELECT count(*) FROM ({same})").fetchall()
            return count, database.execute(f"SELECT {column} FROM ({same}) ORDER BY first LIMIT ?", [named]).fetchall()

        keys, same_keys = repeated("key")
        contents, hashes = repeated("sha256")
        # Group by group: a list of all keys of all groups would not fit where half of a crawl is one placeholder.
        of_hash = "SELECT key FROM rows WHERE sha256 = ? ORDER BY key LIMIT ?"
        groups = [database.execute(of_hash, [value, named]).fetchall() for (value,) in hashes]
    named_contents = tuple(tuple(key for (key,) in group) for group in groups)
    return Repeats(keys, contents, tuple(key for (key,) in same_keys), named_contents)


def stored_bytes(output: str, unit_ids: Iterable[str]) -> int:
    """Returns the bytes of the units' parts; local outputs only, 0 elsewhere (a listing there costs requests)."""
    if not storage.is_local(output):
        return 0
    names = {f"{unit_id}.parquet" for unit_id in unit_ids}
    infos = storage.list_infos(storage.join(output, "features"))
    there = ((os.path.basename(info.uri), info.size) for info in infos)
    return sum(size for name, size in there if name in names or is_merged(name))


def parquet_rows(uri: str) -> int:
    """Returns the rows of a Parquet file by its footer, 0 if it can't be read."""

    try:
        with storage.open_read(uri) as file:
            return pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowException):
        return 0

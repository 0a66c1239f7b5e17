"""Keys and contents that more than one row has."""

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from transforms.errors import FeaturemillError
from transforms.store.features import Features
from transforms.text import one_line

# Beyond this many rows the summary doesn't look for repeated keys and contents by itself; `inspect` always does.
REPEATS_UP_TO_ROWS = 10_000_000
# So many keys, and groups of keys, are named.
_NAMED = 5
_log = logging.getLogger(__name__)


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


def find_repeats(features: Features) -> Repeats | None:
    """Counts the keys and contents that were seen more than once, and names the first few.

    DuckDB does it, because it spills to disk: a group-by in memory would grow with the rows.

    Returns:
        None if even that didn't fit on this machine, in memory or on disk; the totals don't depend on it.

    Raises:
        FeaturemillError: A part can't be read.
    """
    import duckdb

    broken: list[FeaturemillError] = []
    try:
        return _find_repeats(features, broken)
    except (duckdb.Error, OSError) as error:
        if broken:
            # DuckDB would tell its whole traceback.
            raise broken[0] from None
        _log.warning("keys and contents seen twice were not counted: %s", one_line(error))
        return None


def _find_repeats(features: Features, broken: list[FeaturemillError]) -> Repeats:
    """Finds repeats as `find_repeats` does; errors of reading go into `broken`, too."""
    import duckdb

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for batch in features.batches(["key", "sha256"]):
                yield batch.cast(schema)
        except FeaturemillError as error:
            broken.append(error)
            raise

    schema = pa.schema([("key", pa.string()), ("sha256", pa.binary(32))])
    with tempfile.TemporaryDirectory() as folder, duckdb.connect() as database:
        database.execute("SET memory_limit = '512MB'; SET preserve_insertion_order = false")
        database.execute(f"SET temp_directory = '{folder}'")
        database.register("parts", pa.RecordBatchReader.from_batches(schema, batches()))
        database.execute("CREATE TABLE rows AS SELECT key, sha256 FROM parts")

        def repeated(column: str) -> tuple[int, list]:
            same = f"SELECT {column}, min(key) AS first FROM rows GROUP BY {column} HAVING count(*) > 1"
            [(count,)] = database.execute(f"SELECT count(*) FROM ({same})").fetchall()
            return count, database.execute(f"SELECT {column} FROM ({same}) ORDER BY first LIMIT ?", [_NAMED]).fetchall()

        keys, same_keys = repeated("key")
        contents, hashes = repeated("sha256")
        # Group by group: a list of all keys of all groups would not fit where half of a crawl is one placeholder.
        of_hash = "SELECT key FROM rows WHERE sha256 = ? ORDER BY key LIMIT ?"
        groups = [database.execute(of_hash, [value, _NAMED]).fetchall() for (value,) in hashes]
    named_contents = tuple(tuple(key for (key,) in group) for group in groups)
    return Repeats(keys, contents, tuple(key for (key,) in same_keys), named_contents)

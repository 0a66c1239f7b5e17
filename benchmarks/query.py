"""What looking into a million vectors costs: seconds and peak memory of whole `query` and `duplicates` commands.

Run as `python -m benchmarks.query [--only query|duplicates] [--rows 1000000]`. Vectors are drawn once, into a temporary
folder. DuckDB's own way, `array_cosine_similarity` over the same file, is measured beside `query`. Every command runs
twice: the second time the file is in the page cache. Figures are printed, never asserted; that `duplicates` finds what
was planted, and nothing else, is checked.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.heads import DIMS, GROUP_ROWS, write_vectors
from benchmarks.process import run, say

QUERIES = 100
# Groups of three near copies at a cosine of about 0.9996, among rows that are at most about 0.7 alike.
DUPLICATE_ROWS, PLANTED, NOISE = 200_000, 500, 0.02
FEATUREMILL = [sys.executable, "-m", "pipeline.cli"]
DUCKDB = """
import duckdb, numpy as np, sys
query, path = np.load(sys.argv[1])[0], sys.argv[2]
print(duckdb.execute("SELECT key, array_cosine_similarity(embedding::FLOAT[512], $query::FLOAT[512]) AS cosine "
                     "FROM read_parquet($path) ORDER BY cosine DESC, key LIMIT 10",
                     {"query": query.tolist(), "path": path}).fetchall())
"""


def write_copies(path: Path, rows: int) -> set[frozenset[str]]:
    """Writes vectors among which groups of near copies are planted; returns the groups, by their keys."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(1)
    centres = np.abs(random.standard_normal((50, DIMS), dtype=np.float32))
    planted = random.permutation(rows)[: 3 * PLANTED].reshape(PLANTED, 3)
    originals = random.standard_normal((PLANTED, DIMS), dtype=np.float32)
    of_row = {int(row): number for number, group in enumerate(planted) for row in group}
    kind = pa.list_(pa.field("element", pa.float32()), DIMS)
    schema = pa.schema({"key": pa.string(), "embedding": kind})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, rows, GROUP_ROWS):
            numbers = range(start, min(start + GROUP_ROWS, rows))
            matrix = random.standard_normal((len(numbers), DIMS), dtype=np.float32)
            matrix += centres[random.integers(0, 50, len(numbers))] * 0.5
            for row in of_row.keys() & set(numbers):
                noise = random.standard_normal(DIMS, dtype=np.float32) * NOISE
                matrix[row - start] = (originals[of_row[row]] + noise) * random.uniform(0.5, 2)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), type=kind)
            keys = pa.array([f"row{number:08}" for number in numbers])
            writer.write_table(pa.Table.from_arrays([keys, vectors], schema=schema))
    return {frozenset(f"row{row:08}" for row in group) for group in planted}


def measure(name: str, command: list[str]) -> dict:
    """Runs a command twice; returns the figures of the second run."""
    for _ in range(2):
        done = run(command)
    say(f"{name}: {done.seconds:.1f} s ({done.cpu_seconds:.1f} s of CPU), {done.peak_mb / 1000:.2f} GB")
    return {"seconds": done.seconds, "cpu_seconds": done.cpu_seconds, "peak_gb": done.peak_mb / 1000}


def measure_query(folder: Path, rows: int) -> dict:
    vectors, one, many = folder / "vectors.parquet", folder / "one.npy", folder / "many.npy"
    say(f"writing {rows:,} vectors of {DIMS} numbers")
    write_vectors(vectors, rows)
    queries = np.random.default_rng(2).random((QUERIES, DIMS), dtype=np.float32)
    np.save(one, queries[:1])
    np.save(many, queries)
    search = [*FEATUREMILL, "query", str(vectors), "--json", "--vector"]
    return {
        "one query": measure("one query", [*search, str(one)]),
        "one query where": measure("one query, --where", [*search, str(one), "--where", "label = 'class3'"]),
        f"{QUERIES} queries": measure(f"{QUERIES} queries", [*search, str(many)]),
        "duckdb, one query": measure("DuckDB, one query", [sys.executable, "-c", DUCKDB, str(one), str(vectors)]),
    }


def measure_duplicates(folder: Path, rows: int) -> dict:
    import pyarrow.parquet as pq

    vectors, found = folder / "copies.parquet", folder / "found.parquet"
    say(f"writing {rows:,} vectors, with {PLANTED} groups of copies")
    planted = write_copies(vectors, rows)
    command = [*FEATUREMILL, "duplicates", str(vectors), "--cosine", "0.999", "-o", str(found), "--overwrite"]
    figures = measure("duplicates", command)
    groups: dict[int, set[str]] = {}
    for row in pq.read_table(found, columns=["group", "key"]).to_pylist():
        groups.setdefault(row["group"], set()).add(row["key"])
    got = {frozenset(group) for group in groups.values()}
    if got != planted:
        raise SystemExit(f"found {len(got & planted)} of {len(planted)} groups, and {len(got - planted)} others")
    return {**figures, "rows": rows, "groups": len(got)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["query", "duplicates"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    figures = {"rows": given.rows, "dims": DIMS, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as name:
        if given.only != "duplicates":
            figures["query"] = measure_query(Path(name), given.rows)
        if given.only != "query":
            figures["duplicates"] = measure_duplicates(Path(name), min(DUPLICATE_ROWS, given.rows))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

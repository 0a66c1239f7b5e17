"""What training costs on a million vectors: seconds and peak memory of the whole `featuremill train` command.

Run as `python -m benchmarks.heads [--only KIND] [--rows 1000000] [--classes 10]`. The vectors are drawn once, into a
temporary folder. Figures are printed, never asserted: machines differ, and are shared.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.process import run, say

DIMS, GROUP_ROWS = 512, 20_000
# About as many rows as are to be compared with all others; ridge and linear are judged on the usual share.
QUERIES = 1000
KINDS = ("ridge", "linear", "knn")


def write_vectors(path: Path, rows: int, classes: int = 10) -> None:
    """Writes drawn vectors in the layout of a part, row group by row group: one normal cloud per class."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    centres = random.normal(size=(classes, DIMS)).astype(np.float32) * 0.1 + 1
    kind = pa.list_(pa.field("element", pa.float32()), DIMS)
    schema = pa.schema({"key": pa.string(), "label": pa.string(), "embedding": kind})
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["label"]) as writer:
        for start in range(0, rows, GROUP_ROWS):
            count = min(GROUP_ROWS, rows - start)
            codes = random.integers(0, classes, count)
            vectors = random.standard_normal((count, DIMS), dtype=np.float32) + centres[codes]
            columns = [
                pa.array([f"row{number:08}" for number in range(start, start + count)]),
                pa.array([f"class{code}" for code in codes]),
                pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=kind),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def command(kind: str, vectors: Path, head: Path, rows: int) -> list[str]:
    """Returns the command that trains a head; a linear one for a single epoch, as epochs are alike."""
    more = {
        "ridge": [],
        "linear": ["--epochs", "1", "--no-learning-curve"],
        "knn": ["--val-fraction", str(QUERIES / rows), "--no-learning-curve"],
    }[kind]
    return [sys.executable, "-m", "pipeline.cli", "train", str(vectors), "-o", str(head), "--head", kind, "-q", *more]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=KINDS, help="One kind of head instead of all.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=10)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as folder:
        vectors = Path(folder) / "vectors.parquet"
        say(f"writing {given.rows:,} vectors of {DIMS} numbers")
        write_vectors(vectors, given.rows, given.classes)
        figures = {"rows": given.rows, "dims": DIMS, "classes": given.classes, "cores": os.cpu_count()}
        for kind in [given.only] if given.only else KINDS:
            done = run(command(kind, vectors, Path(folder) / kind, given.rows))
            say(f"{kind}: {done.seconds:.1f} s, {done.peak_mb / 1000:.2f} GB")
            figures[kind] = {"seconds": done.seconds, "cpu_seconds": done.cpu_seconds, "peak_gb": done.peak_mb / 1000}
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

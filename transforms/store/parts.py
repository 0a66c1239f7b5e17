"""Writing one unit's part and committing it, so that its presence means: this unit is done, and its report adds up."""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa

from transforms import storage
from transforms.committed import committed_file
from transforms.errors import FeaturemillError
from transforms.parquet.seals import SealedWriter, sealed
from transforms.records import Failure, UnitReport
from transforms.spec import ROW_COLUMNS, FeatureSpec
from transforms.store.layout import failures_uri, part_uri, writing
from transforms.store.listing import own_report
from transforms.store.schema import failures_schema, part_schema

# A row group is written whenever this many bytes of features have gathered, so that a unit's memory is bounded.
ROW_GROUP_BYTES = 64 * 2**20
# ... or of keys, labels and messages, of failures too ...
ROW_GROUP_TEXT_BYTES = 32 * 2**20
# ... or this many rows, whose hashes add up as well; the same for failures.
ROW_GROUP_ROWS = 65_536
# How parts are written: compressed, with statistics, and without dictionaries for vectors.
PART_OPTIONS = {"use_dictionary": ["label", "source", "split"], "write_statistics": True}


def writing_part(name: str, output: object) -> AbstractContextManager[None]:
    """Returns a context in which a part is written; see `writing`."""
    return writing(f"part {name}", output, then=": it goes on where it stopped")


def _text_bytes(row: tuple | list) -> int:
    """Returns what a row's texts and lists take, as far as their letters are ASCII."""
    texts = sum(len(value) for value in row if isinstance(value, str))
    return texts + sum(8 * len(value) + _text_bytes(value) for value in row if isinstance(value, list))


class PartWriter:
    """Writes one unit's rows and commits them under its name, whole: renamed on disks, uploaded on object stores.

    Retries, speculative and zombie workers write the same rows under the same name, so whoever commits last changes
    nothing. Each gathers its rows in a file of its own, so all they can do is replace one whole part by its twin.
    """

    def __init__(
        self, output: str, unit_id: str, *, spec: FeatureSpec, sizes: Mapping[str, int], added: Mapping[str, str] = {}
    ):
        """Takes the folder, the unit's id, the spec, {feature name: D}, and the columns between: see `part_schema`."""
        self.output, self.unit_id, self.spec = output, unit_id, spec
        self.embedded = self.failed = 0
        self.seconds = 0.0
        self._failures: list[Failure] = []
        self._schema = part_schema(spec, sizes, added)
        self._facts = len(ROW_COLUMNS) + len(added)
        self._rows: list[tuple] = []
        self._vectors: list[tuple[np.ndarray, ...]] = []
        self._buffered_bytes = self._text_bytes = self._failures_bytes = 0
        self._stem = storage.join(output, "_tmp", f"{unit_id}.{uuid.uuid4().hex}")
        self._part_uri, self._failures_uri = part_uri(output, unit_id), failures_uri(output, unit_id)
        self._part_file, self._failures_file = ExitStack(), ExitStack()
        self._parquet: SealedWriter | None = None
        self._failures_parquet: SealedWriter | None = None
        self._values: dict[str, str] = {}

    @property
    def progress_uri(self) -> str:
        """The URI of the file in which a local run says how far this unit has come."""
        return f"{self._stem}.progress"

    def __enter__(self) -> "PartWriter":
        with writing_part(self.unit_id, self.output):
            # Here and not only by the driver: another run on the same output may have tidied up.
            storage.make_folder(storage.join(self.output, "_tmp"))
            file = self._part_file.enter_context(committed_file(self._part_uri, f"{self._stem}.parquet"))
            writer = sealed(file, self._schema, self._values, **PART_OPTIONS)
            self._parquet = self._part_file.enter_context(writer)
        return self

    def add(self, rows: Sequence[tuple], vectors: Mapping[str, "np.ndarray"]) -> None:
        """Adds a batch of N rows.

        Args:
            rows: N tuples in the order of `spec.ROW_COLUMNS`, `spec.ADDED_COLUMNS` and what comes along.
            vectors: {feature name: N×D}, in the stored dtype.
        """
        self._rows.extend(rows)
        self._vectors.append(tuple(vectors[feature.name] for feature in self.spec.features))
        self._buffered_bytes += sum(array.nbytes for array in self._vectors[-1])
        self._text_bytes += sum(map(_text_bytes, rows))
        self.embedded += len(rows)
        if (
            self._buffered_bytes >= ROW_GROUP_BYTES
            or self._text_bytes >= ROW_GROUP_TEXT_BYTES
            or len(self._rows) >= ROW_GROUP_ROWS
        ):
            self.flush()

    def fail(self, failure: Failure) -> None:
        """Adds a failure."""
        self._failures.append(failure)
        self._failures_bytes += _text_bytes((failure.key, failure.label, failure.source, failure.message))
        self.failed += 1
        if self._failures_bytes >= ROW_GROUP_TEXT_BYTES or len(self._failures) >= ROW_GROUP_ROWS:
            self._flush_failures()

    def _flush_failures(self) -> None:
        if not self._failures:
            return
        table = pa.Table.from_pylist([asdict(failure) for failure in self._failures], failures_schema())
        with writing_part(self.unit_id, self.output):
            if self._failures_parquet is None:
                opened = committed_file(self._failures_uri, f"{self._stem}.failures.parquet")
                file = self._failures_file.enter_context(opened)
                self._failures_parquet = self._failures_file.enter_context(sealed(file, table.schema))
            self._failures_parquet.write(table)
        self._failures, self._failures_bytes = [], 0

    def flush(self) -> None:
        """Writes the rows that have gathered as a row group."""
        if not self._rows:
            return
        started = time.perf_counter()
        columns: list[Any] = [list(column) for column in zip(*self._rows, strict=True)][: self._facts]
        for arrays in zip(*self._vectors, strict=True):
            stacked = np.concatenate(arrays)
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(stacked.reshape(-1)), stacked.shape[1]))
        arrays = [pa.array(c, f.type) if isinstance(c, list) else c for c, f in zip(columns, self._schema, strict=True)]
        with writing_part(self.unit_id, self.output):
            self._parquet.write(pa.record_batch(arrays, schema=self._schema))
        self._rows, self._vectors, self._buffered_bytes, self._text_bytes = [], [], 0, 0
        self.seconds += time.perf_counter() - started

    def commit(self, report: UnitReport) -> None:
        """Commits the failures, then the part.

        Raises:
            FeaturemillError: The report doesn't add up, or the output can't be written; nothing is visible then.
        """
        if report.rows_read != self.embedded + self.failed:
            raise FeaturemillError(
                f"unit {self.unit_id}: read {report.rows_read} is not embedded {self.embedded} + failed "
                f"{self.failed}; nothing of it was committed; please report this"
            )
        self.flush()
        self._flush_failures()
        with writing_part(self.unit_id, self.output):
            # The failures first: once the part is there, the unit is done, and its failures must be there.
            if self._failures_parquet is not None:
                self._publish(self._failures_file, self._failures_uri)
                report = replace(report, failures_sha256=self._failures_parquet.content)
            self._values |= {
                "featuremill.fingerprint": self.spec.fingerprint,
                "featuremill.spec": self.spec.to_json(),
                "featuremill.report": json.dumps(own_report(report)),
            }
            self._publish(self._part_file, self._part_uri)

    def _publish(self, file: ExitStack, final: str) -> None:
        try:
            file.close()
        except FileNotFoundError:
            # Another run on the same output finished this unit and cleared its temporary files: the rows are there.
            if storage.stat(final) is None:
                raise

    def __exit__(self, *error: object) -> None:
        # What isn't committed may not appear; what is, is closed already.
        for file in (self._part_file, self._failures_file):
            with suppress(OSError):
                file.__exit__(GeneratorExit, GeneratorExit(), None)
        if storage.is_local(self.output):
            with suppress(OSError):
                storage.delete([self.progress_uri])

"""Writing one unit's part and committing it, so that its presence means: this unit is done, and its report adds up."""

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.parquet.seals import SealedWriter
from transforms.records import Failure, UnitReport
from transforms.spec import ROW_COLUMNS, FeatureSpec
from transforms.store.layout import failures_uri, part_uri
from transforms.store.listing import own_report
from transforms.store.schema import failures_schema, part_schema
from transforms.text import one_line

# A row group is written whenever this many bytes of features have gathered, so that a unit's memory is bounded.
ROW_GROUP_BYTES = 64 * 2**20
# ... or of keys, labels and messages, of failures too ...
ROW_GROUP_TEXT_BYTES = 32 * 2**20
# ... or this many rows, whose hashes add up as well; the same for failures.
ROW_GROUP_ROWS = 65_536


def parquet_writer(file: BinaryIO, schema: pa.Schema) -> SealedWriter:
    """Returns what writes a part: compressed, with statistics, and without dictionaries for vectors."""
    return SealedWriter(file, schema, use_dictionary=["label", "source", "split"], write_statistics=True)


def _text_bytes(row: tuple) -> int:
    """Returns what a row's texts take, as far as their letters are ASCII."""
    return sum(len(value) for value in row if isinstance(value, str))


class PartWriter:
    """Writes one unit's rows and commits them under its name, whole: renamed on disks, uploaded on object stores.

    Retries, speculative and zombie workers write the same rows under the same name, so whoever commits last changes
    nothing. Each gathers its rows in a file of its own, so all they can do is replace one whole part by its twin.
    """

    def __init__(
        self, output: str, unit_id: str, *, spec: FeatureSpec, sizes: Mapping[str, int], added: Sequence[str] = ()
    ):
        """Args: the folder, the unit's id, the spec, {feature name: D}, and which of `spec.ADDED_COLUMNS` OUT has."""
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
        # On an object store what is written appears under its own name, and only whole.
        self._part_name = storage.written_as(self._part_uri, f"{self._stem}.parquet")
        self._failures_name = storage.written_as(self._failures_uri, f"{self._stem}.failures.parquet")
        self._file = self._parquet = self._failures_file = self._failures_parquet = None

    @property
    def progress_uri(self) -> str:
        """The URI of the file in which a local run says how far this unit has come."""
        return f"{self._stem}.progress"

    def __enter__(self) -> "PartWriter":
        with self._explained():
            # Here and not only by the driver: another run on the same output may have tidied up.
            storage.make_folder(storage.join(self.output, "_tmp"))
            self._file = storage.open_write(self._part_name)
            self._parquet = parquet_writer(self._file, self._schema)
        return self

    def add(self, rows: Sequence[tuple], vectors: Mapping[str, "np.ndarray"]) -> None:
        """Adds a batch of N rows.

        Args:
            rows: N tuples in the order of `spec.ROW_COLUMNS` and `spec.ADDED_COLUMNS`.
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
        with self._explained():
            if self._failures_parquet is None:
                self._failures_file = storage.open_write(self._failures_name)
                self._failures_parquet = SealedWriter(self._failures_file, table.schema)
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
        with self._explained():
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
        with self._explained():
            # The failures first: once the part is there, the unit is done, and its failures must be there.
            if self._failures_parquet is not None:
                self._finish(self._failures_parquet, self._failures_file, {})
                report = replace(report, failures_sha256=self._failures_parquet.content)
                self._publish(self._failures_name, self._failures_uri)
            values = {
                "featuremill.fingerprint": self.spec.fingerprint,
                "featuremill.spec": self.spec.to_json(),
                "featuremill.report": json.dumps(own_report(report)),
            }
            self._finish(self._parquet, self._file, values)
            self._publish(self._part_name, self._part_uri)

    def _finish(self, parquet: SealedWriter, file: BinaryIO, values: Mapping[str, str]) -> None:
        parquet.close(values)
        storage.sync(file)
        file.close()

    def _publish(self, temporary: str, final: str) -> None:
        try:
            storage.rename(temporary, final)
        except FileNotFoundError:
            # Another run on the same output finished this unit and cleared its temporary files: the rows are there.
            if storage.stat(final) is None:
                raise

    def __exit__(self, *error: object) -> None:
        # After a commit there is nothing left but the progress file.
        for file in (self._file, self._failures_file):
            if file is not None and not file.closed:
                with suppress(OSError):
                    storage.discard(file)
        for parquet in (self._parquet, self._failures_parquet):
            if parquet is not None:
                parquet.discard()
        names = {self._part_name: self._part_uri, self._failures_name: self._failures_uri}
        leftovers = [name for name, final in names.items() if name != final]
        if storage.is_local(self.output) or (error[0] is not None and leftovers):
            with suppress(OSError):
                storage.delete([*leftovers, self.progress_uri])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FeaturemillError(
                f"cannot write part {self.unit_id} to {self.output}: {one_line(error)}; "
                "free some space or fix the permissions and run the same command again: it goes on where it stopped"
            ) from error

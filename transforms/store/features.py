"""Opens the stored features of an OUT, checked by their fingerprint. No Beam and no Keras here."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from transforms.errors import FeaturemillError
from transforms.locks import Reading
from transforms.parquet.files import open_sealed
from transforms.records import UnitReport
from transforms.spec import ROW_COLUMNS, FeatureSpec
from transforms.store.listing import read_footers
from transforms.store.manifest import read_manifest
from transforms.store.output import Output
from transforms.store.reports import parts_sha256
from transforms.store.schema import vector_bytes
from transforms.text import counted, did_you_mean

# What a batch of rows may hold of features, unless the caller says how many rows.
BATCH_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Features:
    """The stored features of one OUT, read part by part in the order of their names.

    Attributes:
        output: The folder.
        spec: What decided the numbers.
        fingerprint: Of the spec; every part was checked to carry it.
        complete: False while a run is unfinished: then these are the rows committed so far.
        parts: URIs of the parts; a merged one has the rows of several units, sorted by key.
        rows: N, over all parts.
        added_columns: Which of `spec.ADDED_COLUMNS` the parts have.
        reading: Keeps a compaction from removing the parts meanwhile.
    """

    output: str
    spec: FeatureSpec
    fingerprint: str
    complete: bool
    parts: tuple[str, ...]
    rows: int
    added_columns: tuple[str, ...] = ()
    reading: Reading | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        rows = f"{counted(self.rows, 'row')}{'' if self.complete else ' so far'}"
        return f"{rows} in {self.output}: {', '.join(map(str, self.spec.features))} of {self.spec.backbone}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features."""
        return tuple(feature.name for feature in self.spec.features)

    @property
    def row_columns(self) -> tuple[str, ...]:
        """The columns before the features."""
        return ROW_COLUMNS + self.added_columns

    @property
    def keys(self) -> list[str]:
        """The N keys."""
        return self._column("key")

    @property
    def labels(self) -> list[str | None]:
        """The N labels, None where unknown."""
        return self._column("label")

    @property
    def splits(self) -> list[str | None]:
        """The N sides, train, validation or test; None where unknown, as it is everywhere in an OUT begun earlier."""
        return self._column("split") if "split" in self.added_columns else [None] * self.rows

    def _column(self, name: str) -> list:
        return [value for batch in self.batches([name]) for value in batch.column(name).to_pylist()]

    def batches(self, columns: Sequence[str] | None = None, *, rows: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yields record batches in order, holding one in memory at a time.

        Args:
            columns: Which ones; by default all.
            rows: At most so many to a batch; by default 65,536, or as many as have 32 MiB of features.

        Raises:
            FeaturemillError: A column that isn't there.
        """
        valid = [*self.row_columns, *self.names]
        for name in columns or ():
            if name not in valid:
                raise FeaturemillError(f"{self.output} has no column {name!r}{did_you_mean(name, valid)}")
        for part in self.parts:
            with open_sealed(part, cure="delete it and run extract again") as parquet:
                fits = BATCH_BYTES // max(1, vector_bytes(parquet.schema_arrow, columns or valid))
                yield from parquet.iter_batches(batch_size=rows or min(65_536, max(1, fits)), columns=columns)

    def to_numpy(self, feature: str = "embedding") -> np.ndarray:
        """Returns X, N×D, in the stored dtype. Takes N × D numbers of memory; `batches` doesn't."""
        matrix, row = None, 0
        for batch in self.batches([choose_feature(self, feature)]):
            column = batch.column(0)
            values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
            if matrix is None:
                matrix = np.empty((self.rows, values.shape[1]), values.dtype)
            matrix[row : row + len(values)] = values
            row += len(values)
        return np.empty((0, 0), self.spec.dtype) if matrix is None else matrix


def open_features(output: str | os.PathLike[str] | Output, *, whole: bool = True) -> Features:
    """Opens the features in a folder that `featuremill extract` wrote.

    Example:
        >>> features = featuremill.open_features("features")
        >>> features.rows, sorted(set(features.labels))
        (80, ['checker', 'disc', 'square', 'stripes'])
        >>> features.to_numpy("embedding").shape
        (80, 512)

    Args:
        output: OUT.
        whole: Refuse an OUT that is complete by its manifest and has lost parts since.

    Raises:
        FeaturemillError: No features there, a part whose fingerprint is not the manifest's, or a part is missing.
    """
    output = output if isinstance(output, Output) else Output(os.fspath(output))
    manifest = output.manifest
    output.keep_parts()
    parts = [output.path("features", name) for name in output.listing.names]
    rows = 0

    def reports() -> Iterator[UnitReport]:
        nonlocal rows
        for part, footer in zip(parts, read_footers(parts), strict=True):
            if footer.fingerprint != manifest.fingerprint:
                raise FeaturemillError(
                    f"{part} has fingerprint {footer.fingerprint[:12]}, but {output} has "
                    f"{manifest.fingerprint[:12]}; it was written with other settings: move it elsewhere"
                )
            rows += footer.rows_embedded
            yield from footer.reports

    found = parts_sha256(reports())
    complete = manifest.is_complete
    is_missing = complete and rows != manifest.totals.rows_embedded
    # An OUT of an earlier version has no such hash.
    if complete and whole and (is_missing or (manifest.parts_sha256 or found) != found):
        # An extract that began since is no loss.
        complete = read_manifest(output.folder) == manifest
        if complete and is_missing:
            raise FeaturemillError(
                f"{output} holds {rows:,} rows, but its manifest says {manifest.totals.rows_embedded:,}: "
                "a part is missing; run the same extract command again, or see featuremill inspect"
            )
        if complete:
            raise FeaturemillError(
                f"{output} has other parts than it was finished with: one was replaced or lost; featuremill inspect "
                "names it: delete it and run the same extract command again"
            )
    added = tuple(manifest.added_columns)
    return Features(
        output.folder, manifest.spec, manifest.fingerprint, complete, tuple(parts), rows, added, output.reading
    )


def choose_feature(features: Features, name: str | None) -> str:
    """Returns the feature of that name; without one `embedding`, or the first.

    Raises:
        FeaturemillError: There is no such feature.
    """
    if name is None:
        return "embedding" if "embedding" in features.names else features.names[0]
    if name not in features.names:
        raise FeaturemillError(f"{features.output} has no feature {name!r}{did_you_mean(name, features.names)}")
    return name

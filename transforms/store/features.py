"""Opens the stored features of an OUT, checked by their fingerprint. No Beam and no Keras here."""

import os
import shlex
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from transforms.errors import FeaturemillError
from transforms.locks import Reading
from transforms.parquet.beside import batches_beside
from transforms.parquet.files import open_sealed
from transforms.records import UnitReport
from transforms.spec import ROW_COLUMNS, FeatureSpec, source_of
from transforms.store.listing import read_footers
from transforms.store.manifest import read_manifest
from transforms.store.output import Output
from transforms.store.reports import parts_sha256
from transforms.store.schema import matrix_of, vector_bytes
from transforms.text import counted, did_you_mean

# What a batch of rows may hold of features, unless the caller says how many rows.
BATCH_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Features:
    """The stored features of one OUT, read part by part in the order of their names.

    Attributes:
        opened: The OUT that they are of.
        spec: What decided the numbers.
        fingerprint: Of the spec; every part was checked to carry it.
        complete: False while a run is unfinished: then these are the rows committed so far.
        parts: URIs of the parts; a merged one has the rows of several units, sorted by key.
        rows: N, over all parts.
        added_columns: {column: name of its type} of those between `spec.ROW_COLUMNS` and the features.
        reading: Keeps a compaction from removing the parts meanwhile.
        added: Added features, which have the same rows, part by part; read as if they were columns of the parts.
        lacking: {added feature that can't be read: why, and which command finishes it}.
    """

    opened: Output = field(compare=False)
    spec: FeatureSpec
    fingerprint: str
    complete: bool
    parts: tuple[str, ...]
    rows: int
    added_columns: Mapping[str, str] = field(default_factory=dict)
    reading: Reading | None = field(default=None, repr=False, compare=False)
    added: "tuple[Features, ...]" = ()
    lacking: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        rows = f"{counted(self.rows, 'row')}{'' if self.complete else ' so far'}"
        return f"{rows} in {self.output}: {', '.join(map(str, self.spec.features))} of {self.spec.backbone}"

    @property
    def output(self) -> str:
        """The folder."""
        return self.opened.folder

    @property
    def weights(self) -> str:
        """Source from which the network's weights are loaded again: `imagenet`, a file, or `random:SEED`."""
        return source_of(self.opened.manifest.weights)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the features."""
        own = tuple(feature.name for feature in self.spec.features)
        return own + tuple(name for side in self.added for name in side.names)

    @property
    def row_columns(self) -> tuple[str, ...]:
        """The columns before the features."""
        return (*ROW_COLUMNS, *self.added_columns)

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
            if name in self.lacking:
                raise FeaturemillError(self.lacking[name])
            if name not in valid:
                raise FeaturemillError(f"{self.output} has no column {name!r}{did_you_mean(name, valid)}")
        columns = valid if columns is None and self.added else columns
        for number, part in enumerate(self.parts):
            with open_sealed(part, cure="delete it and run extract again") as parquet:
                schema = self.schema if self.added else parquet.schema_arrow
                fits = BATCH_BYTES // max(1, vector_bytes(schema, columns or valid))
                size = rows or min(65_536, max(1, fits))
                yield from batches_beside(parquet, self.beside(number), columns, size=size)

    @cached_property
    def schema(self) -> pa.Schema:
        """Schema of all columns, the added features' behind the parts' own; there must be a part."""
        with open_sealed(self.parts[0], cure="delete it and run extract again") as parquet:
            schema = parquet.schema_arrow.remove_metadata()
        for side in self.added:
            schema = pa.schema([*schema, *(side.schema.field(name) for name in side.names)])
        return schema

    def beside(self, number: int) -> dict[str, str]:
        """Returns {column: its file} of the added features of a part, by the part's number."""
        return {name: side.parts[number] for side in self.added for name in side.names}

    def to_numpy(self, feature: str = "embedding") -> np.ndarray:
        """Returns X, N×D, in the stored dtype. Takes N × D numbers of memory; `batches` doesn't."""
        matrix, row = None, 0
        for batch in self.batches([choose_feature(self, feature)]):
            values = matrix_of(batch.column(0))
            if matrix is None:
                matrix = np.empty((self.rows, values.shape[1]), values.dtype)
            matrix[row : row + len(values)] = values
            row += len(values)
        return np.empty((0, 0), self.spec.dtype) if matrix is None else matrix


def add_command(output: Output, spec: FeatureSpec, base: str) -> str:
    """Returns the command that adds the one feature of a spec to an OUT of a base."""
    [feature] = spec.features
    of = "" if spec.backbone == base else f"{spec.backbone}:"
    asked = f"--add-feature {feature.name}={of}{feature.tap}:{feature.pool}"
    return f"featuremill extract INPUT --output {shlex.quote(output.folder)} {asked}"


def open_features(output: str | os.PathLike[str] | Output, *, whole: bool = True) -> Features:
    """Opens the features in a folder that `featuremill extract` wrote.

    Example:
        >>> features = featuremill.open_features("features")
        >>> features.rows, sorted(set(features.labels))
        (80, ['checker', 'disc', 'square', 'stripes'])
        >>> features.to_numpy("embedding").shape
        (80, 512)

    Args:
        whole: Refuse an OUT that is complete by its manifest and has lost parts since.

    Raises:
        FeaturemillError: No features there, a part whose fingerprint is not the manifest's, or a part is missing.
    """
    output = output if isinstance(output, Output) else Output(os.fspath(output))
    manifest = output.manifest
    output.keep_parts()
    parts = [output.path("features", name) for name in output.listing.names]
    complete, rows = manifest.is_complete, 0

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

    # An unfinished OUT has no such hash to compare with, nor has one of an earlier version.
    stated = manifest.parts_sha256 if complete and whole else ""
    found, counted_reports = "", reports()
    if stated:
        found = parts_sha256(counted_reports)
    else:
        deque(counted_reports, maxlen=0)
    is_missing = complete and rows != manifest.totals.rows_embedded
    if complete and whole and (is_missing or found != stated):
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
    between, reading = manifest.between, output.reading
    features = Features(output, manifest.spec, manifest.fingerprint, complete, tuple(parts), rows, between, reading)
    return _with_added(features, output) if manifest.added_features else features


def _with_added(features: Features, output: Output) -> Features:
    found, lacking = [], {}
    for name in output.manifest.added_features:
        try:
            side = open_features(output.added_feature(name))
        except FeaturemillError as error:
            lacking[name] = (
                f"the added feature {name} can't be read: {error}; or add it again, or remove it with featuremill "
                f"drop-feature {shlex.quote(output.folder)} {name}"
            )
            continue
        names = [[part.rsplit("/", 1)[-1] for part in each.parts] for each in (features, side)]
        if side.complete and side.rows == features.rows and names[0] == names[1]:
            found.append(side)
            continue
        there = side.opened
        cure = add_command(output, side.spec, features.spec.backbone)
        why = f"the added feature {name} has {side.rows:,} of the {features.rows:,} rows of {output}; finish it with "
        if side.complete and side.rows == features.rows:
            why = f"the added feature {name} lacks units of {output} that have no rows; finish it with "
            if there.listing.unit_ids() == output.listing.unit_ids():
                why = f"the added feature {name} has other parts than {output}; put that right with "
                cure = f"featuremill compact {shlex.quote(output.folder)}"
        elif failed := sum(report.rows_failed for report in there.reports):
            cure += f" --retry-failed ({counted(failed, 'image')} failed: featuremill inspect {side.output} says why)"
        lacking[name] = why + cure
    return replace(features, added=tuple(found), lacking=lacking)


def choose_feature(features: Features, name: str | None) -> str:
    """Returns the feature of that name; without one `embedding`, or the first.

    Raises:
        FeaturemillError: There is no such feature.
    """
    if name is None:
        return "embedding" if "embedding" in features.names else features.names[0]
    if name in features.lacking:
        raise FeaturemillError(features.lacking[name])
    if name not in features.names:
        raise FeaturemillError(f"{features.output} has no feature {name!r}{did_you_mean(name, features.names)}")
    return name

"""`open_table`: keys, labels and vectors of an OUT, or of any Parquet with a vector column, behind one face."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as types

from transforms import storage
from transforms.errors import FeaturemillError, UsageError
from transforms.isolated import Crashed
from transforms.machine import ahead
from transforms.parquet.files import count_values, open_parquet
from transforms.rows.vectors import StoredPart, StoredVectors
from transforms.spec import FeatureSpec
from transforms.store.features import Features, open_features
from transforms.store.manifest import other_kind
from transforms.store.output import Output
from transforms.store.predictions import output_behind
from transforms.text import did_you_mean, one_line

DEFAULT_COLUMN = "embedding"
DEFAULT_KEY, DEFAULT_LABEL = "key", "label"


@dataclass(frozen=True)
class Table:
    """N rows with keys, labels and vectors. What is text stays in Arrow: a million Python strings take 100 MB.

    Attributes:
        location: The OUT, file, folder or pattern, absolute.
        columns: The vector columns, concatenated in this order.
        dims: Numbers of each of them.
        spec: What decided the numbers; None for plain Parquet, and for columns of several specs.
        fingerprint: Of the spec, or None.
        weights: Where the backbone's weights came from, as the OUT's user named them; empty if unknown.
        weights_are_random: Whether they were.
        keys: N strings.
        labels: N strings, null where unknown or empty.
        groups: N strings, or None if no group column was named.
        sides: N strings of the split column, or None if none was named.
        sha256: N content hashes (binary), or None where there are none.
        vectors: N×D, on disk.
        sides_from: The file that the sides were joined from; empty if they are the features' own.
        fingerprints: One for each column, where they are of several specs; `spec` is None then.
        kept: {column: name of its type} of those that came along with the images.
        output: The OUT, opened; None for plain Parquet, which `extract` didn't write.
    """

    location: str
    columns: tuple[str, ...]
    dims: tuple[int, ...]
    spec: FeatureSpec | None
    fingerprint: str | None
    weights: str
    weights_are_random: bool
    keys: pa.ChunkedArray
    labels: pa.ChunkedArray
    groups: pa.ChunkedArray | None
    sides: pa.ChunkedArray | None
    sha256: pa.ChunkedArray | None
    vectors: StoredVectors
    sides_from: str = ""
    fingerprints: tuple[str, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
    output: Output | None = None

    @property
    def is_output(self) -> bool:
        """True if `extract` wrote it."""
        return self.output is not None


def open_stored(location: str) -> Features | str:
    """Opens the OUT that a location is, or that a PRED was made from; other Parquet is returned by its absolute name.

    Raises:
        FeaturemillError: OUT can't be read.
    """
    output = output_behind(location)
    return open_features(output) if output.has_manifest else output.folder


def open_table(
    location: str | Features,
    *,
    columns: Sequence[str] = (),
    label_column: str = DEFAULT_LABEL,
    key_column: str = DEFAULT_KEY,
    labels_file: str | None = None,
    group_column: str | None = None,
    split_column: str | None = None,
    optional: Collection[str] = (),
) -> Table:
    """Opens features: reads all but the vectors, and checks what can be checked without them.

    Args:
        location: OUT of `featuremill extract`, or PRED, whose features are meant; or a Parquet file, a folder of them,
            or a pattern; or OUT's features, opened already.
        columns: Vector columns; by default `embedding`, or the only one there is.
        label_column: Labels, as text or whole numbers; where there is no column `label`, no label is known; empty
            ones aren't either.
        key_column: Keys; where there is no column `key`, rows are called `FILE#ROW`.
        labels_file: What labels will be joined from, if anything: `key_column` is then what that calls it, and `key` is
            taken where the features have none of that name.
        group_column: Rows of one group stay together in a split. None too where it is `labels_file` that has it.
        split_column: Says which side a row is on. None too where it is `labels_file` that has it.
        optional: Columns for groups and sides that may be missing.

    Raises:
        FeaturemillError: Nothing there, an unfinished OUT, a column that isn't there or holds something else, vectors
            of different lengths.
        UsageError: A vector column is named twice.
    """
    opened = open_stored(location) if isinstance(location, str) else location
    features = opened if isinstance(opened, Features) else None
    if features and not features.complete:
        raise FeaturemillError(f"{features.output} is not finished; finish it with the same extract command")
    location = features.output if features else opened
    infos = _read_infos(features.parts if features else _files(location))
    columns = _choose(location, infos[0].schema, columns, features)
    beside = {name: side for side in (features.added if features else ()) for name in side.names if name in columns}
    side_infos = {name: _read_infos(side.parts) for name, side in beside.items()}
    # The parts' own come first, whatever the order that they were asked for in.
    columns = tuple(sorted(columns, key=lambda name: name in beside))
    dims = tuple(_width(side_infos.get(name, infos), name) for name in columns)
    there = {name for info in infos for name in info.schema.names}
    if labels_file and key_column not in there:
        key_column = DEFAULT_KEY
    # These two may be missing, as long as nobody asked for others.
    texts = {
        role: name for role, name in (("key", key_column), ("label", label_column)) if name != role or name in there
    }
    for role, name in (("group", group_column), ("split", split_column)):
        if name and (name in there or name not in optional):
            _check_there(name, there, infos[0].schema, location, labels_file)
            texts[role] = name
    found = _read_columns(infos, texts)
    spec, fingerprints = _specs(features, columns, beside)
    made = [features] if features and len(beside) < len(columns) else []
    made = [each.opened.manifest for each in (*made, *beside.values())]
    parts = tuple(
        StoredPart(info.uri, info.group_rows, tuple((name, side.parts[number]) for name, side in beside.items()))
        for number, info in enumerate(infos)
    )
    vectors = StoredVectors(parts, columns, dims, texts.get("key"), reading=features.reading if features else None)
    return Table(
        location=location,
        columns=columns,
        dims=dims,
        spec=spec,
        fingerprint=spec.fingerprint if spec else None,
        weights=", ".join(dict.fromkeys(each.weights for each in made)),
        weights_are_random=any(each.weights_are_random for each in made),
        keys=found["key"],
        labels=known(found["label"]),
        groups=found.get("group"),
        sides=found.get("split"),
        sha256=found.get("sha256"),
        vectors=vectors,
        fingerprints=fingerprints,
        kept=features.opened.manifest.kept if features else {},
        output=features.opened if features else None,
    )


def _files(location: str) -> list[str]:
    """Returns the files of plain Parquet."""
    if storage.stat(location):
        return [location]
    is_folder = storage.is_folder(location)
    infos = storage.list_infos(location) if is_folder else storage.match(location)
    parts = sorted(info.uri for info in infos if info.uri.endswith(".parquet") or not is_folder)
    if not parts:
        raise FeaturemillError(
            f"{location} has no features: no OUT of featuremill extract, no Parquet file, nor a folder or pattern of "
            f"some{other_kind(location)}; check the path"
        )
    return parts


@dataclass(frozen=True)
class _FileInfo:
    """The facts in a Parquet file's footer."""

    uri: str
    schema: pa.Schema
    metadata: pq.FileMetaData

    @property
    def group_rows(self) -> tuple[int, ...]:
        return tuple(self.metadata.row_group(i).num_rows for i in range(self.metadata.num_row_groups))


def _read_infos(parts: Sequence[str]) -> list[_FileInfo]:
    infos = list(ahead(_read_info, parts))
    if not sum(info.metadata.num_rows for info in infos):
        raise FeaturemillError(f"{parts[0] if parts else 'the OUT'} holds no rows; extract images that can be read")
    return infos


def _read_info(uri: str) -> _FileInfo:
    cure = "name features, or write it again"
    with open_parquet(uri, problem="is not a readable Parquet file", cure=cure) as parquet:
        names = parquet.schema_arrow.names
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise FeaturemillError(f"{uri} has several columns {repeated[0]!r}; rename all but one")
        return _FileInfo(uri, parquet.schema_arrow, parquet.metadata)


def _is_vector(kind: pa.DataType) -> bool:
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and types.is_floating(kind.value_type)


def _choose(location: str, schema: pa.Schema, columns: Sequence[str], features: Features | None) -> tuple[str, ...]:
    """Returns the vector columns: those asked for, or `embedding`, or the only one."""
    valid = [field.name for field in schema if _is_vector(field.type)]
    if not valid:
        raise FeaturemillError(
            f"{location} has no column of vectors (lists of floats), only {', '.join(schema.names)}; "
            "name other features"
        )
    there = [*valid, *(name for side in (features.added if features else ()) for name in side.names)]
    for name in columns:
        if features and name in features.lacking:
            raise FeaturemillError(features.lacking[name])
        if name not in there:
            cause = f"column {name!r} holds {schema.field(name).type}, no vectors" if name in schema.names else ""
            raise FeaturemillError(f"{location}: {cause or f'no column {name!r}'}{did_you_mean(name, there)}")
    if len(set(columns)) < len(columns):
        raise UsageError(f"a feature is named twice: {', '.join(columns)}; name each once")
    if columns:
        return tuple(columns)
    if DEFAULT_COLUMN not in valid and len(valid) > 1:
        raise FeaturemillError(f"{location} has several columns of vectors: {', '.join(valid)}; say which by --feature")
    return (DEFAULT_COLUMN if DEFAULT_COLUMN in valid else valid[0],)


def _check_there(name: str, there: Collection[str], first: pa.Schema, location: str, labels_file: str | None) -> None:
    if name in there:
        return
    if labels_file:
        raise FeaturemillError(
            f"neither {labels_file} nor {location} has a column {name!r}; check its name, or add it to the file"
        )
    raise FeaturemillError(
        f"{location} has no column {name!r}; name one of {', '.join(first.names)}, or give it by key in a file: "
        "--labels FILE"
    )


def _specs(
    features: Features | None, columns: Sequence[str], beside: Mapping[str, Features]
) -> tuple[FeatureSpec | None, tuple[str, ...]]:
    """Returns the spec that decided all columns, None if there is no such, and then the fingerprint of each, if known.

    Args:
        features: None for plain Parquet.
        columns: The vector columns.
        beside: Those of them that were added later, each with its own features.
    """
    if not features or not beside:
        return (features.spec if features else None), ()
    if len(columns) == 1:
        return beside[columns[0]].spec, ()
    of = {feature.name: (features.spec, feature) for feature in features.spec.features}
    of |= {name: (side.spec, side.spec.features[0]) for name, side in beside.items()}
    return None, tuple(replace(of[name][0], features=(of[name][1],)).fingerprint for name in columns)


def _width(infos: Sequence[_FileInfo], name: str) -> int:
    """Returns how many numbers the vectors of a column have, by the counts in the footers."""
    width = None
    for info in infos:
        if name not in info.schema.names or not _is_vector(info.schema.field(name).type):
            raise FeaturemillError(f"{info.uri} has no vectors in column {name!r}, as {infos[0].uri} has; leave it out")
        # Not by its path: a name may hold dots.
        leaf = sum(_leaves(field.type) for field in list(info.schema)[: info.schema.names.index(name)])
        for rows, values in zip(info.group_rows, _values(info, leaf), strict=True):
            if not rows:
                continue
            width = width or values // rows
            # A missing or empty list counts as one value.
            if values != width * rows:
                raise FeaturemillError(
                    f"{info.uri}: column {name!r} holds vectors of different lengths, or rows without one ({values:,} "
                    f"numbers in {rows:,} rows, where {width:,} to a row are expected); leave these rows out"
                )
    return width


def _values(info: _FileInfo, leaf: int) -> list[int]:
    """Returns how many values each row group has in one of Parquet's own columns.

    The footers of other people's files are looked at apart. Those of our parts are too many for that.
    """
    try:
        is_ours = b"featuremill.fingerprint" in (info.metadata.metadata or {})
        return count_values(info.metadata, leaf, apart=not is_ours)
    except Crashed as error:
        raise FeaturemillError(f"{info.uri} has a damaged footer: {error}; write it again") from error


def _leaves(kind: pa.DataType) -> int:
    """Returns how many of Parquet's columns a column takes; one of vectors takes one."""
    kind = getattr(kind, "storage_type", kind)
    return sum(_leaves(kind.field(i).type) for i in range(kind.num_fields)) if kind.num_fields else 1


def _read_columns(infos: Sequence[_FileInfo], texts: dict[str, str]) -> dict[str, "pa.ChunkedArray"]:
    """Returns {role: N values}: the text columns named, `key` and `label` in any case, `sha256` where files have it."""
    has_hash = any("sha256" in info.schema.names and _is_hash(info.schema.field("sha256").type) for info in infos)
    chunks: dict[str, list[pa.Array]] = {}
    for info in infos:
        table = _read_file(info, [*dict.fromkeys(texts.values()), *(["sha256"] if has_hash else [])])
        for role, name in texts.items():
            chunks.setdefault(role, []).extend(as_text(table.column(name), name, info.uri).chunks)
        if has_hash:
            chunks.setdefault("sha256", []).extend(table.column("sha256").cast(pa.binary()).chunks)
        if "key" not in texts:
            chunks.setdefault("key", []).append(_row_names(info))
        if "label" not in texts:
            chunks.setdefault("label", []).append(pa.nulls(info.metadata.num_rows, pa.string()))
    found = {role: pa.chunked_array(arrays) for role, arrays in chunks.items()}
    if found["key"].null_count:
        raise FeaturemillError(
            f"{infos[0].uri}: column {texts['key']!r} is empty in {found['key'].null_count:,} of "
            f"{len(found['key']):,} rows; fill them in"
        )
    return found


def _read_file(info: _FileInfo, names: Sequence[str]) -> pa.Table:
    for name in names:
        if name not in info.schema.names:
            raise FeaturemillError(f"{info.uri} has no column {name!r}{did_you_mean(name, info.schema.names)}")
    with open_parquet(info.uri) as parquet:
        return parquet.read(list(names))


def _is_hash(kind: pa.DataType) -> bool:
    is_binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return is_binary or types.is_string(kind) or types.is_large_string(kind)


def _row_names(info: _FileInfo) -> pa.Array:
    numbers = pa.array(range(info.metadata.num_rows), pa.int64()).cast(pa.string())
    return pc.binary_join_element_wise(pa.scalar(info.uri), numbers, "#")


def known(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns labels with null for empty ones: a class needs a name."""
    return pc.if_else(pc.equal(labels, ""), pa.scalar(None, pa.string()), labels)


def as_text(column: pa.ChunkedArray, name: str, uri: str) -> pa.ChunkedArray:
    """Returns a column of text, categories or whole numbers as strings.

    Raises:
        FeaturemillError: It holds something else.
    """
    try:
        if types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if types.is_floating(column.type):
            # What pandas makes of whole numbers when some are missing; fractions don't pass.
            column = column.cast(pa.int64())
        column = column.cast(pa.string())
        # Parquet promises UTF-8, but nobody checks; Python would stumble over it later.
        column.validate(full=True)
        return column
    except pa.ArrowException as error:
        raise FeaturemillError(
            f"{uri}: column {name!r} holds {column.type}, no text or whole numbers ({one_line(error)}); "
            "name another column"
        ) from error

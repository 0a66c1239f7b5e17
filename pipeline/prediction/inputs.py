"""The inputs of `predict`: the head; images, which its own spec extracts, or features; and whether they changed."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types

from pipeline.extraction.options import ExtractOptions, ImageOptions
from pipeline.prediction.options import PredictOptions
from pipeline.training.facts import joined_text
from transforms import shards, storage
from transforms.declared import shared
from transforms.errors import FeaturemillError, UsageError
from transforms.evaluation.abstaining import threshold_of
from transforms.network.bases import base_of, cut, layers
from transforms.parquet.files import open_parquet
from transforms.predictors import imagenet
from transforms.predictors.head import Head
from transforms.predictors.predictions import Predictor
from transforms.predictors.weights import weights_source
from transforms.records import FileInfo
from transforms.rows.labels import join_labels, read_labels
from transforms.rows.table import DEFAULT_KEY, DEFAULT_LABEL, Table, open_table
from transforms.shards.fields import Fields
from transforms.shards.parquet import IMAGE_COLUMNS
from transforms.spec import FeatureSpec, SpecOptions
from transforms.storage import readable
from transforms.store.manifest import is_extracted
from transforms.store.predictions import Predictions
from transforms.text import clean

_GLOB = re.compile(r"[*?\[]")


def are_features(options: PredictOptions) -> bool:
    """Tells features from images: OUT of extract, or Parquet that has vectors and no images.

    Raises:
        UsageError: Some of both, or features for ImageNet's head.
    """
    if options.feature_columns:
        found = [True] * len(options.inputs)
    elif options.fields.image or options.fields.path:
        found = [False] * len(options.inputs)
    else:
        found = [_holds_vectors(given) for given in options.inputs]
    if any(found) and not all(found):
        which, other = options.inputs[found.index(True)], options.inputs[found.index(False)]
        raise UsageError(f"{which} holds features and {other} images; predict them one after the other")
    if any(found) and options.is_imagenet:
        raise UsageError(f"imagenet takes images, and {options.inputs[0]} holds features; name the images themselves")
    return any(found)


def _holds_vectors(given: str) -> bool:
    location = storage.absolute(given)
    if given.startswith("@") or is_extracted(location):
        return not given.startswith("@")
    if not _GLOB.search(location) and storage.is_folder(location):
        # Names only: in a folder of a million photos, looking at each would take a while.
        names = sorted(name for name in storage.list_folder(location) if name.endswith(".parquet"))
        return bool(names) and _has_vectors(storage.join(location, names[0]))
    first = next((info.uri for info in feature_files(location)), None)
    return first is not None and _has_vectors(first)


def _has_vectors(uri: str) -> bool:
    """Returns whether it is Parquet with vectors; False too if it can't be read: who reads it then says why."""
    try:
        with open_parquet(uri) as parquet:
            schema = parquet.schema_arrow
            names = schema.names
    except FeaturemillError:
        return False
    for name, kind in zip(names, schema.types, strict=True):
        if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return False
        if name in IMAGE_COLUMNS and (types.is_binary(kind) or types.is_large_binary(kind)):
            return False
    lists = types.is_list, types.is_large_list, types.is_fixed_size_list
    return any(types.is_floating(kind.value_type) for kind in schema.types if any(is_a(kind) for is_a in lists))


def feature_files(location: str) -> list[FileInfo]:
    """Returns the Parquet files of an OUT, a folder, a glob or a single file; none if there are none."""
    info = storage.stat(location)
    if info:
        return [info]
    if _GLOB.search(location):
        return storage.match(location)
    infos = storage.list_infos(storage.join(location, "features") if is_extracted(location) else location)
    return sorted((info for info in infos if info.uri.endswith(".parquet")), key=lambda info: info.uri)


def inputs_sha256(options: PredictOptions, features: bool) -> str:
    """Returns the SHA-256 (hex) over names, sizes and times of all that is read, to tell when some of it changed.

    Raises:
        FeaturemillError: As `shards.find` does.
    """
    lines = []
    if features:
        for given in options.inputs:
            # Without the manifest: it is stamped anew by a run that changed nothing.
            lines += map(_line, feature_files(storage.absolute(given)))
    else:
        found = shards.find(options.inputs, options.fields, output=options.output)
        lines += [f"{_line(shard.file)}\0{replace(shard, file=None)}" for shard in found.shards]
        lines += [f"{_line(listed.file)}\0{listed.label}" for listed in found.files]
    labels = storage.stat(storage.absolute(options.labels)) if options.labels else None
    lines += [_line(labels)] if labels else []
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _line(info: FileInfo) -> str:
    return f"{info.uri}\0{info.size}\0{info.version}"


def head_predictor(head: "Head", options: PredictOptions) -> Predictor:
    """Returns a trained head as what gives labels to vectors.

    Raises:
        FeaturemillError: A share of its validation rows is to stay without an answer, and it doesn't know them.
    """
    folder, threshold = options.head, head.threshold
    if options.threshold is not None:
        threshold = options.threshold
    elif options.abstain is not None:
        if not head.confidences:
            raise FeaturemillError(
                f"{folder} doesn't say how sure it was of its validation rows, by which --abstain chooses: train it "
                "again, or pass --threshold P"
            )
        threshold = threshold_of(head.confidences, options.abstain)
    # Its JSON holds the hash of its arrays, so this one covers both.
    sha256 = hashlib.sha256(storage.read_bytes(storage.join(folder, "head.json"))).hexdigest()
    return Predictor(
        name=folder,
        sha256=sha256,
        labels=head.classes,
        columns=head.columns,
        spec=head.spec,
        probabilities=head.probabilities,
        threshold=threshold,
        far=head.far,
    )


def imagenet_options(options: PredictOptions, output: Predictions) -> ExtractOptions:
    """Returns how images become ImageNet's probabilities."""
    return _extract_options(
        options,
        output,
        backbone=options.backbone or "vgg19",
        weights=options.weights or "imagenet",
        include_top=True,
        features=(str(imagenet.FEATURE),),
    )


def head_options(options: PredictOptions, head: "Head", output: Predictions) -> ExtractOptions:
    """Returns how images become the features that a head was trained on.

    Raises:
        FeaturemillError: The head doesn't know what made its features, or which weights.
    """
    if head.spec is None:
        raise FeaturemillError(
            f"{options.head} was trained on {head.origin}, so it can't take images; "
            "pass features made in the same way, or train it on the output of featuremill extract"
        )
    spec = head.spec
    features = _features(spec, head.columns)
    return _extract_options(
        options,
        output,
        weights=weights_source(head, options.head, options.weights),
        # Only the taps that the features name are computed.
        include_top=base_of(spec.backbone).has_top,
        features=tuple(map(str, features)),
        backbone=spec.backbone,
        normalise=spec.normalise,
        **shared(spec, SpecOptions),
    )


def _extract_options(options: PredictOptions, output: Predictions, **settings) -> ExtractOptions:
    # PRED is what the inputs hold now: what changed or vanished since an unfinished run goes.
    return ExtractOptions(output=output.features_folder, prune=True, **settings, **shared(options, ImageOptions))


def _features(spec: FeatureSpec, columns: Sequence[str]) -> tuple:
    """Returns the head's features, or all of the spec's where the weights' hash reaches further than the head."""
    wanted = tuple(feature for feature in spec.features if feature.name in columns)
    if base_of(spec.backbone).is_file:
        return wanted
    table = layers(spec.backbone, include_top=base_of(spec.backbone).has_top)
    deepest = [cut(table, [feature.tap for feature in features]) for features in (wanted, spec.features)]
    return wanted if deepest[0] == deepest[1] else spec.features


def without_groups(head: str, column: str) -> str:
    """Returns the note that intervals don't know a head's groups."""
    return f"{readable(head)} was trained by group {column!r}, which these rows don't have: each row counts by itself"


def open_tables(
    options: PredictOptions, predictor: Predictor, locations: Sequence[str], *, ours: bool, own_groups: str | None
) -> "tuple[list[Table], tuple[str, ...]]":
    """Opens features, with true labels from a file where one is named; also returns notes about that file and groups.

    Args:
        options: Names columns and the file.
        predictor: Says which columns it takes.
        locations: Of the features.
        own_groups: The head's own column of groups, which they may lack; it is used where none is named.
        ours: They were extracted by this command, so that the columns asked for aren't theirs but the file's.

    Raises:
        FeaturemillError: As `open_table` and `join_labels` do.
    """
    own = {} if ours else {"key_column": options.key_column or DEFAULT_KEY, "labels_file": options.labels}
    if not ours and not options.labels:
        own["label_column"] = options.label_column or DEFAULT_LABEL
    columns, file = options.feature_columns or predictor.columns, None
    groups = {"group_column": options.group_column or own_groups}
    own["optional"] = (own_groups,) if own_groups else ()
    if options.labels and locations:
        names = {"key_column": options.key_column, "label_column": options.label_column}
        file = read_labels(options.labels, **names, **groups)
        own |= {"labels_file": options.labels, "optional": (*file.columns.values(), *own["optional"])}
    tables = [open_table(location, columns=columns, **own, **groups) for location in locations]
    tables = [replace(table, vectors=replace(table.vectors, zeros_pass=True)) for table in tables]
    # Who says where labels come from means it.
    if ours and options.fields.label_from == Fields().label_from:
        tables = [_without_folder_labels(table, options.inputs) for table in tables]
    notes = []
    if file is not None:
        tables, joined = join_labels(tables, file, mode=options.labels_mode)
        notes.append(f"true labels {joined_text(joined)}")
    if own_groups and any(table.groups is None for table in tables):
        notes.append(without_groups(predictor.name, own_groups))
    return tables, tuple(notes)


def _without_folder_labels(table: Table, inputs: Sequence[str]) -> Table:
    """Returns the table without labels where single files of one folder were named: its name is no truth about them."""
    named = [clean(storage.absolute(given)) for given in inputs]
    if len({uri.rpartition("/")[0] for uri in named}) > 1:
        return table
    is_named = pc.is_in(table.keys, value_set=pa.array(named, pa.string()))
    return replace(table, labels=pc.if_else(is_named, pa.scalar(None, pa.string()), table.labels))

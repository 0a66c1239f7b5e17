"""The inputs of `finetune`: a head, its network's weights, and rows that are split as the head's were."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.end_to_end.options import FinetuneOptions
from pipeline.training.facts import describe_data, label_origin, never_trained_text
from pipeline.training.fits import Fit, plan_fits
from pipeline.training.options import TrainOptions
from pipeline.training.tables import split_table
from transforms.end_to_end.inputs import GroupReader, TapRows, TuningRows
from transforms.end_to_end.plan import TuningPlan, plan_tuning
from transforms.engines.checks import check_named, computed_layers
from transforms.errors import FeaturemillError
from transforms.evaluation.dealing import DEALING
from transforms.evaluation.split import SIDES, TRAIN, VALIDATION, Split
from transforms.heads import TRANSFORMS, FitSettings, kind_of
from transforms.heads.cells import Rows
from transforms.heads.model import class_weights
from transforms.network.bases import base_of, is_graph, open_file
from transforms.network.vgg import Layer
from transforms.network.weights import Weights, load_weights
from transforms.pools import POOLS
from transforms.predictors import trained_rows
from transforms.predictors.head import Head
from transforms.predictors.weights import check_weights, weights_source
from transforms.rows.labels import encode_as
from transforms.rows.sources import ImageRows
from transforms.rows.table import Table, open_table
from transforms.rows.vectors import StoredVectors
from transforms.spec import Feature, FeatureSpec, SpecOptions
from transforms.store.features import Features
from transforms.text import counted, short

# What has to be the same for a stored tap to be what the head's own network computes. The stored dtype may differ.
_DECISIVE = ("backbone", "normalise", *(own.name for own in fields(SpecOptions) if own.name != "dtype"))
# Rows whose keys are hashed at once.
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class TuningData:
    """The rows, and which of them train, choose and judge.

    Attributes:
        table: Keys and labels.
        rows: The network's input, and the N rows' classes as indices into the head's.
        vectors: What the head takes, as it is stored; None where it isn't.
        settings: Of the head's fit.
        parts: The split.
        fit: The cells that are trained on, chosen by, and judged on.
        cells: N int32, as in `Rows`.
        classes: The head's.
        facts: What the report says of the data, in words.
        split_options: What the split came from, to be recorded.
        origin: Where the labels came from, to be recorded.
        never_trained: Names of the frozen layers whose weights are random.
    """

    table: Table
    rows: TuningRows
    vectors: StoredVectors | None
    settings: FitSettings
    parts: Split
    fit: Fit
    cells: np.ndarray
    classes: tuple[str, ...]
    facts: dict[str, str]
    split_options: dict[str, Any]
    origin: dict[str, Any]
    never_trained: tuple[str, ...]

    @property
    def class_weights(self) -> np.ndarray | None:
        """C float64, what a row of each class counts in the losses that train and choose; None: all as much."""
        if not self.settings.class_weights:
            return None
        return class_weights(np.bincount(self.rows.codes[self.wanted(*self.fit.train)], minlength=len(self.classes)))

    def wanted(self, *cells: int) -> np.ndarray:
        """Returns N booleans: which rows are in these cells."""
        return np.isin(self.cells, cells)

    @property
    def sides(self) -> np.ndarray:
        """N int8, as in `Split`: of folds, those that judge are the test side, and those that choose validation."""
        sides = self.parts.sides.copy()
        for side, cells in enumerate((self.fit.train, self.fit.validation, self.fit.test)):
            sides[self.wanted(*cells)] = side
        return sides

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the rows: keys, hashes of their content where known, classes and split."""
        digest = hashlib.sha256(self.rows.codes.tobytes() + self.cells.tobytes())
        for at in range(0, len(self.table.keys), _ROWS_AT_ONCE):
            digest.update(json.dumps(self.table.keys.slice(at, _ROWS_AT_ONCE).to_pylist()).encode())
            if self.table.sha256 is not None:
                hashes = self.table.sha256.slice(at, _ROWS_AT_ONCE).to_pylist()
                digest.update(b"".join(one or b"-" for one in hashes))
        return digest.hexdigest()


def check_head(head: Head, options: FinetuneOptions) -> None:
    if not kind_of(head.model.kind).is_dense:
        raise FeaturemillError(
            f"{options.head} is a {head.model.kind} head, which has no layers to train; train one of another kind, "
            "such as ridge"
        )
    if head.spec is None:
        raise FeaturemillError(
            f"{options.head} was trained on {head.origin}, so its network isn't known; "
            "train it on the output of featuremill extract"
        )
    check_named(head.spec.backbone, "finetune", files=(".keras",))
    if head.spec.precision != "float32":
        raise FeaturemillError(
            f"{options.head} takes features of precision {head.spec.precision}, too coarse to train convolutions in; "
            "extract with --precision float32 and train on that"
        )


def check_spec(spec: FeatureSpec, features: Features) -> None:
    different = [
        f"{name} {getattr(spec, name)} | {getattr(features.spec, name)}"
        for name in _DECISIVE
        if getattr(spec, name) != getattr(features.spec, name)
    ]
    if different:
        raise FeaturemillError(
            f"the head and {features.output} are of different features (head | features): {'; '.join(different)}; "
            "extract with the head's settings"
        )


def make_plan(head: Head, features: Features, options: FinetuneOptions) -> TuningPlan:
    # A tap of the mirrored image is another one, which no tap of the image gives.
    stored = () if options.source == "images" or options.mirror else features.spec.features
    plan = plan_tuning(_table(head, options), head.spec, head.columns, options.unfreeze, stored)
    if options.source == "taps" and not plan.start:
        cure = f"extract --feature tap={plan.below}:flatten" if plan.below else "pass --unfreeze with fewer layers"
        raise FeaturemillError(
            f"{features.output} stores no flattened layer that all from {plan.trained[0]} on depends on alone"
            f"{_nearest(plan, features)}; {cure}, or start from images"
        )
    return plan


def _table(head: Head, options: FinetuneOptions) -> tuple[Layer, ...]:
    """Returns the base as the head's weights have it: of a file, all of it."""
    spec = head.spec
    if not base_of(spec.backbone).is_file:
        return computed_layers(spec)
    source = weights_source(head, options.head, options.weights)
    return tuple(info.layer for info in open_file(spec.backbone, source).described(spec.image_size))


def _nearest(plan: TuningPlan, features: Features) -> str:
    """Returns which layers would do in the place of the stored tap that is nearest to it; nothing without one."""
    names = [layer.name for layer in plan.taken]
    kept = {feature.tap for feature in features.spec.features if POOLS[feature.pool].keeps_all}
    below = [i for i, name in enumerate(names[: names.index(plan.trained[0])]) if name in kept]
    if not below or not plan.starts:
        return ""
    near = sorted(plan.starts, key=lambda name: abs(names.index(name) - below[-1]))[:2]
    return f" ({names[below[-1]]} won't do, {' or '.join(near)} would)"


def open_weights(head: Head, features: Features, plan: TuningPlan, options: FinetuneOptions) -> Weights:
    """Loads the weights that the head was trained on, and checks that the features are theirs too."""
    source, spec = weights_source(head, options.head, options.weights), head.spec
    weights = load_weights(source, plan.table, backbone=spec.backbone)
    check_weights(weights, head, options.head)
    if features.spec.weights != spec.weights:
        # Features of other layers have another hash, over more or fewer arrays of the same file.
        theirs = load_weights(source, computed_layers(features.spec), backbone=spec.backbone)
        if theirs.sha256 != features.spec.weights:
            raise FeaturemillError(
                f"{features.output} was computed with other weights ({features.spec.weights[:12]}) than those of the "
                f"head, {weights.origin} ({theirs.sha256[:12]} over the same layers); extract it again with these"
            )
    return weights


def open_data(head: Head, features: Features, plan: TuningPlan, options: FinetuneOptions) -> TuningData:
    """Opens the rows and splits them as the head's were.

    Of folds, the first judges and the second chooses: the others train. What trained the network of a head that was
    tuned before never judges it, even if labels were corrected since, by which rows are dealt to sides.
    """
    recorded = head.split.get("options", {})
    tuned = "finetuned" in head.model.settings
    kept = trained_rows.read_rows(options.head) if tuned and recorded.get("dealing") == DEALING else None
    shared = ("labels_mode", "label_column", "key_column", "group_column", "split_column")
    shared += ("validation", "test", "folds")
    stored = all(feature in features.spec.features for feature in _taken(head))
    asked = TrainOptions(
        features=options.features,
        output=options.output,
        columns=head.columns if stored else _other_column(head, features, recorded.get("near")),
        labels=options.labels or recorded.get("labels"),
        # The head has the test rows of that other head itself, wherever that is now.
        test_of=options.head if recorded.get("test_of") else None,
        near_duplicates=recorded.get("near"),
        settings=_settings(head.model.settings, recorded),
        **{name: recorded[name] for name in shared if name in recorded},
    )
    table, joined, parts = split_table(asked, features, kept)
    fits = plan_fits(parts, learning=False)
    codes = _codes(table, fits.cells, head)
    reader = _reader(features, plan, table)
    facts = describe_data(table, joined, parts, Rows(table.vectors, codes, fits.cells, head.classes))
    never_trained = _never_trained(head, plan)
    # What describes the features as they are; here the network is trained.
    facts.pop("warning", None)
    if never_trained:
        facts["warning"] = f"{never_trained_text(never_trained)}: these figures are only a try"
    fit = fits.fits[0]
    facts["start"] = _start_fact(head, fit, fits.cells)
    if kept is not None:
        facts["sides"] = _sides_fact(table, kept, parts)
    elif tuned:
        facts["caution"] = (
            "the head was fine-tuned by an earlier version, which split otherwise or didn't keep which rows trained: "
            "its network may know rows that judge it here; begin again with a head that train made"
        )
    return TuningData(
        table=table,
        rows=TuningRows(reader, table.vectors.parts, codes, plan.row_bytes),
        vectors=table.vectors if stored else None,
        settings=asked.settings,
        parts=parts,
        fit=fit,
        cells=fits.cells,
        classes=head.classes,
        facts={**facts, "training": _training_fact(plan, options, asked.settings)},
        split_options={**recorded, "labels": asked.labels},
        origin=label_origin(table, joined),
        never_trained=never_trained,
    )


def _never_trained(head: Head, plan: TuningPlan) -> tuple[str, ...]:
    """Returns the layers whose weights are random, and stay so."""
    if not head.weights_are_random:
        return ()
    return tuple(name for name in plan.frozen if name in head.never_trained or not head.never_trained)


def _settings(chosen: Mapping[str, Any], recorded: Mapping[str, Any]) -> FitSettings:
    """Returns how the head was fitted; one of an earlier version says only what was chosen."""
    if "settings" in recorded:
        known = {own.name for own in fields(FitSettings)}
        asked = {name: value for name, value in recorded["settings"].items() if name in known}
        return FitSettings(**{**asked, "penalties": tuple(asked["penalties"])})
    kept = {name: chosen[name] for name in ("standardize", "learning_rate", "batch_size") if name in chosen}
    kept |= {"penalties": (chosen["penalty"],)} if "penalty" in chosen else {}
    return FitSettings(seed=recorded.get("seed", 0), transform=TRANSFORMS[0], **kept)


def _sides_fact(table: Table, kept: pa.Table, parts: Split) -> str:
    before = encode_as(trained_rows.sides_of(table, kept), SIDES)
    known = before >= 0
    if not known.any():
        return "drawn anew: the head was tuned on other rows"
    text = "each row is on its side of the head, whatever its label is now"
    moved = int((known & (parts.sides >= 0) & (parts.sides != before)).sum())
    text += f", but for {counted(moved, 'row')} beside others of another side" if moved else ""
    trains, beside = (int((~known & some).sum()) for some in (parts.sides == TRAIN, parts.sides > TRAIN))
    text += f"; {counted(trains, 'row')} that the head didn't have to train" if trains else ""
    text += f"; {counted(beside, 'row')} that it didn't have beside the rows that they belong to" if beside else ""
    if VALIDATION not in before:
        text += "; no row is here that chose for it, so that some of those that trained its network choose"
    return text


def _start_fact(head: Head, fit: Fit, cells: np.ndarray) -> str:
    train, validation, test = (int(np.isin(cells, some).sum()) for some in (fit.train, fit.validation, fit.test))
    text = f"a {head.model.kind} head fitted anew on {counted(train, 'row')}, chosen by {validation:,} others"
    return text + (f", judged on {test:,} that it never sees" if test else ", which judge it too")


def _taken(head: Head) -> list[Feature]:
    return [feature for feature in head.spec.features if feature.name in head.columns]


def _other_column(head: Head, features: Features, near: float | None) -> tuple[str, ...]:
    """Returns a column to open the rows by where the head's aren't stored."""
    if near is not None:
        raise FeaturemillError(
            f"{features.output} has no {', '.join(map(str, _taken(head)))}, by which the head's split kept near copies "
            "together; extract these features too"
        )
    return (features.names[0],)


def _codes(table: Table, cells: np.ndarray, head: Head) -> np.ndarray:
    """Returns N int32, each row's class among the head's, -1 for rows that aren't used."""
    codes = encode_as(table.labels, head.classes)
    unknown = np.flatnonzero((codes < 0) & (cells >= 0))
    if len(unknown):
        first = int(unknown[0])
        raise FeaturemillError(
            f"{counted(len(unknown), 'row')} of {table.location} with a label that the head doesn't know, such as "
            f"{short(table.labels[first].as_py())!r} of {table.keys[first].as_py()!r}; its classes are "
            f"{', '.join(map(short, head.classes[:5]))}{' …' if len(head.classes) > 5 else ''}: "
            "train a head with them first"
        )
    return codes


def _reader(features: Features, plan: TuningPlan, table: Table) -> GroupReader:
    if plan.start:
        return TapRows(open_table(features, columns=(plan.column,)).vectors, plan.input_shape)
    images = ImageRows(features.opened)
    images.check(table.vectors.parts)
    return images


def _training_fact(plan: TuningPlan, options: FinetuneOptions, settings: FitSettings) -> str:
    start = f"from the stored {plan.column} ({plan.table[plan.start - 1].name})" if plan.start else "from images"
    noun = "layer" if is_graph(plan.table) else "convolution"
    layers_text = f"{counted(len(plan.trained), noun)} from {plan.trained[0]} on, and the head"
    again = counted(len(plan.recomputed), f"frozen {noun}")
    again = f"; {again} computed again at each step" if plan.recomputed else ""
    spared = again and plan.below and options.source == "auto" and not options.mirror
    cure = f" (extract --feature tap={plan.below}:flatten spares that)" if spared else ""
    mirrored = ", mirrored by a draw (stored taps aren't used)" if options.mirror else ""
    as_is = "; the base's batch normalisation and dropout stay as at inference" if noun == "layer" else ""
    weighted = "; each class counts as much, as for the head (--class-weights)" if settings.class_weights else ""
    return f"{layers_text}, {start}{mirrored}{again}{cure}{as_is}{weighted}"

"""The inputs of `finetune`: a head, its network's weights, and rows that are split as the head's were."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from pipeline.end_to_end.options import FinetuneOptions
from pipeline.training.facts import describe_data, label_origin, never_trained_text
from pipeline.training.fits import Fit, plan_fits
from pipeline.training.options import TrainOptions
from pipeline.training.run import split_table
from transforms.end_to_end.inputs import GroupReader, TapRows, TuningRows
from transforms.end_to_end.plan import TuningPlan, plan_tuning
from transforms.engines.checks import computed_layers
from transforms.errors import FeaturemillError
from transforms.evaluation.dealing import DEALING
from transforms.evaluation.split import Split
from transforms.heads import FitSettings, kind_of
from transforms.heads.cells import Rows
from transforms.network.weights import Weights, load_weights
from transforms.predictors.head import Head
from transforms.predictors.weights import check_weights, weights_source
from transforms.rows.labels import encode_as
from transforms.rows.sources import ImageRows
from transforms.rows.table import Table, open_table
from transforms.spec import FeatureSpec, SpecOptions
from transforms.store.features import Features
from transforms.text import counted, short

# What has to be the same for a stored tap to be what the head's own network computes. The stored dtype may differ.
_DECISIVE = ("backbone", *(own.name for own in fields(SpecOptions) if own.name != "dtype"))


@dataclass(frozen=True)
class TuningData:
    """The rows, and which of them train, choose and judge.

    Attributes:
        table: Keys and labels; its vectors aren't what is trained on.
        rows: The network's input, and the N rows' classes as indices into the head's.
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
    parts: Split
    fit: Fit
    cells: np.ndarray
    classes: tuple[str, ...]
    facts: dict[str, str]
    split_options: dict[str, Any]
    origin: dict[str, Any]
    never_trained: tuple[str, ...]

    def wanted(self, *cells: int) -> np.ndarray:
        """Returns N booleans: which rows are in these cells."""
        return np.isin(self.cells, cells)


def check_head(head: Head, options: FinetuneOptions) -> None:
    if not kind_of(head.model.kind).is_dense:
        raise FeaturemillError(
            f"{options.head} is a {head.model.kind} head, which has no layers to train; train one of another kind, "
            "such as ridge"
        )
    if head.spec is None:
        raise FeaturemillError(
            f"{options.head} was trained on vectors of unknown origin, so its network isn't known; "
            "train it on the output of featuremill extract"
        )
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
    stored = () if options.source == "images" else features.spec.features
    plan = plan_tuning(computed_layers(head.spec), head.spec, head.columns, options.unfreeze, stored)
    if options.source == "taps" and not plan.start:
        below = plan.table[plan.first - 1].name if plan.first else ""
        cure = f"extract --feature tap={below}:flatten" if below else "pass --unfreeze with fewer layers"
        raise FeaturemillError(
            f"{features.output} stores no flattened layer below the first one to train, {plan.table[plan.first].name}; "
            f"{cure}, or start from images"
        )
    return plan


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
    """Opens the rows and splits them as the head's were."""
    recorded = head.split.get("options", {})
    shared = ("labels_mode", "label_column", "key_column", "group_column", "split_column")
    shared += ("validation", "test", "folds")
    asked = TrainOptions(
        features=options.features,
        output=options.output,
        columns=_split_columns(head, features, recorded.get("near")),
        labels=options.labels or recorded.get("labels"),
        near_duplicates=recorded.get("near"),
        settings=FitSettings(seed=recorded.get("seed", 0)),
        **{name: recorded[name] for name in shared if name in recorded},
    )
    table, joined, parts = split_table(asked)
    fits = plan_fits(parts, learning=False)
    codes = _codes(table, fits.cells, head)
    reader = _reader(features, plan, table)
    facts = describe_data(table, joined, parts, Rows(table.vectors, codes, fits.cells, head.classes))
    never_trained = _never_trained(head, plan)
    # What describes the features as they are; here the network is trained.
    facts.pop("warning", None)
    if never_trained:
        facts["warning"] = f"{never_trained_text(never_trained)}: these figures are only a try"
    if fits.judged_on != "validation" and kind_of(head.model.kind).refits:
        facts["caution"] = "the head had trained on the validation rows too: what it was on them before is too good"
    if recorded and recorded.get("dealing") != DEALING:
        facts["caution"] = (
            "the head is of an earlier version, which split otherwise: it may have trained on rows that judge it here; "
            "train it again"
        )
    return TuningData(
        table=table,
        rows=TuningRows(reader, table.vectors.parts, codes, plan.row_bytes),
        parts=parts,
        fit=fits.final or fits.fits[0],
        cells=fits.cells,
        classes=head.classes,
        facts={**facts, "training": _training_fact(plan, options)},
        split_options={**recorded, "labels": asked.labels},
        origin=label_origin(table, joined),
        never_trained=never_trained,
    )


def _never_trained(head: Head, plan: TuningPlan) -> tuple[str, ...]:
    """Returns the layers whose weights are random, and stay so."""
    if not head.weights_are_random:
        return ()
    return tuple(name for name in plan.frozen if name in head.never_trained or not head.never_trained)


def _split_columns(head: Head, features: Features, near: float | None) -> tuple[str, ...]:
    """Returns the columns that near copies are looked for in: the head's own, where they are stored."""
    ours = [feature for feature in head.spec.features if feature.name in head.columns]
    if all(feature in features.spec.features for feature in ours):
        return head.columns
    if near is not None:
        raise FeaturemillError(
            f"{features.output} has no {', '.join(map(str, ours))}, by which the head's split kept near copies "
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
        return TapRows(open_table(features.output, columns=(plan.column,)).vectors, plan.input_shape)
    images = ImageRows(features.output, features.spec)
    images.check(table.vectors.parts)
    return images


def _training_fact(plan: TuningPlan, options: FinetuneOptions) -> str:
    start = f"from the stored {plan.column} ({plan.table[plan.start - 1].name})" if plan.start else "from images"
    layers_text = f"{counted(len(plan.trained), 'convolution')} from {plan.trained[0]} on, and the head"
    computed = [name for name in plan.frozen if plan.start <= [x.name for x in plan.table].index(name) <= plan.last]
    again = f"; {counted(len(computed), 'frozen convolution')} computed again at each step" if computed else ""
    tap = plan.table[plan.first - 1].name if plan.first else ""
    cure = f" (extract --feature tap={tap}:flatten spares that)" if again and options.source == "auto" else ""
    return f"{layers_text}, {start}{again}{cure}"

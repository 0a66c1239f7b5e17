"""The rows or images that a head is used on, opened and checked, and what decides the predictions of them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from pipeline.extraction.options import ExtractOptions
from pipeline.prediction import inputs as given
from pipeline.prediction.labelling import check_true_labels, kept_together
from pipeline.prediction.options import PredictOptions
from transforms import storage
from transforms.network.weights import Weights
from transforms.predictors import imagenet
from transforms.predictors.head import Head, check_features, load_head
from transforms.predictors.predictions import Predictor
from transforms.predictors.weights import check_weights
from transforms.rows.table import DEFAULT_KEY, DEFAULT_LABEL, Table
from transforms.shards import Fields
from transforms.store.manifest import PredictionSettings
from transforms.store.predictions import Predictions

# Predictions of earlier versions don't say these.
_LATER = {(name, getattr(Fields(), name)) for name in ("label_from", "path", "keep")}


@dataclass(frozen=True)
class Source:
    """The rows or images that are predicted from.

    Attributes:
        predictor: Gives the labels.
        head: The trained head behind it; None for ImageNet's.
        images: How images become features; None where the inputs are features.
        weights: Of the network, without their arrays; None where the inputs are features.
    """

    predictor: Predictor
    head: "Head | None" = None
    images: ExtractOptions | None = None
    weights: Weights | None = None


def open_source(options: PredictOptions, output: Predictions, weights: Weights | None) -> Source:
    """Opens the head, and loads the weights if there are images.

    Raises:
        FeaturemillError: No head there, or weights that it wasn't trained on.
    """
    features = given.are_features(options)
    if options.is_imagenet:
        images = given.imagenet_options(options, output)
        # Before half a gigabyte of weights is fetched.
        classes = imagenet.load_classes()
        weights = replace(weights or images.load_weights(), arrays={})
        predictor = replace(imagenet.predictor(images.spec(weights), classes), threshold=options.threshold or 0.0)
        return Source(predictor, None, images, weights)

    head = load_head(options.head)
    predictor = given.head_predictor(head, options)
    if features:
        return Source(predictor, head)
    images = given.head_options(options, head, output)
    # The arrays are the engine's matter; here they would only take memory.
    weights = replace(weights or images.load_weights(), arrays={})
    check_weights(weights, head, options.head)
    return Source(predictor, head, images, weights)


def settings_of(options: PredictOptions, source: Source) -> PredictionSettings:
    """Returns what decides the predictions: another PRED if any of it differs."""
    paths = [f"@{storage.absolute(name[1:])}" if name[0] == "@" else storage.absolute(name) for name in options.inputs]
    has_groups = options.evaluate and source.head is not None and source.head.group_column is not None
    return PredictionSettings(
        head_sha256=source.predictor.sha256,
        inputs=paths,
        feature_columns=list(options.feature_columns or source.predictor.columns),
        top=min(options.top, len(source.predictor.labels)),
        probabilities=options.probabilities,
        labels=options.labels and storage.absolute(options.labels),
        label_column=options.label_column or DEFAULT_LABEL,
        key_column=options.key_column or DEFAULT_KEY,
        labels_mode=options.labels_mode,
        # None is the head's, which its hash stands for, or none where it has none.
        group_column=options.group_column or ("" if options.group_column == "" and has_groups else None),
        fields={name: value for name, value in asdict(options.fields).items() if (name, value) not in _LATER},
        max_pixels=options.max_pixels,
        threshold=source.predictor.threshold or 0.0,
    )


def _own_groups(options: PredictOptions, source: Source) -> str | None:
    """Returns the head's column of groups where it counts: nothing but intervals knows groups."""
    if source.head is None or not options.evaluate or options.group_column is not None:
        return None
    return source.head.group_column


@dataclass(frozen=True)
class Opened:
    """Features that fit the head, and what is to be known of them."""

    tables: "Sequence[Table]"
    notes: tuple[str, ...]
    kept: dict[str, str]


def open_features(options: PredictOptions, source: Source, locations: Sequence[str]) -> Opened:
    """Opens features and checks that they are the head's, and their true labels if they are to be judged by.

    Raises:
        FeaturemillError: They aren't, or can't be judged by.
    """
    tables, remarks = given.open_tables(
        options, source.predictor, locations, ours=source.images is not None, own_groups=_own_groups(options, source)
    )
    notes = dict.fromkeys(remarks)
    if source.head is not None:
        notes |= dict.fromkeys(filter(None, (check_features(source.head, table) for table in tables)))
    if options.evaluate:
        check_true_labels(tables, source.predictor)
    kept, remarks = kept_together(tables)
    return Opened(tables, (*notes, *remarks), kept)

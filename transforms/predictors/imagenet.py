"""ImageNet's own head: the last dense layer of the published networks, and the names of its 1,000 classes."""

import json

import numpy as np

from transforms.errors import FeaturemillError
from transforms.network import published
from transforms.predictors.predictions import Predictor
from transforms.spec import Feature, FeatureSpec

# What HEAD is called on the command line.
NAME = "imagenet"
CLASSES = 1000
# The layer ends in a softmax: what it yields are probabilities already.
FEATURE = Feature("predictions", "predictions", "flatten")


def load_classes() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns (WordNet ids, names) of the 1,000 classes, from Keras's own file.

    Two names stand for two classes each (crane, maillot), so only the ids tell all classes apart.

    Raises:
        FeaturemillError: The file isn't there and can't be fetched, or isn't the published one; with the offline way.
    """
    path = published.cached_file(published.CLASS_INDEX)
    try:
        with open(path, "rb") as file:
            index = json.load(file)
        pairs = [index[str(number)] for number in range(CLASSES)]
        wnids, names = zip(*((str(wnid), str(name)) for wnid, name in pairs), strict=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FeaturemillError(
            f"{path} doesn't list {CLASSES:,} classes ({type(error).__name__}); delete it to have it fetched again"
        ) from error
    return wnids, names


def predictor(spec: FeatureSpec, classes: tuple[tuple[str, ...], tuple[str, ...]]) -> Predictor:
    """Returns the head of a network.

    Args:
        spec: Of `FEATURE`, with the network's weights.
        classes: From `load_classes`.
    """
    wnids, names = classes
    return Predictor(
        name=NAME,
        sha256=spec.fingerprint,
        labels=names,
        wnids=wnids,
        columns=(FEATURE.name,),
        spec=spec,
        probabilities=lambda vectors: vectors.astype(np.float64),
    )

"""Backbone, pooling and head as one Keras model: photographs in, probabilities out.

Nothing but layers and operations that Keras brings: the saved file loads in any Keras 3 with `safe_mode`, without this
package. The model is two models in a row, `resize` and `classify`, so that images of different sizes can be resized one
by one and classified together.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from transforms.end_to_end.resizing import resize
from transforms.engines.checks import computed_layers
from transforms.heads import keras_logits
from transforms.network.bases import base_of, build, open_file, outputs_of
from transforms.network.keras_import import import_keras
from transforms.network.normalise import preprocess
from transforms.network.vgg import CHANNELS
from transforms.pools import pool_output
from transforms.predictors.head import Head

if TYPE_CHECKING:
    import keras


def assemble(head: Head, arrays: Mapping[str, tuple[np.ndarray, ...]], origin: str = "") -> "keras.Model":
    """Returns the model from N×H×W×3 uint8 RGB images, H and W of any size, to N×C float32 probabilities.

    Args:
        head: With a spec: its network, taps, poolings, precision and dtype are followed, and its way to resize.
        arrays: {layer name: its arrays} of the network, at least up to the head's deepest tap.
        origin: Where a network from a Keras file lies, which brings its own.
    """
    keras = import_keras()
    pixels = keras.Input((None, None, CHANNELS), dtype="uint8", name="images")
    resizer = keras.Model(pixels, resize(pixels, head.spec), name="resize")
    classifier = _classifier(head, arrays, origin)
    images = keras.Input((None, None, CHANNELS), dtype="uint8", name="images")
    return keras.Model(images, classifier(resizer(images)), name="featuremill")


def _classifier(head: Head, arrays: Mapping[str, tuple[np.ndarray, ...]], origin: str) -> "keras.Model":
    """Returns the model from N×S×S×3 float32 in 0 … 255 to the probabilities."""
    keras = import_keras()
    spec = head.spec
    by_name = {feature.name: feature for feature in spec.features}
    features = [by_name[name] for name in head.columns]
    taps = [feature.tap for feature in features]
    if base_of(spec.backbone).is_file:
        network = open_file(spec.backbone, origin).cut(taps)
    else:
        table = computed_layers(replace(spec, features=tuple(features)))
        network = build(table, spec.image_size, dtype=spec.layer_dtype)
    pixels = keras.Input((spec.image_size, spec.image_size, CHANNELS), dtype="float32", name="pixels")
    for layer in network.layers:
        if layer.name in arrays:
            layer.set_weights(arrays[layer.name])
    outputs = outputs_of(network, preprocess(pixels, spec.normalise), taps)
    # Rounded as stored features are.
    pooled = [keras.ops.cast(pool_output(outputs[f.tap], f.pool), spec.dtype) for f in features]
    vectors = [keras.ops.cast(vector, "float32") for vector in pooled]
    joined = keras.ops.concatenate(vectors, axis=1) if len(vectors) > 1 else vectors[0]
    scores = keras_logits(head.model, joined)
    return keras.Model(pixels, keras.ops.softmax(scores / head.temperature, axis=-1), name="classify")

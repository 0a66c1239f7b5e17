"""Backbone, pooling and head as one Keras model: photographs in, probabilities out.

Nothing but layers and operations that Keras brings: the saved file loads in any Keras 3 with `safe_mode`, without this
package. The model is two models in a row, `resize` and `classify`, so that images of different sizes can be resized one
by one and classified together.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms.end_to_end.resizing import resize
from transforms.heads.model import dense_layers
from transforms.network.keras_import import import_keras
from transforms.network.vgg import CHANNELS, build, cut, layers, preprocess
from transforms.pools import pool_output
from transforms.predictors.head import Head

if TYPE_CHECKING:
    import keras


def assemble(head: Head, arrays: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> "keras.Model":
    """Returns the model from N×H×W×3 uint8 RGB images, H and W of any size, to N×C float32 probabilities.

    Args:
        head: With a spec: its network, taps, poolings, precision and dtype are followed, and its way to resize.
        arrays: {layer name: (kernel, bias)} of the network, at least up to the head's deepest tap.
    """
    keras = import_keras()
    pixels = keras.Input((None, None, CHANNELS), dtype="uint8", name="images")
    resizer = keras.Model(pixels, resize(pixels, head.spec), name="resize")
    classifier = _classifier(head, arrays)
    images = keras.Input((None, None, CHANNELS), dtype="uint8", name="images")
    return keras.Model(images, classifier(resizer(images)), name="featuremill")


def _classifier(head: Head, arrays: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> "keras.Model":
    """Returns the model from N×S×S×3 float32 in 0 … 255 to the probabilities."""
    keras = import_keras()
    spec = head.spec
    by_name = {feature.name: feature for feature in spec.features}
    features = [by_name[name] for name in head.columns]
    table = cut(layers(spec.backbone, include_top=True), [feature.tap for feature in features])
    network = build(table, spec.image_size, dtype=spec.precision)
    pixels = keras.Input((spec.image_size, spec.image_size, CHANNELS), dtype="float32", name="pixels")
    outputs, current = {}, preprocess(pixels)
    for layer in network.layers:
        if layer.name in arrays:
            layer.set_weights(arrays[layer.name])
        current = outputs[layer.name] = layer(current)
    # Rounded as stored features are.
    pooled = [keras.ops.cast(pool_output(outputs[f.tap], f.pool), spec.dtype) for f in features]
    vectors = [keras.ops.cast(vector, "float32") for vector in pooled]
    joined = keras.ops.concatenate(vectors, axis=1) if len(vectors) > 1 else vectors[0]
    scores = _neighbour_scores(head, joined) if head.model.kind == "knn" else _dense_scores(head, joined)
    return keras.Model(pixels, keras.ops.softmax(scores / head.temperature, axis=-1), name="classify")


def _dense_scores(head: Head, vectors: Any) -> Any:
    """Returns the scores as `dense_logits` computes them."""
    keras = import_keras()
    pairs = dense_layers(head.model)
    for number, (kernel, bias) in enumerate(pairs, 1):
        activation = "relu" if number < len(pairs) else None
        layer = keras.layers.Dense(len(bias), activation=activation, name=f"head{number}", dtype="float32")
        vectors = layer(vectors)
        layer.set_weights([kernel.astype(np.float32), bias.astype(np.float32)])
    return vectors


def _neighbour_scores(head: Head, vectors: Any) -> Any:
    """Returns the scores as `knn.logits` computes them; the stored vectors are the weights of a layer."""
    keras, arrays = import_keras(), head.model.arrays
    ops, classes = keras.ops, len(head.classes)
    if "mean" in arrays:
        vectors = (vectors - arrays["mean"][None]) / arrays["scale"][None]
    vectors = vectors / ops.maximum(ops.sqrt(ops.sum(vectors * vectors, axis=1, keepdims=True)), 1e-30)
    stored = keras.layers.Dense(len(arrays["codes"]), use_bias=False, name="cosines", dtype="float32")
    cosines, rows = ops.top_k(stored(vectors), int(arrays["neighbours"]))
    stored.set_weights([np.ascontiguousarray(arrays["vectors"].T, np.float32)])
    labels = keras.layers.Embedding(len(arrays["codes"]), classes, name="labels", dtype="float32")
    votes = ops.sum(labels(rows) * ops.expand_dims(ops.maximum(cosines, 0.0), -1), axis=1) + 1 / classes
    labels.set_weights([np.eye(classes, dtype=np.float32)[arrays["codes"]]])
    return ops.log(votes / ops.sum(votes, axis=1, keepdims=True))

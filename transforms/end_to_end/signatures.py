"""An assembled model as a TensorFlow SavedModel with two signatures, for TensorFlow Serving and its like."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transforms.errors import FeaturemillError
from transforms.network.keras_import import import_keras
from transforms.network.vgg import CHANNELS

if TYPE_CHECKING:
    import keras


def check_backend() -> None:
    """Raises FeaturemillError unless Keras computes with TensorFlow, which SavedModel belongs to."""
    backend = import_keras().backend.backend()
    if backend != "tensorflow":
        raise FeaturemillError(
            f"a SavedModel needs TensorFlow, and Keras computes with {backend}; set KERAS_BACKEND=tensorflow, "
            "or give an output that ends in .keras"
        )


def save_signatures(model: "keras.Model", classes: Sequence[str], folder: str, *, notes: str) -> None:
    """Writes the SavedModel.

    `serving_default` takes `images`, N×H×W×3 uint8 RGB; `encoded` takes `encoded`, N strings, each a whole JPEG or PNG,
    and resizes them one by one. Both yield `probabilities` (N×C float32), `label` (N strings) and `score` (N float32).
    JPEGs are decoded as exactly as Pillow does; EXIF orientation is ignored, and so is transparency.

    Args:
        model: From `assembly.assemble`.
        classes: The C labels.
        folder: New or empty.
        notes: A file that travels along as an asset, by its path.

    Raises:
        OSError: The folder can't be written.
    """
    import tensorflow as tf

    resize, classify = model.get_layer("resize"), model.get_layer("classify")
    answer = _answer(classes)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, CHANNELS), tf.uint8, name="images")])
    def serve(images: Any) -> dict[str, Any]:
        return answer(classify(resize(images)))

    def read(data: Any) -> Any:
        # Reads PNG too, in spite of its name. The other way to decode JPEG is faster, and up to a few grey values off.
        pixels = tf.io.decode_jpeg(data, channels=CHANNELS, dct_method="INTEGER_ACCURATE")
        return resize(pixels[None])[0]

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, name="encoded")])
    def decode(encoded: Any) -> dict[str, Any]:
        shape = tf.TensorSpec(classify.input_shape[1:], tf.float32)
        return answer(classify(tf.map_fn(read, encoded, fn_output_signature=shape)))

    module = tf.Module()
    # Functions don't own the variables that they use: the module does.
    module.held = [variable.value for variable in model.variables]
    module.notes = tf.saved_model.Asset(notes)
    try:
        tf.saved_model.save(module, folder, signatures={"serving_default": serve, "encoded": decode})
    except tf.errors.OpError as error:
        # A full disk is one of TensorFlow's own errors.
        raise OSError(error.message) from error


def _answer(classes: Sequence[str]) -> Callable[[Any], dict[str, Any]]:
    """Returns what makes a signature's outputs of N×C probabilities."""
    import tensorflow as tf

    def answer(probabilities: Any) -> dict[str, Any]:
        return {
            "probabilities": probabilities,
            "label": tf.gather(tf.constant(list(classes)), tf.argmax(probabilities, axis=-1)),
            "score": tf.reduce_max(probabilities, axis=-1),
        }

    return answer

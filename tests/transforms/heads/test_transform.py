"""What happens to vectors before a head sees them: what it does, and that NumPy and Keras do the same."""

import numpy as np
import pytest

from transforms.heads import TRANSFORMS
from transforms.heads.transform import Transform
from transforms.network.keras_import import import_keras


def drawn(rows: int = 40) -> np.ndarray:
    """Three columns' numbers: some are zero, one row is nothing but zeros in the second."""
    matrix = np.random.default_rng(0).normal(size=(rows, 9)).astype(np.float32) * [1, 1, 1, 1, 50, 50, 50, 50, 1e-3]
    matrix[::3, ::2] = 0
    matrix[5, 4:8] = 0
    return matrix.astype(np.float32)


def test_what_it_does():
    matrix = drawn()
    assert Transform()(matrix) is matrix
    np.testing.assert_allclose(Transform("sqrt")(matrix), np.sign(matrix) * np.abs(matrix) ** 0.5, rtol=1e-6)
    both = Transform("sqrt-l2", (4, 5))(matrix)
    for part in (slice(0, 4), slice(4, 9)):
        root = np.sign(matrix[:, part]) * np.abs(matrix[:, part]) ** 0.5
        np.testing.assert_allclose(both[:, part], root / np.linalg.norm(root, axis=1, keepdims=True), atol=1e-6)
    assert not Transform("l2", (4, 4, 1))(matrix)[5, 4:8].any(), "zeros have no direction"


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_column_varies_as_much_as_any_other(name):
    matrix, widths = drawn(), (4, 4, 1)
    found = Transform(name, widths).with_spread(matrix)(matrix)
    spreads = [part.var(axis=0).sum() for part in np.split(found, [4, 8], axis=1)]
    # Of a single number l2 leaves a sign, or zero.
    np.testing.assert_allclose(spreads, 1, rtol=1e-4)
    assert Transform(name, (9,)).with_spread(matrix).scales == (), "a single column stays as it is"


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("widths", [(), (4, 4, 1)], ids=["one", "three"])
def test_keras_does_the_same(name, widths):
    keras, matrix = import_keras(), drawn()
    transform = Transform(name, widths).with_spread(matrix)
    found = np.asarray(transform.keras(keras.ops.convert_to_tensor(matrix)))
    np.testing.assert_allclose(found, transform(matrix), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRANSFORMS[1:])
def test_slopes_are_finite_where_numbers_are_zero(name):
    """Fine-tuning goes through it, and features of a network are zeros for most rows."""
    keras, matrix = import_keras(), drawn()
    layer = keras.layers.Dense(2, use_bias=False)
    inputs = keras.Input((9,))
    model = keras.Model(inputs, layer(Transform(name, (4, 4, 1)).keras(keras.layers.Dense(9, use_bias=False)(inputs))))
    model.layers[1].set_weights([np.eye(9, dtype=np.float32)])
    model.compile(keras.optimizers.SGD(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(matrix, np.arange(len(matrix)) % 2)
    assert all(np.isfinite(array).all() for array in model.get_weights())
    assert not np.array_equal(model.layers[1].get_weights()[0], np.eye(9))

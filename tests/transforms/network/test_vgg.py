"""The tables against Keras's own networks, and what is derived from them."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.errors import UsageError
from transforms.network import bases, normalise
from transforms.network.bases import check_feature, feature_size
from transforms.network.vgg import BACKBONES, build, check_top, cut, describe, layers
from transforms.spec import Feature

SIZES = {
    ("vgg19", True): 143_667_240,
    ("vgg19", False): 20_024_384,
    ("vgg16", True): 138_357_544,
    ("vgg16", False): 14_714_688,
}


def parameters(table, image_size=224):
    return sum(info.parameters for info in describe(table, image_size))


@pytest.mark.parametrize(("name", "include_top"), SIZES)
def test_parameters_are_the_published_ones(name, include_top):
    assert parameters(layers(name, include_top=include_top)) == SIZES[name, include_top]


def test_vgg16_with_dropouts_and_one_dense_layer():
    table = layers("vgg16", include_top=True, dense=(4096,), block_dropout=0.25, dense_dropout=(0.5,))
    assert parameters(table) == 121_576_232
    assert [layer.name for layer in table if layer.kind == "dropout"] == [
        *(f"block{block}_dropout" for block in range(1, 6)),
        "fc1_dropout",
    ]


def test_dropout_only_where_there_is_a_rate():
    names = [layer.name for layer in layers("vgg16", block_dropout=(0, 0, 0.1, 0, 0))]
    assert names[names.index("block3_pool") + 1] == "block3_dropout"
    assert sum("dropout" in name for name in names) == 1


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize(("image_size", "include_top"), [(32, True), (47, False)])
def test_built_network_is_keras_own(name, image_size, include_top):
    import keras

    table = layers(name, include_top=include_top, classes=10, dense=(8, 8))
    ours = build(table, image_size)
    reference = getattr(keras.applications, name.upper())(
        weights=None, include_top=False, input_shape=(image_size, image_size, 3)
    )
    infos = describe(table, image_size)
    assert isinstance(ours, keras.Sequential)
    assert [layer.name for layer in ours.layers][: len(reference.layers) - 1] == [
        layer.name for layer in reference.layers[1:]
    ]
    for info, mine in zip(infos, ours.layers, strict=True):
        assert (info.name, info.output_shape, info.parameters) == (
            mine.name,
            mine.output.shape[1:],
            mine.count_params(),
        )
        if info.layer.has_weights:
            assert info.weight_shapes == tuple(tuple(array.shape) for array in mine.weights)
    for info, theirs in zip(infos, reference.layers[1:], strict=False):
        assert (info.output_shape, info.parameters) == (theirs.output.shape[1:], theirs.count_params())
        assert getattr(theirs, "activation", None) == getattr(ours.get_layer(info.name), "activation", None)
    assert ours.get_layer("predictions").activation is keras.activations.softmax if include_top else True


def test_dropout_drops_in_training_only():
    import keras

    model = build(layers("vgg16", block_dropout=0.5)[:4], 32)
    assert isinstance(model.layers[-1], keras.layers.Dropout)
    ones = np.ones((1, 32, 32, 3), np.float32)
    zeros = [float((np.asarray(model(ones, training=training)) == 0).mean()) for training in (False, True)]
    assert zeros[1] > zeros[0] + 0.1


def test_channels_stay_last_whatever_keras_json_says():
    import keras

    keras.config.set_image_data_format("channels_first")
    try:
        model = build(layers("vgg16", include_top=True, dense=(2,), classes=2)[:3], 32)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert model.output_shape == (None, 16, 16, 64)


def test_macs_and_bytes_by_hand():
    first, second, pool = describe(layers("vgg19"), 224)[:3]
    assert first.macs == 224 * 224 * 9 * 3 * 64
    assert second.macs == 224 * 224 * 9 * 64 * 64
    assert (pool.macs, pool.parameters, pool.output_bytes) == (0, 0, 112 * 112 * 64 * 4)
    dense = describe(layers("vgg19", include_top=True), 224)[-3]
    assert (dense.name, dense.macs, dense.parameters) == ("fc1", 25_088 * 4096, 25_088 * 4096 + 4096)


@given(st.integers(32, 500), st.sampled_from(BACKBONES))
def test_poolings_halve_and_floor(image_size, name):
    assert describe(layers(name), image_size)[-1].output_shape == (image_size // 32, image_size // 32, 512)


@given(st.sampled_from(BACKBONES), st.data())
def test_cut_ends_at_the_deepest_tap(name, data):
    table = layers(name, include_top=True)
    names = [layer.name for layer in table]
    taps = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4))
    short = cut(table, taps)
    assert short == table[: len(short)]
    assert short[-1].name in taps
    assert set(taps) <= {layer.name for layer in short}


def test_feature_sizes():
    assert feature_size(Feature("a", "block5_pool", "avg"), "vgg19", 224) == 512
    assert feature_size(Feature("a", "block5_pool", "flatten"), "vgg19", 224) == 25_088
    assert feature_size(Feature("a", "block3_conv4", "gem"), "vgg19", 100) == 256
    assert feature_size(Feature("a", "block1_conv1", "flatten"), "vgg16", 33) == 33 * 33 * 64
    assert feature_size(Feature("a", "flatten", "flatten"), "vgg16", 320) == 10 * 10 * 512
    assert feature_size(Feature("a", "fc2", "flatten"), "vgg16", 255) == 4096
    assert feature_size(Feature("a", "predictions", "flatten"), "vgg16", 224) == 1000


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: layers("vgg18"), r"no backbone 'vgg18'; did you mean vgg1"),
        (lambda: layers("vgg16", block_dropout=(0.1, 0.2)), "2 rates for 5 blocks"),
        (lambda: layers("vgg16", include_top=True, dense_dropout=1.0), "below 1, not 1.0"),
        (lambda: layers("vgg16", include_top=True, classes=0), "at least 1 unit"),
        (lambda: describe(layers("vgg16"), 31), "31 is below 32"),
        (lambda: cut(layers("vgg16"), ["block5_conv4"]), "did you mean block5_conv"),
        (lambda: cut(layers("vgg16"), []), "no tap"),
        (lambda: feature_size(Feature("a", "fc1", "flatten"), "vgg16", 256), "image_size must be 224…255"),
        (lambda: check_top(layers("vgg16", include_top=True), 223), "image_size must be 224…255"),
    ],
)
def test_what_can_not_be_is_a_usage_error(call, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        call()


@pytest.mark.parametrize(
    ("feature", "include_top", "says"),
    [
        (Feature("a", "block5_pol", "avg"), False, r"vgg19 has no layer 'block5_pol'; did you mean block5_pool"),
        (Feature("a", "fc2", "flatten"), False, r"'a=fc2:flatten': fc2 is a layer of the top; pass --include-top"),
        (Feature("a", "flatten", "flatten"), False, r"pass --include-top"),
        (Feature("a", "fc2", "avg"), True, r"yields a vector, .* write a=fc2:flatten"),
        (Feature("a", "flatten", "max"), True, r"write a=flatten:flatten"),
        (Feature("a", "block5_pool", "mean"), True, r"no pooling 'mean'"),
    ],
)
def test_wrong_features_name_the_cure(feature, include_top, says):
    with pytest.raises(UsageError, match=says):
        check_feature(feature, "vgg19", include_top)


def test_good_features_pass():
    for tap in bases.tap_names("vgg16", False):
        for pool in ("avg", "max", "gem", "flatten"):
            check_feature(Feature("a", tap, pool), "vgg16", False)
    for tap in ("flatten", "fc1", "fc2", "predictions"):
        check_feature(Feature("a", tap, "flatten"), "vgg16", True)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_preprocess_is_keras_own_bit_for_bit(dtype):
    import keras

    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(dtype)
    expected = keras.applications.vgg19.preprocess_input(pixels.copy())
    before = pixels.copy()
    for given_pixels in (pixels, keras.ops.convert_to_tensor(pixels)):
        result = np.asarray(normalise.preprocess(given_pixels))
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(pixels, before)
    symbolic = keras.Input(pixels.shape[1:], dtype=dtype)
    model = keras.Model(symbolic, normalise.preprocess(symbolic))
    np.testing.assert_array_equal(model.predict_on_batch(pixels), expected)

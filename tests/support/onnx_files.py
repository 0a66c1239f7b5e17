"""Small ONNX files: a convolutional net, vision transformers, also as CLIP and SigLIP end, VGG with given weights."""

import numpy as np
import pytest

from transforms.network.vgg import Layer

onnx = pytest.importorskip("onnx", reason="the extra onnx isn't installed")
runtime = pytest.importorskip("onnxruntime", reason="the extra onnx isn't installed")
TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper
OPSET = 17


def model(nodes, arrays, *, shape, outputs, kind=TensorProto.FLOAT, opset=OPSET, **more) -> "onnx.ModelProto":
    """Returns a network; `shape` is its input's, outputs are names."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("pixels", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, **more)


def drawn(seed=0):
    generator = np.random.default_rng(seed)
    return lambda *shape: (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def convolutions(*, shape=("n", 3, "h", "w"), seed=0, **more) -> "onnx.ModelProto":
    """Returns conv → relu → conv → `maps` (N×7×h×w), its transpose `last`, and `vector`, their mean."""
    draw = drawn(seed)
    arrays = {"a": draw(5, 3, 3, 3), "b": draw(7, 5, 3, 3), "bias": draw(7)}
    nodes, taken = [], "pixels"
    if shape[3] == 3:
        nodes.append(helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]))
        taken = "planes"
    nodes += [
        helper.make_node("Conv", [taken, "a"], ["first"], strides=[2, 2]),
        helper.make_node("Relu", ["first"], ["rectified"]),
        helper.make_node("Conv", ["rectified", "b", "bias"], ["maps"], strides=[2, 2]),
        helper.make_node("Transpose", ["maps"], ["last"], perm=[0, 2, 3, 1]),
        helper.make_node("ReduceMean", ["maps"], ["vector"], axes=[2, 3], keepdims=0),
    ]
    return model(nodes, arrays, shape=shape, outputs=["vector"], **more)


def transformer(*, side=32, patch=8, width=12, before=1, batch="n", seed=0) -> "onnx.ModelProto":
    """Returns one block of attention over patches and `before` tokens; `hidden` is N×T×D."""
    draw = drawn(seed)
    count = (side // patch) ** 2
    arrays = {
        "patches": draw(width, 3, patch, patch),
        "shape": np.array([0, width, -1], np.int64),
        "places": draw(1, count + before, width),
        **{name: draw(width, width) for name in ("q", "k", "v")},
        "ones": np.ones(width, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["pixels", "patches"], ["embedded"], strides=[patch, patch]),
        helper.make_node("Reshape", ["embedded", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["grid"], perm=[0, 2, 1]),
    ]
    tokens = "grid"
    if before:
        arrays |= {"own": draw(1, before, width), "one": np.ones(2, np.int64)}
        nodes += [
            helper.make_node("Shape", ["pixels"], ["images"], start=0, end=1),
            helper.make_node("Concat", ["images", "one"], ["times"], axis=0),
            helper.make_node("Expand", ["own", "times"], ["owns"]),
            helper.make_node("Concat", ["owns", "grid"], ["tokens"], axis=1),
        ]
        tokens = "tokens"
    nodes += [
        helper.make_node("Add", [tokens, "places"], ["placed"]),
        *(helper.make_node("MatMul", ["placed", name], [f"placed_{name}"]) for name in "qkv"),
        helper.make_node("Transpose", ["placed_k"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["placed_q", "turned"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "placed_v"], ["attended"]),
        helper.make_node("Add", ["placed", "attended"], ["summed"]),
        helper.make_node("LayerNormalization", ["summed", "ones"], ["hidden"], axis=-1),
    ]
    return model(nodes, arrays, shape=(batch, 3, side, side), outputs=["hidden"])


def _ended(net, nodes, arrays, outputs) -> "onnx.ModelProto":
    """Returns a network with nodes behind those that it has, and other outputs."""
    net.graph.node.extend(nodes)
    net.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    del net.graph.output[:]
    net.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
    return net


def clip() -> "onnx.ModelProto":
    """Returns `image_embeds` (N×7), the class token normalised and projected, and `hidden` (N×17×12)."""
    arrays = {"first": np.array(0, np.int64), "projection": drawn(1)(12, 7)}
    nodes = [
        helper.make_node("Gather", ["hidden", "first"], ["taken"], axis=1),
        helper.make_node("LayerNormalization", ["taken", "ones"], ["normed"], axis=-1),
        helper.make_node("MatMul", ["normed", "projection"], ["image_embeds"]),
    ]
    return _ended(transformer(before=1), nodes, arrays, ["image_embeds", "hidden"])


def siglip(*, heads=2, width=12) -> "onnx.ModelProto":
    """Returns `hidden` (N×16×12), without a class token, and `pooled` (N×12): a learnt query attends to it."""
    draw = drawn(1)
    arrays = {name: draw(width, width) for name in ("of_q", "of_k", "of_v", "of_o", "up", "down")}
    arrays |= {"probe": draw(1, 1, width), "two": np.ones(2, np.int64), "zeroth": np.array(0, np.int64)}
    arrays |= {"apart": np.array([0, 0, heads, -1], np.int64), "together": np.array([0, 0, width], np.int64)}
    nodes = [
        helper.make_node("Shape", ["pixels"], ["count"], start=0, end=1),
        helper.make_node("Concat", ["count", "two"], ["repeats"], axis=0),
        helper.make_node("Expand", ["probe", "repeats"], ["probes"]),
    ]
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            helper.make_node("MatMul", ["probes" if name == "q" else "hidden", f"of_{name}"], [f"whole_{name}"]),
            helper.make_node("Reshape", [f"whole_{name}", "apart"], [f"heads_{name}"]),
            helper.make_node("Transpose", [f"heads_{name}"], [f"by_head_{name}"], perm=perm),
        ]
    nodes += [
        helper.make_node("MatMul", ["by_head_q", "by_head_k"], ["likeness"]),
        helper.make_node("Softmax", ["likeness"], ["parts"], axis=-1),
        helper.make_node("MatMul", ["parts", "by_head_v"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["mixed_last"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["mixed_last", "together"], ["joined"]),
        helper.make_node("MatMul", ["joined", "of_o"], ["answer"]),
        helper.make_node("LayerNormalization", ["answer", "ones"], ["answer_normed"], axis=-1),
        helper.make_node("MatMul", ["answer_normed", "up"], ["wide"]),
        helper.make_node("Tanh", ["wide"], ["bent"]),
        helper.make_node("MatMul", ["bent", "down"], ["narrow"]),
        helper.make_node("Add", ["answer", "narrow"], ["whole_answer"]),
        helper.make_node("Gather", ["whole_answer", "zeroth"], ["pooled"], axis=1),
    ]
    return _ended(transformer(before=0), nodes, arrays, ["hidden", "pooled"])


def vgg(table: list[Layer], arrays, side: int) -> "onnx.ModelProto":
    """Returns a chain of VGG's layers with Keras's weights; each output is named as its layer."""
    nodes, named, taken = [], {}, "pixels"
    for layer in table:
        if layer.kind == "conv":
            kernel, bias = arrays[layer.name]
            names = f"{layer.name}/kernel", f"{layer.name}/bias"
            named |= zip(names, (np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)), bias), strict=True)
            nodes += [
                helper.make_node("Conv", [taken, *names], [f"{layer.name}/raw"], pads=[1, 1, 1, 1]),
                helper.make_node("Relu", [f"{layer.name}/raw"], [layer.name]),
            ]
        else:
            nodes.append(helper.make_node("MaxPool", [taken], [layer.name], kernel_shape=[2, 2], strides=[2, 2]))
        taken = layer.name
    return model(nodes, named, shape=("n", 3, side, side), outputs=[taken])

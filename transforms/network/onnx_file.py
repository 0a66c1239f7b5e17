"""ONNX files as bases: which tensors can be tapped, how each is laid out, and which numbers the file is known by."""

import hashlib
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from transforms import storage
from transforms.errors import FeaturemillError, UsageError
from transforms.machine import available_cores
from transforms.network.files import NetworkFile, Tap
from transforms.pools import extra_tokens
from transforms.text import counted, did_you_mean, one_line, size_text

if TYPE_CHECKING:
    import onnx
    from onnxruntime import InferenceSession

# What a file may hold in all: no message of Protocol Buffers, which ONNX Runtime takes, is larger.
_MOST_BYTES = 2**31 - 1
# Of the tensors that `tappable` computes, so that their outputs fit into memory.
_COMPUTED_AT_ONCE = 100
# Where these have channels: images first, as ONNX defines them, or vectors last.
_FIRST = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"}
_FIRST |= {"BatchNormalization", "InstanceNormalization", "GroupNormalization", "DepthToSpace", "SpaceToDepth"}
_LAST = {"MatMul", "Gemm", "LayerNormalization", "RMSNormalization", "SkipLayerNormalization"}
# These leave them where they were.
_KEEPS = {"Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Exp", "Neg", "Abs", "Min", "Max", "Clip", "Cast", "Identity"}
_KEEPS |= {"Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Mish", "HardSwish", "HardSigmoid", "Sigmoid"}
_KEEPS |= {"Tanh", "Erf", "Softplus", "Softmax", "Dropout", "Concat", "Slice", "Pad", "Resize", "Upsample", "LRN"}


class OnnxFile(NetworkFile):
    """A network from an ONNX file.

    Attributes:
        tensors: Names of what depends on the images, in the order in which it is computed.
        channels_last: Whether it takes N×H×W×3.
    """

    def __init__(self, path: str):
        super().__init__(path)
        self._model = _read(path)
        graph = self._model.graph
        self.outputs = tuple(each.name for each in graph.output)
        self.parameters = sum(prod(tensor.dims) for tensor in _tensors(graph))
        self._read_input()
        made = {self._input: None}
        for node in graph.node:
            if not made.keys().isdisjoint(_taken(node)):
                made |= dict.fromkeys(filter(None, node.output))
        self.tensors = tuple(made)[1:]
        self.sha256 = _identity(self._model, path)
        self._axes = _channel_axes(graph, self._input, self.channels_last)
        self._taps: dict[tuple[str, int], Tap] = {}

    def _read_input(self) -> None:
        graph, known = self._model.graph, {tensor.name for tensor in self._model.graph.initializer}
        inputs = [each for each in graph.input if each.name not in known]
        if len(inputs) != 1:
            names = ", ".join(each.name for each in inputs) or "none"
            raise FeaturemillError(
                f"{self.path} takes {len(inputs)} inputs ({names}), not one, images; export it again"
            )
        self._input, kind = inputs[0].name, inputs[0].type.tensor_type
        types = {1: np.float32, 10: np.float16}
        # Of any size is left out, or negative, as Paddle writes it.
        dims = [max(0, dim.dim_value) for dim in kind.shape.dim]
        wanted = "N×3×S×S or N×S×S×3, float32 or float16"
        if len(dims) != 4 or kind.elem_type not in types:
            raise FeaturemillError(f"{self.path}: its input {self._input} isn't {wanted}; export it again")
        self._dtype = types[kind.elem_type]
        axes = [axis for axis in (1, 3) if dims[axis] == 3]
        if len(axes) != 1 and not axes and 0 in dims[1:]:
            # Of any size in each direction: what takes it says what it is.
            users = [node for node in graph.node if self._input in node.input]
            axes = [1] * any(node.op_type == "Conv" for node in users) or [3] * any(
                _attribute(node, "perm") == [0, 3, 1, 2] for node in users
            )
        shown = "×".join(str(dim or "?") for dim in dims)
        if len(axes) != 1:
            raise FeaturemillError(f"{self.path}: where its input, {shown}, has the colours isn't clear: not {wanted}")
        self.channels_last = axes == [3]
        height, width = dims[1:3] if self.channels_last else dims[2:4]
        if height != width:
            raise FeaturemillError(
                f"{self.path} takes images of {height or '?'}×{width or '?'}, and only squares can be given"
            )
        self.batch, self.side = dims[0], height

    def taps(self, names: Iterable[str], side: int) -> dict[str, Tap]:
        missing = [name for name in dict.fromkeys(names) if (name, side) not in self._taps]
        for name in missing:
            if name not in self.tensors:
                raise UsageError(f"{self.path} has no tensor {name!r}{did_you_mean(name, self.tensors)}")
        if missing:
            session = self.session(missing, threads=available_cores())
            outputs, count = self._first_run(session, side)
            for name, output in zip(missing, outputs, strict=True):
                self._taps[name, side] = self._tap(name, output, count)
        return {name: self._taps[name, side] for name in names}

    def _first_run(self, session: "InferenceSession", side: int) -> tuple[list[Any], int]:
        # Exporters often fix the number of images inside without saying so.
        for count in (self.batch,) if self.batch else (2, 1):
            try:
                if 12 * count * side**2 > _MOST_BYTES:
                    raise FeaturemillError(
                        f"{self.path} takes {counted(count, 'image')} of {side}×{side} at once, over "
                        f"{size_text(_MOST_BYTES)}; export it again with fewer, or of another size"
                    )
                outputs = self.run(session, np.zeros((count, side, side, 3), np.float32))
            except FeaturemillError as error:
                problem = error
                continue
            self.batch = self.batch or (1 if count == 1 else 0)
            return outputs, count
        raise problem

    def _tap(self, name: str, output: Any, count: int) -> Tap:
        what = f"{self.path}: {name} gives"
        if not isinstance(output, np.ndarray) or output.dtype.kind != "f":
            raise FeaturemillError(f"{what} {getattr(output, 'dtype', 'no numbers')}, not floats; tap another tensor")
        if not 2 <= output.ndim <= 4 or len(output) != count or not output.size:
            raise FeaturemillError(
                f"{what} {'×'.join(map(str, output.shape))} of {counted(count, 'image')}: not N×D, N×T×D, N×C×H×W or "
                "N×H×W×C; tap another tensor"
            )
        shape = output.shape[1:]
        if len(shape) == 1:
            return Tap(name, shape, 0)
        axis = self._axes.get(name)
        if len(shape) == 3:
            # Images are square, so maps are.
            first, last = shape[1] == shape[2], shape[0] == shape[1]
            by_shape = None if first == last else 0 if first else 2
            by_maker = {1: 0, 3: 2, -1: 2}.get(axis)
            clash = None not in (by_shape, by_maker) and by_shape != by_maker
            return Tap(name, shape, None if clash else by_shape if by_maker is None else by_maker)
        extras = [extra_tokens(size) for size in shape]
        # A class token comes with channels last; what only looks like patches and one are a detector's boxes, say.
        known = [extra is not None for extra in extras]
        by_shape = 1 if known == [True, False] else 0 if known == [False, True] and not extras[1] else None
        channels = {1: 0, 2: 1, -1: 1}.get(axis, by_shape)
        return Tap(name, shape, channels, None if channels is None else extras[1 - channels])

    def session(
        self, names: Sequence[str], *, threads: int, providers: Sequence[Any] = ("CPUExecutionProvider",)
    ) -> Any:
        """Returns what computes some tensors, and nothing that they don't need.

        Raises:
            FeaturemillError: ONNX Runtime can't.
        """
        onnx, runtime = import_onnx()
        graph, needed, nodes = self._model.graph, set(names), []
        for node in reversed(graph.node):
            if needed.intersection(node.output):
                nodes.append(node)
                needed.update(_taken(node))
        part = onnx.ModelProto(ir_version=self._model.ir_version, functions=self._model.functions)
        part.opset_import.extend(self._model.opset_import)
        part.graph.name = graph.name or "base"
        part.graph.node.extend(reversed(nodes))
        part.graph.initializer.extend(each for each in graph.initializer if each.name in needed)
        part.graph.input.extend(each for each in graph.input if each.name in needed | {self._input})
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.use_deterministic_compute = True
        # What it says is said once, by us.
        options.log_severity_level = 4
        try:
            return runtime.InferenceSession(part.SerializeToString(), options, providers=list(providers))
        except Exception as error:
            # Of a dozen types of its own, which it doesn't publish.
            raise FeaturemillError(
                f"ONNX Runtime {runtime.__version__} can't load {self.path}: {one_line(error)}; export it again "
                "with an opset that it knows, and without operators of others"
            ) from error

    def run(self, session: "InferenceSession", pixels: np.ndarray) -> list[np.ndarray]:
        """Computes a session's tensors of N×S×S×3 float32, normalised."""
        planes = pixels if self.channels_last else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        try:
            return session.run(None, {self._input: planes.astype(self._dtype, copy=False)})
        except Exception as error:
            raise FeaturemillError(
                f"{self.path} can't compute {counted(len(pixels), 'image')} of {pixels.shape[1]}×{pixels.shape[2]}: "
                f"{one_line(error)}; pass another --image-size, or export it again"
            ) from error

    def tappable(self, side: int) -> Iterator[Tap]:
        names = list(self.tensors)
        for start in range(0, len(names), _COMPUTED_AT_ONCE):
            some = names[start : start + _COMPUTED_AT_ONCE]
            outputs, count = self._first_run(self.session(some, threads=available_cores()), side)
            for name, output in zip(some, outputs, strict=True):
                with suppress(FeaturemillError):
                    yield self._tap(name, output, count)


def import_onnx() -> tuple[Any, Any]:
    """Imports onnx and ONNX Runtime.

    Raises:
        FeaturemillError: They aren't installed, or can't be loaded on this machine.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise FeaturemillError(
            f"ONNX files can't be used here: {one_line(error)}; pip install 'featuremill[onnx]'"
        ) from error
    return onnx, onnxruntime


def _read(path: str) -> "onnx.ModelProto":
    onnx, _ = import_onnx()
    try:
        with storage.open_read(path) as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"it holds over {size_text(_MOST_BYTES)}; use a smaller network")
        model = onnx.load_model_from_string(data)
    except (OSError, ValueError) as error:
        raise FeaturemillError(f"cannot use {path}: {one_line(error)}") from error
    except Exception as error:
        # Protocol Buffers' own, whose module differs between its versions.
        raise FeaturemillError(f"{path} is not an ONNX file, or is damaged; export or copy it again") from error
    if not model.graph.node or not model.graph.output:
        raise FeaturemillError(f"{path} is not an ONNX file, or is empty; export or copy it again")
    outside = [tensor for tensor in _tensors(model.graph) if tensor.data_location == tensor.EXTERNAL]
    size = len(data)
    for tensor in outside:
        where = {entry.key: entry.value for entry in tensor.external_data}
        size += _read_outside(onnx, tensor, where, path, room=_MOST_BYTES - size)
    return model


def _read_outside(onnx: Any, tensor: Any, where: dict[str, str], path: str, *, room: int) -> int:
    """Reads one tensor from the file beside the network that it names; returns its bytes."""
    name = where.get("location", "")
    # A hostile file could name any other of this machine.
    if not name or posixpath.isabs(name) or "\\" in name or ".." in name.split("/"):
        raise FeaturemillError(f"{path} has its tensor {tensor.name} outside of its folder ({name!r}); export it again")
    beside = storage.join(path.rpartition("/")[0], name)
    try:
        offset, length = int(where.get("offset", 0)), int(where.get("length", -1))
        info = storage.stat(beside)
        if info is None:
            raise FeaturemillError(f"{path} has its tensors in {name}, which isn't beside it; copy that file there too")
        length = info.size - offset if length < 0 else length
        if length > room:
            raise ValueError(f"with it they hold over {size_text(_MOST_BYTES)}; use a smaller network")
        with storage.open_read(beside) as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
    except (OSError, ValueError) as error:
        raise FeaturemillError(f"cannot read {tensor.name} of {path} in {beside}: {one_line(error)}") from error
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    return length


def _identity(model: "onnx.ModelProto", path: str) -> str:
    """Returns the SHA-256 (hex) over the tensors, by their names, and the graph that uses them.

    Where tensors lie and in which order, what nodes are called and who wrote the file leave it as it is.
    """
    onnx, _ = import_onnx()
    sha256 = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda each: each.name):
        try:
            array = onnx.numpy_helper.to_array(tensor)
        except Exception as error:
            raise FeaturemillError(
                f"{path}: tensor {tensor.name} is damaged: {one_line(error)}; copy the file again"
            ) from error
        sha256.update(f"{tensor.name} {array.dtype} {array.shape}\n".encode())
        sha256.update(repr(array.tolist()).encode() if array.dtype == object else array.tobytes())
    rest = onnx.ModelProto(functions=model.functions, opset_import=sorted(model.opset_import, key=lambda o: o.domain))
    for each in model.graph.node:
        node = rest.graph.node.add()
        node.CopyFrom(each)
        for field in ("name", "doc_string", "metadata_props"):
            node.ClearField(field)
    for name in ("input", "output"):
        for each in getattr(model.graph, name):
            getattr(rest.graph, name).add(name=each.name, type=each.type)
    sha256.update(rest.SerializeToString(deterministic=True))
    return sha256.hexdigest()


def _tensors(graph: Any) -> Iterator[Any]:
    """Yields the tensors in a graph: its own, those in its nodes, and those of the graphs within them."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t,) if attribute.type == 4 else attribute.tensors
            for inner in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
                yield from _tensors(inner)


def _taken(node: Any) -> Iterable[str]:
    """Yields the names of what a node takes, and those that the graphs within it do."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs) if attribute.type in (5, 10) else ():
            yield from (name for each in inner.node for name in _taken(each))
            yield from (each.name for each in inner.output)


def _attribute(node: Any, name: str) -> list[int] | None:
    return next((list(each.ints) for each in node.attribute if each.name == name), None)


def _channel_axes(graph: Any, given: str, channels_last: bool) -> dict[str, int]:
    """Returns {tensor: its axis of channels}, the images' being 0 and -1 the last, as far as its makers say."""
    axes = {given: 3 if channels_last else 1}
    for node in graph.node:
        taken = {axes[name] for name in node.input if name in axes}
        axis = None
        if node.op_type in _FIRST:
            axis = 1
        elif node.op_type in _LAST:
            axis = -1
        elif node.op_type in _KEEPS and len(taken) == 1:
            [axis] = taken
        elif node.op_type == "Transpose" and len(taken) == 1 and (order := _attribute(node, "perm")):
            axis = dict(zip(order, range(len(order)), strict=True)).get(taken.pop() % len(order))
        if axis is not None:
            axes |= dict.fromkeys(node.output, axis)
    return axes

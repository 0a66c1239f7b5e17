"""Reading weight files: the published HDF5 layout, Keras 3's, and `.keras` archives. read without Keras."""

import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.network.bases import base_of, describe
from transforms.network.bases import layers as base_layers
from transforms.network.vgg import BACKBONES, LayerInfo, layers
from transforms.text import one_line

if TYPE_CHECKING:
    import h5py

Arrays = dict[str, tuple[np.ndarray, ...]]
# A layer's variables, not read yet.
_Found = Mapping[str, Sequence[Any]]

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_ZIP_MAGIC = b"PK\x03\x04"
# What is often saved under a weight file's name, by its first bytes.
_IMPOSTORS = {
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with git lfs pull",
    b"<": "a web page; download the file itself",
}
_KERAS_WEIGHTS = "model.weights.h5"
# VGG19 with its top, in float64, and twice as much of an optimiser.
_MOST_ARCHIVE_BYTES = 4 * 2**30
_CHUNK_NUMBERS = 2**22
# Of groups; Keras's nest by two levels for each model in a model.
_MOST_DEPTH = 100
_DTYPES = ("float16", "float32", "float64")


def read_arrays(path: str, needed: Sequence[LayerInfo], *, backbone: str) -> Arrays:
    """Reads the weights of the layers from a file.

    Args:
        path: Absolute path or URL; what the file is, its content says.
        needed: The layers that have weights, with their shapes.
        backbone: The base that they belong to.

    Returns:
        {layer name: its arrays, of VGG (kernel, bias)}, float32, in the order of `needed`.

    Raises:
        FeaturemillError: Not there, not whole, not a weight file, or not this network's.
    """
    try:
        with storage.open_read(path) as file:
            kind = _recognise(file, path)
            if kind == "hdf5":
                return _read_hdf5(file, path, needed, backbone=backbone)
            return _read_keras(file, path, needed, backbone=backbone)
    except FileNotFoundError as error:
        raise FeaturemillError(
            f"no weight file {path}; pass --weights with its path, imagenet or random:SEED"
        ) from error
    except (OSError, ValueError) as error:  # Beam's ValueError: no file system for this scheme is installed.
        raise FeaturemillError(f"cannot read weights from {path}: {one_line(error)}") from error


def _recognise(file: BinaryIO, path: str) -> str:
    start = file.read(64)
    file.seek(0)
    if start.startswith(_HDF5_MAGIC):
        return "hdf5"
    if start.startswith(_ZIP_MAGIC):
        return "keras"
    what = next((what for magic, what in _IMPOSTORS.items() if start.lstrip().startswith(magic)), "of another format")
    raise FeaturemillError(
        f"{path} is not a weight file (.h5, .weights.h5, .keras): it is {what if start else 'empty'}"
    )


def _read_hdf5(file: BinaryIO, path: str, needed: Sequence[LayerInfo], *, backbone: str) -> Arrays:
    import h5py

    try:
        with h5py.File(file, "r") as root:
            if not base_of(backbone).is_chain:
                return _pick_graph(_saved_layers(root), path, needed, backbone=backbone)
            found = _published_layout(root) or _keras3_layout(root, backbone)
            return _pick(found, path, needed, backbone=backbone)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        # h5py has no error of its own for damage, and what isn't of the layout fails in as many ways.
        raise FeaturemillError(f"{path} is damaged or cut off: {one_line(error)}; copy or download it again") from error


def _published_layout(root: "h5py.Group") -> _Found:
    """Returns {layer name: [kernel, bias]} of the layout of the published files and of `model.save("x.h5")`."""
    root = root.get("model_weights", root)
    weight_names = {name: root[name].attrs.get("weight_names", ()) for name in root}
    return {name: [root[name][_text(weight)] for weight in names] for name, names in weight_names.items() if len(names)}


def _saved_layers(root: "h5py.Group") -> _Found:
    """Returns {layer name: its arrays} of either layout, in the file's order where it has one."""
    root = root.get("model_weights", root)
    if "layer_names" not in root.attrs:
        # Seeds of dropout are saved as weights are, and are none.
        groups = (group for group in _groups(root) if group.name.endswith("/vars") and len(group))
        named = {_text(group.attrs["name"]): group for group in groups if "name" in group.attrs}
        return {name: [group[key] for key in sorted(group)] for name, group in named.items()}
    found = {}
    for name in map(_text, root.attrs["layer_names"]):
        weights = root[name].attrs.get("weight_names", ())
        if len(weights):
            found[name] = [root[name][_text(weight)] for weight in weights]
    return found


def _pick_graph(found: _Found, path: str, needed: Sequence[LayerInfo], *, backbone: str) -> Arrays:
    """Returns the needed layers by their names; or by their order, as Keras goes by in the published layout."""
    weighted = [info.name for info in describe(base_layers(backbone)) if info.layer.has_weights]
    if len(found) == len(weighted) and not all(info.name in found for info in needed):
        found = dict(zip(weighted, found.values(), strict=True))
    arrays = {}
    for info in needed:
        owners = dict.fromkeys(array.owner for array in info.arrays)
        # A layer that is made of others is saved as one, or as these.
        variables = [variable for owner in owners for variable in found.get(owner) or _numbered(found, owner)]
        variables = found.get(info.name) or variables
        if len(variables) != len(info.arrays):
            raise FeaturemillError(
                f"{path} has {len(variables)} arrays of {info.name}, expected {len(info.arrays)}; pass a file of "
                f"{backbone} weights, as keras.applications has them without the top"
            )
        arrays[info.name] = tuple(
            _read(variable, array.shape, f"{path}: {info.name}'s {array.name}")
            for variable, array in zip(variables, info.arrays, strict=True)
        )
    return arrays


def _numbered(found: _Found, name: str) -> Sequence[Any]:
    """Returns the arrays of the one layer that Keras called by this name and a number."""
    numbered = [arrays for other, arrays in found.items() if re.fullmatch(rf"{re.escape(name)}_\d+", other)]
    return numbered[0] if len(numbered) == 1 else ()


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _keras3_layout(root: "h5py.Group", backbone: str) -> _Found:
    """Returns {layer name: [kernel, bias]} of a file of Keras 3's `save_weights`: `…/conv2d_7/vars` with `0`, `1`.

    Newer versions note the layer's own name. Without it the numbers count the layers of a kind in their order.
    """
    groups = [group for group in _groups(root) if group.name.endswith("/vars") and len(group)]
    if all("name" in group.attrs for group in groups):
        return {_text(group.attrs["name"]): [group[key] for key in sorted(group)] for group in groups}
    found = {}
    for kind, prefix in (("conv", "conv2d"), ("dense", "dense")):
        numbered = {}
        for group in groups:
            match = re.search(rf"/{prefix}(?:_(\d+))?/vars$", group.name)
            if match:
                numbered[int(match.group(1) or 0)] = group
        names = _names(kind, len(numbered), backbone)
        found.update(
            {name: [numbered[i]["0"], numbered[i]["1"]] for name, i in zip(names, sorted(numbered), strict=False)}
        )
    return found


def _groups(root: "h5py.Group") -> "Iterator[h5py.Group]":
    """Yields a group and those below it, parents before children, each once: links may lead to one from many places.

    Raises:
        ValueError: They lie deeper than any network's.
    """
    import h5py

    seen = {_address(root)}
    todo = [(root, 0)]
    while todo:
        group, depth = todo.pop()
        yield group
        if depth == _MOST_DEPTH:
            raise ValueError(f"its groups lie over {_MOST_DEPTH} deep")
        # Other links may lead into other files of this machine.
        hard = [name for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink)]
        for name in reversed(hard):
            child = group[name]
            if isinstance(child, h5py.Group) and _address(child) not in seen:
                seen.add(_address(child))
                todo.append((child, depth + 1))


def _address(group: "h5py.Group") -> int:
    import h5py

    return h5py.h5o.get_info(group.id).addr


def _names(kind: str, count: int, backbone: str) -> list[str]:
    """Returns the names of `count` layers of a kind: of the network that has that many, or else of `backbone`."""
    names = {b: [layer.name for layer in layers(b, include_top=True) if layer.kind == kind] for b in BACKBONES}
    return next((names[b] for b in (backbone, *BACKBONES) if len(names[b]) == count), names[backbone])


def _read_keras(file: BinaryIO, path: str, needed: Sequence[LayerInfo], *, backbone: str) -> Arrays:
    """Reads the weights in an archive, which lie there as `save_weights` writes them.

    The model itself is never built: its description could ask for any code and any amount of memory.
    """
    # A copy, because HDF5 jumps to and fro, which a packed file can't without beginning again.
    with tempfile.TemporaryFile() as copy:
        try:
            with zipfile.ZipFile(file) as archive:
                size = archive.getinfo(_KERAS_WEIGHTS).file_size
                if size > _MOST_ARCHIVE_BYTES:
                    raise ValueError(f"its weights claim {size:,} bytes")
                with archive.open(_KERAS_WEIGHTS) as packed:
                    shutil.copyfileobj(packed, copy, 1 << 20)
        except (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            # Of what is encrypted or packed in an unknown way, zipfile says NotImplementedError or RuntimeError.
            raise FeaturemillError(
                f"cannot read {path} as a Keras archive: {one_line(error)}; "
                "save its weights alone, with model.save_weights('x.weights.h5'), and pass that file"
            ) from error
        return _read_hdf5(copy, path, needed, backbone=backbone)


def _pick(found: _Found, path: str, needed: Sequence[LayerInfo], *, backbone: str) -> Arrays:
    """Returns the needed layers, each checked before it is read."""
    _check_network(found, path, backbone)
    arrays = {}
    for info in needed:
        if info.name not in found:
            raise FeaturemillError(_missing(found, path, info, backbone))
        if len(found[info.name]) != 2:
            raise FeaturemillError(
                f"{path}: {info.name} has {len(found[info.name])} arrays, expected kernel and bias; "
                "is it another network's layer of that name?"
            )
        kernel, bias = (
            _read(variable, shape, f"{path}: {info.name}'s {what}")
            for variable, shape, what in zip(found[info.name], info.weight_shapes, ("kernel", "bias"), strict=True)
        )
        arrays[info.name] = kernel, bias
    return arrays


def _check_network(found: _Found, path: str, backbone: str) -> None:
    """Refuses the other network's weights: VGG19 has every layer of VGG16 in the same shapes, so the rest decides."""
    convs = {name for name in found if re.fullmatch(r"block\d_conv\d", name)}
    for other in BACKBONES:
        names = {layer.name for layer in layers(other) if layer.has_weights}
        if other != backbone and convs == names:
            own = {layer.name for layer in layers(backbone) if layer.has_weights}
            difference = sorted(own - names) or sorted(names - own)
            raise FeaturemillError(
                f"{path} {'has no' if own - names else 'has a'} layer {difference[0]}: it looks like {other} weights, "
                f"not {backbone}; pass --backbone {other}"
            )


def _missing(found: _Found, path: str, info: LayerInfo, backbone: str) -> str:
    if info.layer.kind == "dense" and any(name.startswith("block") for name in found):
        return (
            f"{path} has no layer {info.name}: it was saved without the top; pass a file with it, or tap no dense layer"
        )
    names = list(found)
    there = f"it has {', '.join(names[:3])}{' …' if len(names) > 3 else ''}" if names else "it has no weights at all"
    return f"{path} has no layer {info.name}: {there}; pass a file of {backbone} weights with Keras's layer names"


def _read(variable: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Reads one array as float32, once its shape and type are as expected: nothing of any other size is ever loaded."""
    if tuple(variable.shape) != shape:
        raise FeaturemillError(
            f"{what} has shape {_shape(variable.shape)}, expected {_shape(shape)}; it is another network's"
        )
    if variable.dtype.name not in _DTYPES:
        raise FeaturemillError(f"{what} is {variable.dtype.name}, expected one of {', '.join(_DTYPES)}")
    # What is packed is unpacked by whole chunks.
    if variable.chunks and np.prod(variable.chunks) > max(np.prod(shape), _CHUNK_NUMBERS):
        raise FeaturemillError(f"{what} is stored in chunks of {_shape(variable.chunks)}; save it again")
    # A hostile file could name other files of this machine as the place of its numbers.
    if getattr(variable, "external", None) or getattr(variable, "is_virtual", False):
        raise FeaturemillError(f"{what} lies outside the file; save the weights into one file")
    # A number beyond float32 becomes infinite, and is refused as such.
    with np.errstate(over="ignore"):
        return np.asarray(variable[...], np.float32)


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "()"

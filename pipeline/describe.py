"""A backbone's layers as the table that `featuremill describe` prints, and as a drawing. No Keras."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from pipeline.rendering.targets import check_targets
from transforms import storage
from transforms.committed import committed_file, held
from transforms.declared import check, declared
from transforms.errors import FeaturemillError, UsageError
from transforms.network.bases import base_of, describe, expect_size, file_kind, is_graph, layers, open_file
from transforms.network.vgg import TOP_IMAGE_SIZES, LayerInfo
from transforms.text import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEADER = ("name", "output shape", "parameters", "MACs", "tap bytes")
_COLOURS = {"conv": "#4c78a8", "pool": "#e45756", "flatten": "#9d9d9d", "dense": "#59a14f"}
_MEANINGS = {
    "conv": "convolution 3×3 + ReLU",
    "pool": "max pooling 2×2",
    "flatten": "flatten",
    "dense": "dense",
}


@dataclass(frozen=True)
class DescribeOptions:
    """The options of `describe`.

    Attributes:
        backbone: One of `bases.BASES`, or a file, of which the tensors or layers are listed that can be tapped.
    """

    backbone: str
    include_top: bool = declared(False, help="Show the dense layers, too")
    image_size: int | None = declared(None, help="Pixels on a side of the input", unset="the network's own")
    plot: str | None = declared(None, help="Draw the stack to a .png or .svg", metavar="FILE")
    overwrite: bool = declared(False, help="Replace files that are there")

    def __post_init__(self) -> None:
        check(self)


def describe_text(options: DescribeOptions) -> str:
    """Returns the table of the layers: name, output shape, parameters, multiply-accumulates, size of the tap.

    Raises:
        UsageError: No such backbone, or an image size below 32, or another than a file takes.
        FeaturemillError: The file can't be used.
    """
    backbone, include_top, image_size = options.backbone, options.include_top, options.image_size
    if file_kind(backbone):
        return _file_text(backbone, image_size)
    base = base_of(backbone)
    image_size = image_size or base.image_size
    expect_size(backbone, image_size)
    infos = describe(layers(backbone, include_top=include_top), image_size)
    parameters, macs = sum(info.parameters for info in infos), sum(info.macs for info in infos)
    rows = [
        (info.name, shape_text(info.output_shape), f"{info.parameters:,}", f"{info.macs:,}", f"{info.output_bytes:,}")
        for info in infos
    ]
    total = ("total", "", f"{parameters:,}", f"{macs:,}", "")
    lines = [_title(backbone, include_top, image_size), "", *_aligned([_HEADER, *rows, total]), ""]
    lines += [
        f"{parameters:,} parameters are {4 * parameters / 1e6:,.1f} MB as float32; "
        f"one image takes {2 * macs / 1e9:,.1f} GFLOP (2 for each multiply-accumulate).",
        "Tap bytes are one image's output as float32, which is what pool flatten stores; "
        "avg, max and gem store 4 for each channel.",
        f"Expected: {base.image_size}×{base.image_size} pixels, {base.resize}, {base.interpolation}, normalised "
        f"{base.normalise}; --feature {base.feature} ({base.width} numbers) unless named.",
    ]
    if include_top and image_size not in TOP_IMAGE_SIZES:
        lines.append(f"The published dense layers fit image sizes {TOP_IMAGE_SIZES[0]} to {TOP_IMAGE_SIZES[-1]} only.")
    return "\n".join(lines)


def _file_text(path: str, image_size: int | None) -> str:
    file = open_file(file_kind(path), path)
    side = file.image_size(image_size)
    taps = list(file.tappable(side))
    rows = [(tap.name, tap.text, f"{4 * math.prod(tap.shape):,}") for tap in taps]
    outputs = [f"--feature embedding={tap.name}:{tap.default_pool}" for tap in taps if tap.name in file.outputs]
    return "\n".join(
        [
            f"{path}, {side}×{side}×3 pixels in, {f'{file.batch} at once' if file.batch else 'any number at once'}",
            "",
            *_aligned([("tap", "of one image", "tap bytes"), *rows, ("", "", "")])[:-2],
            "",
            f"{file.parameters:,} parameters; SHA-256 of them and the graph {file.sha256}.",
            f"Its outputs: {', '.join(outputs) or 'none can be tapped'}.",
        ]
    )


def _title(backbone: str, include_top: bool, image_size: int) -> str:
    return f"{backbone} {'with' if include_top else 'without'} top, {image_size}×{image_size}×3 pixels in"


def shape_text(shape: Sequence[int]) -> str:
    """Returns `7×7×512`, or `25,088`."""
    return "×".join(f"{size:,}" for size in shape)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns header, rule, rows, rule, total; names to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *figures in rows:
        aligned = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *aligned]).rstrip())
    rule = "  ".join("─" * width for width in widths)
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def plot(options: DescribeOptions) -> None:
    """Draws the stack of layers: a box for each, as high as its output is wide, and as deep as it has channels.

    Raises:
        UsageError: A file that is there, another ending, no such folder or backbone, a backbone whose layers are a
            graph, or an image size below 32.
        FeaturemillError: The file can't be written.
    """
    backbone, include_top = options.backbone, options.include_top
    check_targets([], plot=options.plot, overwrite=options.overwrite)
    table, image_size = layers(backbone, include_top=include_top), options.image_size or base_of(backbone).image_size
    if is_graph(table):
        raise UsageError(f"{backbone} is no single stack of layers, so --plot can't draw it; leave --plot out")
    infos = describe(table, image_size)
    # Not pyplot: a figure of its own needs no display and leaves no state behind.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 6.4), facecolor="white")
    axes = figure.add_axes((0.01, 0.01, 0.98, 0.98))
    _draw(axes, infos, _title(backbone, include_top, image_size))
    path = storage.absolute(options.plot)
    try:
        with held(path), committed_file(path) as file:
            ending = os.path.splitext(path)[1].lower()[1:]
            figure.savefig(file, format=ending, dpi=120, bbox_inches="tight", pad_inches=0.15)
    except OSError as error:
        raise FeaturemillError(f"cannot write {path}: {one_line(error)}; choose another place") from error


def _draw(axes: "Axes", infos: Sequence[LayerInfo], title: str) -> None:
    x, side = 0.0, infos[0].input_shape[0]
    for block, members in groupby(infos, lambda info: info.name.split("_")[0]):
        members = list(members)
        start = x
        for info in members:
            x = _draw_layer(axes, info, x, side)
        _label_block(axes, block, members, (start + x) / 2)
        # A lone dense layer is narrower than its own label.
        x += 0.75 if len(members) > 1 else 1.3
    for kind, meaning in _MEANINGS.items():
        if any(info.layer.kind == kind for info in infos):
            axes.scatter([], [], marker="s", s=90, color=_COLOURS[kind], label=meaning)
    parameters, macs = sum(info.parameters for info in infos), sum(info.macs for info in infos)
    axes.set_title(
        f"{title}  ·  {parameters:,} parameters  ·  {2 * macs / 1e9:,.1f} GFLOP an image", y=0.93, fontsize=15
    )
    axes.legend(loc="upper right", bbox_to_anchor=(0.99, 0.9), frameon=False, fontsize=11)
    axes.set(aspect="equal", xlim=(-0.5, x), ylim=(-3.9, 4.1))
    axes.axis("off")


def _draw_layer(axes: "Axes", info: LayerInfo, x: float, side: int) -> float:
    """Draws one box in perspective from `x` on; returns where the next one starts."""
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Polygon

    shape = info.output_shape
    # Powers below 1, or block 5 would be a speck beside block 1.
    height = 4.2 * (shape[0] / side) ** 0.55 if len(shape) == 3 else 3.4 * (info.output_size / 25_088) ** 0.25
    width = 0.1 + 0.018 * shape[-1] ** 0.5 if len(shape) == 3 else 0.16
    depth = 0.22 * height if len(shape) == 3 else 0.07
    low, high = -height / 2, height / 2
    red, green, blue = to_rgb(_COLOURS.get(info.layer.kind, _COLOURS["flatten"]))
    faces = (
        (1.0, [(x, low), (x + width, low), (x + width, high), (x, high)]),
        (1.2, [(x, high), (x + width, high), (x + width + depth, high + depth), (x + depth, high + depth)]),
        (
            0.8,
            [(x + width, low), (x + width + depth, low + depth), (x + width + depth, high + depth), (x + width, high)],
        ),
    )
    for light, corners in faces:
        colour = [min(1, light * part) for part in (red, green, blue)]
        axes.add_patch(Polygon(corners, facecolor=colour, edgecolor="white", linewidth=0.8))
    return x + width + depth * 0.45 + 0.12


def _label_block(axes: "Axes", block: str, members: Sequence[LayerInfo], x: float) -> None:
    convs = sum(info.layer.kind == "conv" for info in members)
    parameters = sum(info.parameters for info in members)
    lines = [f"→ {shape_text(members[-1].output_shape)}"]
    if convs:
        lines.insert(0, f"{convs} conv {members[0].layer.units}, pool")
    if parameters:
        lines.append(f"{parameters:,}{' ' if convs else chr(10)}parameters")
    axes.text(x, -2.55, block, ha="center", va="top", fontsize=12, fontweight="bold")
    axes.text(x, -2.85, "\n".join(filter(None, lines)), ha="center", va="top", fontsize=9.5, linespacing=1.5)

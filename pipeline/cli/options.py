"""What the commands' options are made of: parameter types, and groups of options that several commands share."""

import logging
import os
from collections.abc import Callable
from typing import Any

import click

EXIT_FAILURES = 3


def set_up_logging(debug: bool) -> None:
    """Shows our warnings as lines for people; Beam's log and TensorFlow's chatter only with --debug."""
    if not debug:
        # Before TensorFlow is imported, and inherited by worker processes.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("featuremill: %(levelname)s: %(message)s"))
    if not debug:
        handler.addFilter(lambda record: record.name.startswith(("pipeline", "transforms")))
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, handlers=[handler], force=True)


class BeamCommand(click.Command):
    """A command whose arguments after `--` are Beam's; click would read them as inputs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            ctx.meta["beam_args"] = tuple(args[at + 1 :])
            args = args[:at]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] INPUT... --output OUT [-- BEAM OPTIONS]")


class Bytes(click.ParamType):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from pipeline.extraction.options import parse_bytes
        from transforms.errors import UsageError

        try:
            return value if isinstance(value, int) else parse_bytes(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


def debug_option(command: Callable) -> Callable:
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=lambda _context, _option, value: set_up_logging(value),
        help="Show tracebacks, and Beam's and TensorFlow's log.",
    )(command)


def together(*options: Callable) -> Callable:
    """Returns one decorator for several options, shown in this order."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


network_options = together(
    click.option("--backbone", default="vgg19", show_default=True, help="vgg19 or vgg16."),
    click.option(
        "--weights",
        default="imagenet",
        show_default=True,
        help="imagenet (Keras's own download), a path (.h5, .weights.h5, .keras), or random:SEED (never trained).",
    ),
    click.option("--include-top", is_flag=True, help="Load the dense layers too, for the taps fc1, fc2, predictions."),
    click.option(
        "--feature",
        "features",
        multiple=True,
        metavar="NAME=TAP:POOL",
        help="A column; repeatable. POOL is avg, max, gem or flatten.  [default: embedding=block5_pool:avg]",
    ),
    click.option("--dtype", default="float32", show_default=True, help="Stored numbers: float32 or float16."),
    click.option("--image-size", default=224, show_default=True, help="Pixels on a side."),
    click.option("--resize", default="squash", show_default=True, help="squash, crop or pad."),
    click.option(
        "--interpolation", default="bilinear", show_default=True, help="nearest, bilinear, bicubic or lanczos."
    ),
    click.option("--decode", default="exact", show_default=True, help="exact, or fast: large JPEGs at reduced scale."),
    click.option(
        "--exif/--no-exif", default=True, show_default=True, help="Turn images as their EXIF orientation says."
    ),
    click.option("--engine", default="auto", show_default=True, help="What computes the network: auto, keras or ncnn."),
    click.option("--precision", default="float32", show_default=True, help="Arithmetic: float32 or bfloat16."),
    click.option("--batch-size", type=int, help="Images per engine call.  [default: 8, ncnn: 8 a thread; 64 on a GPU]"),
    click.option("--threads", type=int, help="Engine threads per worker.  [default: the cores, shared out]"),
    click.option("--max-pixels", default=89_000_000, show_default=True, help="An image with more is a failure."),
)
field_options = together(
    click.option("--image-field", help="TFRecord key or Parquet column of the image.  [default: detected]"),
    click.option("--label-field", help="The same for the label; for tar: a member's ending or a key of .json."),
    click.option("--name-field", help="The same for the image's name, which goes into the key."),
)


class Numbers(click.ParamType):
    """Numbers with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            return value if isinstance(value, tuple) else tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} are not numbers with commas between them, such as 0.1,1,10", param, ctx)


def gather_fields(given: dict[str, Any]) -> dict[str, Any]:
    """Returns a command's options with those of `field_options` as one."""
    from transforms.shards import Fields

    given = dict(given)
    named = {name: given.pop(f"{name}_field") for name in ("image", "label", "name")}
    return {**given, "fields": Fields(**named)}


def failures_exit_code(rate: float, allowed: float, where: str) -> int:
    """Returns a command's exit code, after a line on standard error if too many images failed."""
    if rate <= allowed:
        return 0
    click.echo(
        f"featuremill: {rate:.2%} of the images failed, over --max-failure-rate {allowed:.2%}; see {where}", err=True
    )
    return EXIT_FAILURES

"""The command line: options in, exit code out. Each command is thin; its work is in the module of its name.

Only click is imported at the top, so that `--help` is instant.
"""

import errno
import json
import os
import re
import sys
import traceback
from typing import Any

import click

from pipeline import cli_heads, cli_look, cli_pages
from pipeline.cli_options import (
    BeamCommand,
    Bytes,
    debug_option,
    failures_exit_code,
    field_options,
    gather_fields,
    network_options,
)

EXIT_INTERRUPTED = 130
# Commands that commit as they go; the others write at their end.
_RESUMED = (["extract"], ["predict"], ["compact"])
# Of what the system itself says where no module has said it better.
_CURES = {
    errno.EACCES: "mend the permissions",
    errno.EPERM: "mend the permissions",
    errno.EROFS: "choose a place that can be written",
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="featuremill")
def cli() -> None:
    """Batch feature extraction with frozen VGG networks: image shards in, Parquet out, every image accounted for."""


@cli.command(cls=BeamCommand)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--output", "-o", required=True, metavar="OUT", help="Folder for the features; created, or continued.")
@network_options
@click.option("--workers", default=1, show_default=True, help="Worker processes on this machine.")
@click.option("--runner", default="FnApiRunner", show_default=True, help="Beam's runner; its options follow --.")
@click.option("--unit-bytes", type=Bytes(), default="256MiB", show_default=True, help="Split larger shards.")
@field_options
@click.option("--prune", is_flag=True, help="Remove parts whose input changed or vanished.")
@click.option("--retry-failed", is_flag=True, help="Do units with failures again.")
@click.option("--overwrite", is_flag=True, help="Remove what OUT holds first (asks).")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--max-failure-rate", default=1.0, show_default=True, help="A larger share of failures is exit code 3.")
@click.option("--limit", type=int, metavar="N", help="Only the first N images; OUT is then a sample.")
@click.option("--quiet", "-q", is_flag=True, help="Neither plan nor progress.")
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON on standard output.")
@debug_option
@click.pass_context
def extract(ctx: click.Context, **given: Any) -> int:
    """Embed every image of the INPUTs, once, and store the features in OUT as Parquet.

    INPUT is a TFRecord, WebDataset tar or Parquet shard, an image, a folder (a sub-folder is a class), a glob (also
    quoted, also with {000..099}), or @list.txt with a path per line, in any mix. Run the same command again to resume,
    to add inputs, or to do nothing.

    Exit codes: 0 complete, 1 error, 2 usage, 3 too many failures, 130 interrupted.
    """
    from pipeline.extraction.options import ExtractOptions
    from pipeline.extraction.output import holds_features
    from pipeline.extraction.run import run
    from pipeline.extraction.summary import summary_json, summary_text

    quiet, as_json, yes = given.pop("quiet"), given.pop("as_json"), given.pop("yes")
    options = ExtractOptions(**_settings(given), beam_args=ctx.meta.get("beam_args", ()))
    if options.overwrite and not yes and holds_features(options.output):
        _confirm_removal(options.output)
    summary = run(options, say=(lambda line: None) if quiet else (lambda line: click.echo(line, err=True)), quiet=quiet)
    if summary is None:
        click.echo("job written; when it is done, run the same command without --template_location", err=True)
        return 0
    click.echo(json.dumps(summary_json(summary), indent=2) if as_json else summary_text(summary))
    return failures_exit_code(summary.failure_rate, options.max_failure_rate, f"{options.output}/failures")


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the shared options as `ExtractOptions` takes them."""
    return {name: value for name, value in gather_fields(given).items() if name != "features" or value}


def _confirm_removal(output: str) -> None:
    from transforms.errors import FeaturemillError

    try:
        agreed = click.confirm(f"Remove the features in {output}?", err=True)
    except click.Abort:
        agreed = False
    if not agreed:
        raise FeaturemillError("nothing was removed; choose another --output, or pass --yes")


@cli.command()
@click.argument("output", metavar="OUT")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@debug_option
def inspect(output: str, as_json: bool) -> int:
    """Show what OUT holds and check that parts, footers and manifest agree (exit code 1 if not)."""
    from pipeline.maintenance import inspect as module

    inspection = module.inspect(output)
    if as_json:
        click.echo(json.dumps(module.inspection_json(inspection), indent=2))
    else:
        click.echo(module.inspection_text(inspection))
    return 1 if inspection.problems else 0


@cli.command()
@click.argument("output", metavar="OUT")
@click.option("--target-bytes", type=Bytes(), default="256MB", show_default=True, help="Size of a merged part.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@debug_option
def compact(output: str, target_bytes: int, as_json: bool) -> int:
    """Merge OUT's small parts into larger ones, sorted by key. Rows, books and resume stay what they are."""
    from pipeline.maintenance import compact as module

    summary = module.compact(output, target_bytes=target_bytes, say=lambda line: click.echo(line, err=True))
    click.echo(json.dumps(module.compact_json(summary), indent=2) if as_json else module.compact_text(summary))
    return 0


@cli.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@network_options
@field_options
@click.option("--images", default=200, show_default=True, metavar="N", help="At most so many are measured.")
@click.option("--seconds", default=20.0, show_default=True, help="Measuring takes about as long, loading comes on top.")
@click.option("--dataflow-workers", "workers", type=int, metavar="N", help="Say what N workers elsewhere would take.")
@click.option("--worker-rate", type=float, metavar="IMAGES_PER_S", help="Of one worker.  [default: this machine's]")
@click.option("--worker-price", type=float, metavar="DOLLARS_PER_HOUR", help="Of one worker.  [default: not said]")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@debug_option
def estimate(as_json: bool, **given: Any) -> int:
    """Embed a sliver of the INPUTs; say what all of them would take, in hours and bytes, and what the bottleneck is.

    Nothing is stored. Shards are sampled from their start; how many images a TFRecord or tar holds is estimated from
    its bytes.
    """
    from pipeline.extraction import estimate as module
    from pipeline.extraction.options import ExtractOptions

    asked = {name: given.pop(name) for name in ("images", "seconds")}
    workers = module.workers_asked(*(given.pop(name) for name in ("workers", "worker_rate", "worker_price")))
    options = ExtractOptions(**_settings(given), output=module.NO_OUTPUT)
    found = module.estimate(options, **asked, workers=workers)
    click.echo(json.dumps(module.estimate_json(found), indent=2) if as_json else module.estimate_text(found))
    return 0


@cli.command()
@click.argument("output", metavar="OUT")
@click.option("--sample", default=32, show_default=True, metavar="N", help="How many rows; all if there are fewer.")
@click.option("--engine", default="auto", show_default=True, help="What embeds them: auto, keras or ncnn.")
@click.option("--weights", help="Where the weights are now.  [default: where they were]")
@click.option(
    "--tolerance",
    type=float,
    help="Largest drift, as a share of a vector's largest value.  "
    "[default: 1e-4; 1e-3 if stored as float16; 2e-2 at bfloat16]",
)
@click.option("--seed", default=0, show_default=True, help="Another one draws other rows.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@debug_option
def verify(output: str, as_json: bool, **given: Any) -> int:
    """Embed a random sample of OUT's rows again, from their sources, and compare.

    Exit code 1 if one drifts by more than the tolerance, or its source is gone or changed.
    """
    from pipeline.maintenance import verify as module

    verification = module.verify(output, **given)
    if as_json:
        click.echo(json.dumps(module.verification_json(verification), indent=2))
    else:
        click.echo(module.verification_text(verification))
    return 0 if verification.ok else 1


@cli.command()
@click.argument("backbone")
@click.option("--include-top", is_flag=True, help="With the dense layers.")
@click.option("--image-size", default=224, show_default=True, help="Pixels on a side.")
@click.option("--plot", metavar="FILE", help="Draw the stack to a .png or .svg.")
@debug_option
def describe(backbone: str, include_top: bool, image_size: int, plot: str | None) -> int:
    """Show BACKBONE's layers: names to tap, shapes, parameters, multiply-adds, bytes of a tap."""
    from pipeline import describe as module

    text = module.describe_text(backbone, include_top=include_top, image_size=image_size)
    if plot:
        module.plot(backbone, plot, include_top=include_top, image_size=image_size)
    click.echo(text)
    return 0


for _command in (*cli_heads.COMMANDS, *cli_look.COMMANDS, *cli_pages.COMMANDS):
    cli.add_command(_command)


def run_cli(args: list[str]) -> int:
    """Runs the command line and returns its exit code; every error becomes one line on standard error."""
    try:
        return cli.main(args, prog_name="featuremill", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SystemExit as error:
        # click ends so when nobody reads its output any more.
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        if "--debug" in args:
            traceback.print_exc()
        code, message = _explain(error, args)
        # A file's name may hold line breaks.
        click.echo("featuremill: " + re.sub(r"[\x00-\x1f\x7f]", lambda c: repr(c[0])[1:-1], message), err=True)
        return code


def _explain(error: BaseException, args: list[str]) -> tuple[int, str]:
    from transforms.errors import FeaturemillError, UsageError

    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        kept = "what was committed is kept: run the same command again to go on"
        return EXIT_INTERRUPTED, f"interrupted; {kept if args[:1] in _RESUMED else 'what was written is whole'}"
    if isinstance(error, FeaturemillError):
        return (2 if isinstance(error, UsageError) else 1), str(error)
    cure = _CURES.get(error.errno) if isinstance(error, OSError) else None
    if cure:
        return 1, f"{' '.join(str(error).split())}; {cure}"
    return 1, f"{type(error).__name__}: {' '.join(str(error).split())}; run with --debug for the traceback"


def main() -> None:
    """The console script."""
    # A copy of the descriptor for our own lines: while TensorFlow is imported its chatter is held back there, and what
    # is said then, such as what Ctrl-C left behind, would be held back with it.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    code = run_cli(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        # Not sys.exit: after Ctrl-C or a killed worker, Beam's threads would keep the process alive for good.
        os._exit(code)


if __name__ == "__main__":
    main()

"""The commands from images to features: extract, estimate, describe."""

from typing import Any

import click

from pipeline.cli.options import (
    BeamCommand,
    Chosen,
    OptionsCommand,
    debug_option,
    echo,
    failures_exit_code,
    gathered,
    json_option,
    saying,
    show,
    written,
)


@click.command(cls=BeamCommand, options="pipeline.extraction.options:ExtractOptions")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--quiet", "-q", is_flag=True, help="Show neither plan nor progress.")
@json_option
@debug_option
@click.pass_context
def extract(ctx: click.Context, **given: Any) -> int:
    """Embed every image of the INPUTs, once, and store the features in OUT as Parquet.

    INPUT is a TFRecord, WebDataset tar or Parquet shard, an image, a folder (a sub-folder is a class), a glob (also
    quoted, also with {000..099}), or @list.txt with a path per line, in any mix. Run it again to resume, to add inputs,
    or to do nothing; what decides the numbers is then taken from OUT, unless it is named.

    Exit codes: 0 complete, 1 error, 2 usage, 3 too many failures, 130 interrupted.
    """
    from pipeline.extraction.options import ExtractOptions
    from pipeline.extraction.resumed import resumed
    from pipeline.extraction.run import run
    from pipeline.extraction.summary import summary_json, summary_text
    from transforms.store.output import Output

    quiet, as_json, yes = given.pop("quiet"), given.pop("as_json"), given.pop("yes")
    options = gathered(ExtractOptions, given, beam_args=ctx.meta.get("beam_args", ()))
    named = [name for name in given if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT]
    options = resumed(options, named, say=saying(quiet=quiet))
    if options.overwrite and not yes and Output(options.output).holds_features:
        _confirm_removal(options.output)
    summary = run(options, say=saying(quiet=quiet), quiet=quiet)
    if summary is None:
        echo("job written; when it is done, run the same command without --template_location", err=True)
        return 0
    show(summary, summary_json, summary_text, as_json=as_json)
    return failures_exit_code(summary.failure_rate, options.max_failure_rate, f"{options.output}/failures")


# Options of extract about the output and the run; of a sample nothing is stored.
_OF_A_RUN = (
    *("keep", "workers", "runner", "unit_bytes", "max_failure_rate"),
    *("prune", "retry_failed", "overwrite", "limit", "add_feature"),
)


@click.command(cls=OptionsCommand, options="pipeline.extraction.estimate:EstimateOptions", without=_OF_A_RUN)
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@json_option
@debug_option
def estimate(as_json: bool, **given: Any) -> int:
    """Embed a sample of the INPUTs; say what all of them would take, in hours and bytes, and what the bottleneck is.

    Nothing is stored. Shards are sampled from their start; how many images a TFRecord or tar holds is estimated from
    its bytes.
    """
    from pipeline.extraction import estimate as module

    found = module.estimate(gathered(module.EstimateOptions, given))
    return show(found, module.estimate_json, module.estimate_text, as_json=as_json)


@click.command(cls=OptionsCommand, options="pipeline.describe:DescribeOptions")
@click.argument("backbone", type=Chosen("transforms.network.bases:BASES"))
@debug_option
def describe(**given: Any) -> int:
    """Show BACKBONE's layers: names to tap, shapes, parameters, multiply-adds, bytes of a tap.

    BACKBONE is a name, FILE.keras or FILE.onnx, of which the layers or tensors are shown that can be tapped.
    """
    from pipeline import describe as module

    options = module.DescribeOptions(**given)
    text = module.describe_text(options)
    if options.plot:
        module.plot(options)
    echo(text)
    if options.plot:
        echo(written(options.plot), err=True)
    return 0


def _confirm_removal(output: str) -> None:
    from transforms.errors import FeaturemillError

    try:
        agreed = click.confirm(f"Remove the features in {output}?", err=True)
    except click.Abort:
        agreed = False
    if not agreed:
        raise FeaturemillError("nothing was removed; choose another --output, or pass --yes")


COMMANDS = (extract, estimate, describe)

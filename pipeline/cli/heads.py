"""The commands from stored features to a head and its predictions: train, predict, compare, suspects,
export, finetune."""

from typing import Any

import click

from pipeline.cli.options import (
    EXIT_INTERRUPTED,
    OptionsCommand,
    debug_option,
    echo,
    failures_exit_code,
    gathered,
    hand_out,
    json_option,
    result_options,
    saying,
    show,
)


@click.command(cls=OptionsCommand, options="pipeline.training.options:TrainOptions")
@click.argument("features", metavar="FEATURES")
@click.option("--compare", metavar="KIND,KIND...", help="Train several on one split, rank them, keep the best.")
@json_option
@click.option("--quiet", "-q", is_flag=True, help="Show only the result.")
@debug_option
@click.pass_context
def train(ctx: click.Context, compare: str | None, as_json: bool, quiet: bool, **given: Any) -> int:
    """Train a head on stored FEATURES, judge it on rows it hasn't seen, and save it with a report.

    FEATURES is what `extract` wrote, or any Parquet with a column of vectors. ridge is a closed form, logistic a
    multinomial regression, linear, dense128 and dense256 are trained by Adam, knn compares by cosine.
    """
    from pipeline.training import run as module
    from pipeline.training.options import TrainOptions

    if compare:
        if ctx.get_parameter_source("kinds") is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError("--head and --compare both say what to train; give one of them")
        given["kinds"] = tuple(part.strip() for part in compare.split(","))
    options = gathered(TrainOptions, given)
    trained = module.train(options, say=saying(quiet=quiet))
    return show(trained, module.trained_json, module.trained_text, as_json=as_json)


@click.command(cls=OptionsCommand, options="pipeline.prediction.options:PredictOptions")
@click.argument("names", nargs=-1, required=True, metavar="[HEAD] INPUT...")
@click.option("--head", metavar="HEAD", help="The head, instead of the first argument; imagenet is ImageNet's own.")
@json_option
@click.option("--quiet", "-q", is_flag=True, help="Show neither plan nor progress.")
@debug_option
def predict(names: tuple[str, ...], head: str | None, as_json: bool, quiet: bool, **given: Any) -> int:
    """Label images or stored features with a HEAD that `train` made, or with ImageNet's own.

    INPUT is what `extract` takes, embedded with the head's own spec, or features, whose fingerprint must be the head's.
    Run the same command again to go on after a crash.

    Exit codes: 0 complete, 1 error, 2 usage, 3 too many failures, 130 interrupted.
    """
    from pipeline.prediction import run as module
    from pipeline.prediction.options import PredictOptions
    from pipeline.prediction.summary import summary_json, summary_text

    if head is None:
        head, *names = names
        if not names:
            raise click.UsageError("Missing argument 'INPUT...'; write predict HEAD INPUT...")
    options = gathered(PredictOptions, given, head=head, inputs=tuple(names))
    try:
        summary = module.predict(options, say=saying(quiet=quiet), quiet=quiet)
    except KeyboardInterrupt:
        if options.output is not None:
            raise
        # All was in a temporary folder: there is nothing to go on with.
        echo("featuremill: interrupted", err=True)
        return EXIT_INTERRUPTED
    show(summary, summary_json, summary_text, as_json=as_json)
    where = "the reasons above" if options.is_file else f"{options.output}/failures"
    return failures_exit_code(summary.failure_rate, options.max_failure_rate, where)


@click.command(cls=OptionsCommand, options="pipeline.prediction.compare:CompareOptions")
@click.argument("names", nargs=-1, required=True, metavar="HEAD HEAD... [FEATURES]")
@json_option
@debug_option
def compare(names: tuple[str, ...], as_json: bool, **given: Any) -> int:
    """Judge several HEADs on the same rows, none of which any of them has seen: who is better, and how sure that is.

    Without FEATURES these are the rows that the first HEAD was trained on, of which only test rows count: train with
    --test-fraction, and the next one with --test-of HEAD.
    """
    from pipeline.prediction import compare as module
    from transforms import storage

    *heads, last = names
    if storage.stat(storage.join(storage.absolute(last), "head.json")):
        heads, last = names, None
    found = module.compare(module.CompareOptions(heads=tuple(heads), features=last, **given))
    return show(found, module.comparison_json, module.comparison_text, as_json=as_json)


@click.command(cls=OptionsCommand, options="pipeline.training.suspects:SuspectOptions")
@click.argument("features", metavar="OUT")
@result_options
@click.option("--quiet", "-q", is_flag=True, help="Show only the result.")
@debug_option
def suspects(rows: str | None, page: str | None, overwrite: bool, as_json: bool, quiet: bool, **given: Any) -> int:
    """Find rows of OUT whose label is probably wrong: by confident learning, and by near copies of other labels.

    Each row is judged by heads that haven't seen it. On the page labels can be corrected and saved as CSV, which
    `train --labels FILE --labels-mode update` takes as it is.
    """
    from pipeline.rendering.targets import check_targets
    from pipeline.training import suspects as module
    from transforms.committed import held

    check_targets([given["features"]], rows=rows, page=page, overwrite=overwrite)
    with held(rows, page):
        found = module.find_suspects(module.SuspectOptions(**given), say=saying(quiet=quiet))
        writers = ((rows, module.write_suspects), (page, module.write_suspects_page))
        return hand_out(found, writers, module.suspects_json, module.suspects_text, as_json=as_json)


@click.command(cls=OptionsCommand, options="pipeline.end_to_end.export:ExportOptions")
@click.argument("head", metavar="HEAD")
@debug_option
def export(**given: Any) -> int:
    """Join the network and a HEAD into one Keras model that takes uint8 RGB images of any size.

    A SavedModel also has a signature that takes the bytes of JPEG and PNG files.
    """
    from pipeline.end_to_end import export as module

    echo(module.export_text(module.export(module.ExportOptions(**given), say=saying())))
    return 0


@click.command(cls=OptionsCommand, options="pipeline.end_to_end.options:FinetuneOptions")
@click.argument("head", metavar="HEAD")
@click.argument("features", metavar="FEATURES")
@json_option
@click.option("--quiet", "-q", is_flag=True, help="Show only the result.")
@debug_option
def finetune(as_json: bool, quiet: bool, **given: Any) -> int:
    """Train the upper layers of the network too, starting from a HEAD and the FEATURES it was trained on.

    The start is a head of HEAD's kind and settings, fitted anew on the rows that train here. Others choose the epoch
    (or the start itself, where none is better), and those that judge are seen by neither. Class weights are HEAD's.

    Where FEATURES hold the tap below the first unfrozen layer, flattened (for block5: block4_pool:flatten), the frozen
    layers are never computed again; else the images are read again from their sources. With --mirror they always are:
    a stored tap can't be mirrored. Images that choose or judge are never mirrored.

    After each epoch NEW_HEAD.checkpoint is written, and removed at the end. Ctrl-C saves the best epoch so far as
    NEW_HEAD; after that, and after a crash, the same command with --resume goes on as if it had never stopped.

    Exit codes: 0 complete, 1 error, 2 usage, 130 interrupted.
    """
    from pipeline.end_to_end import finetune as module
    from pipeline.end_to_end.options import FinetuneOptions

    summary = module.finetune(FinetuneOptions(**given), say=saying(quiet=quiet), quiet=quiet)
    show(summary, module.finetuned_json, module.finetuned_text, as_json=as_json)
    return EXIT_INTERRUPTED if summary.tuning.interrupted else 0


COMMANDS = (train, predict, suspects, compare, finetune, export)

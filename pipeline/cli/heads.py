"""The commands from stored features to a head and its predictions: train, predict, export, finetune."""

import json
from typing import Any

import click

from pipeline.cli.options import (
    Bytes,
    Numbers,
    debug_option,
    failures_exit_code,
    field_options,
    gather_fields,
)


@click.command()
@click.argument("features", metavar="FEATURES")
@click.option("--output", "-o", required=True, metavar="HEAD", help="Folder for the head.")
@click.option(
    "--head",
    "kind",
    help="ridge, logistic, linear, dense128, dense256 or knn.  [default: ridge]",
)
@click.option("--compare", metavar="KIND,KIND...", help="Train several on one split, rank them, keep the best.")
@click.option("--test-fraction", "test", default=0.0, show_default=True, help="Share of the rows to judge by.")
@click.option("--folds", type=int, metavar="K", help="Judge every row once, by a head that K-1 folds made.")
@click.option("--standardize", is_flag=True, help="Scale each number to mean 0 and variance 1 of the training rows.")
@click.option("--class-weights", is_flag=True, help="Let rare classes count as much as frequent ones.")
@click.option("--penalties", type=Numbers(), help="L2 penalties to choose from.  [default: 20 from 1e-4 to 1e4]")
@click.option("--neighbours", default=10, show_default=True, help="Of knn.")
@click.option(
    "--feature",
    "--feature-column",
    "columns",
    multiple=True,
    metavar="NAME",
    help="Column of vectors; several are put one behind the other.  [default: embedding]",
)
@click.option("--labels", metavar="FILE", help="CSV or Parquet with labels by key.  [default: the features' own]")
@click.option("--label-column", default="label", show_default=True, help="Its name.")
@click.option("--key-column", default="key", show_default=True, help="Its name.")
@click.option(
    "--group-column",
    help="Rows with one value of it stay on one side, such as a patient or a flat. Of --labels FILE, or else FEATURES.",
)
@click.option("--split-column", help="Says train, validation or test for each row. Of --labels FILE, or else FEATURES.")
@click.option("--val-fraction", "validation", default=0.2, show_default=True, help="Share of rows to choose by.")
@click.option("--near-duplicates", type=float, metavar="COSINE", help="Keep rows as alike as that on one side.")
@click.option("--seed", default=0, show_default=True, help="Of split, fit and intervals.")
@click.option("--learning-rate", type=float, help="Of Adam.  [default: 0.001]")
@click.option("--batch-size", type=int, help="Rows per step of Adam.  [default: 64]")
@click.option("--epochs", type=int, help="At most so many.  [default: 100]")
@click.option("--patience", type=int, help="Epochs without a better validation loss before it stops.  [default: 5]")
@click.option("--learning-curve/--no-learning-curve", default=True, show_default=True, help="Try fewer rows too.")
@click.option("--overwrite", is_flag=True, help="Replace the head that is there.")
@click.option("--json", "as_json", is_flag=True, help="The judgement as JSON on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Only the result.")
@debug_option
def train(kind: str | None, compare: str | None, as_json: bool, quiet: bool, **given: Any) -> int:
    """Train a head on stored FEATURES, judge it on rows it hasn't seen, and save it with a report.

    FEATURES is what `extract` wrote, or any Parquet with a column of vectors. ridge is a closed form, logistic a
    multinomial regression, linear, dense128 and dense256 are trained by Adam, knn compares by cosine.
    """
    from pipeline.training import run as module
    from pipeline.training.options import TrainOptions
    from transforms.heads import FitSettings

    names = ("seed", "standardize", "class_weights", "penalties", "neighbours")
    chosen = {name: given.pop(name) for name in (*names, "learning_rate", "batch_size", "epochs", "patience")}
    settings = FitSettings(**{name: value for name, value in chosen.items() if value is not None})
    if compare and kind:
        raise click.UsageError("--head and --compare both say what to train; give one of them")
    kinds = tuple(part.strip() for part in compare.split(",")) if compare else (kind or "ridge",)
    options = TrainOptions(kinds=kinds, settings=settings, **given)
    trained = module.train(options, say=_say(quiet))
    click.echo(json.dumps(module.trained_json(trained), indent=2) if as_json else module.trained_text(trained))
    return 0


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="[HEAD] INPUT...")
@click.option("--head", metavar="HEAD", help="The head, instead of the first argument; imagenet is ImageNet's own.")
@click.option("--output", "-o", metavar="PRED", help="Folder for the predictions.  [default: the first are shown]")
@click.option("--top", default=5, show_default=True, help="Classes to a row.")
@click.option("--probabilities", is_flag=True, help="All classes' probabilities, too.")
@click.option("--evaluate", is_flag=True, help="Judge the predictions by the true labels.")
@click.option("--labels", metavar="FILE", help="CSV or Parquet with true labels by key.  [default: the inputs' own]")
@click.option("--label-column", default="label", show_default=True, help="Its name.")
@click.option("--key-column", default="key", show_default=True, help="Its name.")
@click.option(
    "--feature",
    "--feature-column",
    "feature_columns",
    multiple=True,
    metavar="NAME",
    help="Column of vectors, where INPUT is features.  [default: those of the head]",
)
@click.option("--weights", help="Where the network's weights are now.  [default: where they were]")
@click.option("--backbone", help="Of ImageNet's head: vgg19 or vgg16.  [default: vgg19]")
@click.option("--keep-features", is_flag=True, help="Leave the images' features in PRED/features.")
@click.option("--engine", default="auto", show_default=True, help="What computes the network: auto, keras or ncnn.")
@click.option("--batch-size", type=int, help="Images per engine call.")
@click.option("--threads", type=int, help="Engine threads per worker.  [default: the cores, shared out]")
@click.option("--workers", default=1, show_default=True, help="Worker processes on this machine.")
@click.option("--unit-bytes", type=Bytes(), default="256MiB", show_default=True, help="Split larger shards.")
@field_options
@click.option("--max-pixels", default=89_000_000, show_default=True, help="An image with more is a failure.")
@click.option("--max-failure-rate", default=1.0, show_default=True, help="A larger share of failures is exit code 3.")
@click.option("--overwrite", is_flag=True, help="Remove what PRED holds first.")
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Neither plan nor progress.")
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
    options = PredictOptions(head=head, inputs=tuple(names), **gather_fields(given))
    try:
        summary = module.predict(options, say=_say(quiet), quiet=quiet)
    except KeyboardInterrupt:
        if options.output is not None:
            raise
        # All was in a temporary folder: there is nothing to go on with.
        click.echo("featuremill: interrupted", err=True)
        return 130
    click.echo(json.dumps(summary_json(summary), indent=2) if as_json else summary_text(summary))
    return failures_exit_code(summary.failure_rate, options.max_failure_rate, f"{options.output}/failures")


@click.command()
@click.argument("head", metavar="HEAD")
@click.option("--output", "-o", required=True, metavar="MODEL", help="A .keras file, or a folder for a SavedModel.")
@click.option("--weights", help="Where the network's weights are now.  [default: where they were]")
@click.option("--overwrite", is_flag=True, help="Replace the model that is there.")
@debug_option
def export(head: str, **given: Any) -> int:
    """Join the network and a HEAD into one Keras model that takes uint8 RGB images of any size.

    A SavedModel also has a signature that takes the bytes of JPEG and PNG files.
    """
    from pipeline.end_to_end import export as module

    click.echo(module.export_text(module.export(head, **given, say=lambda line: click.echo(line, err=True))))
    return 0


@click.command()
@click.argument("head", metavar="HEAD")
@click.argument("features", metavar="FEATURES")
@click.option("--output", "-o", required=True, metavar="NEW_HEAD", help="Folder for the new head and its weights.")
@click.option(
    "--unfreeze",
    default="block5",
    show_default=True,
    help="A block, how many layers from the top of the base (5, 7; poolings count), or all.",
)
@click.option("--source", default="auto", show_default=True, help="taps, images, or auto: taps where they are stored.")
@click.option("--labels", metavar="FILE", help="CSV or Parquet with labels by key.  [default: those of the head]")
@click.option("--weights", help="Where the network's weights are now.  [default: where they were]")
@click.option("--learning-rate", default=1e-5, show_default=True, help="Of Adam.")
@click.option("--batch-size", default=16, show_default=True, help="Rows per step.")
@click.option("--epochs", default=10, show_default=True, help="At most so many.")
@click.option(
    "--patience", default=3, show_default=True, help="Epochs without a better validation loss before it stops."
)
@click.option("--seed", default=0, show_default=True, help="Of shuffling and dropout; the split is the head's.")
@click.option("--overwrite", is_flag=True, help="Replace the head that is there.")
@click.option("--json", "as_json", is_flag=True, help="The judgement as JSON on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="Only the result.")
@debug_option
def finetune(as_json: bool, quiet: bool, **given: Any) -> int:
    """Train the upper layers of the network too, starting from a HEAD and the FEATURES it was trained on.

    Where FEATURES hold the tap below the first unfrozen layer, flattened (for block5: block4_pool:flatten), the frozen
    layers are never computed again; else the images are read again from their sources.
    """
    from pipeline.end_to_end import finetune as module
    from pipeline.end_to_end.options import FinetuneOptions

    summary = module.finetune(FinetuneOptions(**given), say=_say(quiet))
    click.echo(json.dumps(module.finetuned_json(summary), indent=2) if as_json else module.finetuned_text(summary))
    return 0


def _say(quiet: bool) -> Any:
    return (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))


COMMANDS = (train, predict, export, finetune)

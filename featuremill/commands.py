"""The commands as functions, with keyword arguments that are named as the options on the command line.

No option is listed here a second time: keywords, their defaults and what `help` shows of them come from the options
classes. So a type checker knows the paths and the results, and leaves the other keywords to be checked when called.
"""

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeAlias, get_origin

from pipeline.exploration import query as exploration
from pipeline.exploration.query import Found, QueryOptions
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.resumed import resumed
from pipeline.extraction.run import run
from pipeline.extraction.summary import Summary
from pipeline.prediction import run as prediction
from pipeline.prediction.options import PredictOptions
from pipeline.prediction.summary import PredictSummary
from pipeline.runners.dataflow import is_template
from pipeline.training import run as training
from pipeline.training.options import TrainOptions
from pipeline.training.run import Trained
from transforms.declared import flags
from transforms.errors import FeaturemillError, UsageError
from transforms.text import did_you_mean, shown

Place: TypeAlias = str | os.PathLike[str]


def _declared(options: type) -> Iterator[tuple[str, str, Field]]:
    """Yields (name of the option, field of `options` that holds it as an object or "", its own field).

    Fields marked as internal are no options: a run sets them itself.
    """
    for own in fields(options):
        if is_dataclass(own.default_factory):
            yield from ((name, own.name, inner) for name, _, inner in _declared(own.default_factory))
        elif not own.metadata.get("internal"):
            option = own.metadata.get("option")
            yield flags(own.name, option)[0][2:].replace("-", "_") if option else own.name, "", own


def _takes(options: type) -> Callable[[Callable], Callable]:
    """Returns a decorator that puts the options of a class into a function's signature, for `help` and editors."""

    def decorate(function: Callable) -> Callable:
        known = inspect.signature(function)
        own = {name: p for name, p in known.parameters.items() if p.kind is not p.VAR_KEYWORD}
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=declared.default, annotation=declared.type)
            for name, _, declared in _declared(options)
            if name not in own and declared.default is not MISSING
        ]
        function.__signature__ = known.replace(parameters=[*own.values(), *more])
        return function

    return decorate


def _build(options: type, given: Mapping[str, Any], **fixed: Any) -> Any:
    """Returns an options object from keywords; single values and lists become tuples, paths become text.

    Raises:
        UsageError: A value that can't be.
        TypeError: No such option.
    """
    declared = {name: (outer, own) for name, outer, own in _declared(options) if own.name not in fixed}
    values: dict[str, dict[str, Any]] = {"": dict(fixed)}
    for name, value in given.items():
        if name not in declared:
            raise TypeError(f"no option {name!r}{did_you_mean(name, declared)}")
        outer, own = declared[name]
        values.setdefault(outer, {})[own.name] = _plain(value, own)
    for outer in values.keys() - {""}:
        [inner] = [own.default_factory for own in fields(options) if own.name == outer]
        values[""][outer] = inner(**values[outer])
    return options(**values[""])


def _plain(value: Any, declared: Field) -> Any:
    if get_origin(declared.type) is tuple:
        return _texts(value if isinstance(value, list | tuple) else (value,))
    return _texts((value,))[0]


def _texts(values: Iterable[Any]) -> tuple[Any, ...]:
    """Returns the values, paths as text."""
    return tuple(os.fspath(value) if isinstance(value, os.PathLike) else value for value in values)


def _say(quiet: bool) -> Callable[[str], None]:
    return (lambda line: None) if quiet else (lambda line: print(shown(line), file=sys.stderr, flush=True))


def _check_failures(summary: Summary | PredictSummary, allowed: float) -> None:
    if summary.failure_rate == 1:
        raise FeaturemillError(f"all images failed; see {summary.output}/failures")
    if summary.failure_rate > allowed:
        raise FeaturemillError(
            f"{summary.failure_rate:.2%} of the images failed, over max_failure_rate {allowed:.2%}; "
            f"see {summary.output}/failures"
        )


@_takes(ExtractOptions)
def extract(*inputs: Place, output: Place, quiet: bool = False, **options: Any) -> Summary:
    """Embeds every image of the inputs, once, and stores the features as Parquet; again, it goes on where it stopped.

    An image that crashes its decoder ends the Python that calls this. Called again it goes on, and that image is a
    failure; the command `featuremill extract` does so by itself.

    Example:
        >>> summary = featuremill.extract("photos", output="features", weights="random:0", image_size=32)
        >>> print(summary)  # doctest: +ELLIPSIS
        read 84 = embedded 80 + failed 4
        ...
        >>> summary.totals.rows_embedded
        80

    Args:
        inputs: Shards, images, folders (a sub-folder is a class), globs, `@list.txt`.
        output: Folder for the features; created, or continued.
        quiet: Neither plan nor progress on standard error.
        options: See `featuremill extract --help`; Beam's own go into `beam_args`. `overwrite` doesn't ask.

    Raises:
        FeaturemillError: With the thing, the cause and the cure, over `max_failure_rate` or all failed; what was
            committed is kept.
    """
    asked: ExtractOptions = _build(ExtractOptions, options, inputs=_texts(inputs), output=os.fspath(output))
    if is_template(asked.beam_args):
        raise UsageError("--template_location writes a job and runs nothing; use the command, featuremill extract")
    named = [own.name for name, _, own in _declared(ExtractOptions) if name in options]
    asked = resumed(asked, named, say=_say(quiet))
    summary = run(asked, say=_say(quiet), quiet=quiet)
    _check_failures(summary, asked.max_failure_rate)
    return summary


@_takes(TrainOptions)
def train(
    features: Place, *, output: Place, compare: Sequence[str] = (), quiet: bool = False, **options: Any
) -> Trained:
    """Trains a head on stored features, judges it on rows it hasn't seen, and saves it with a report.

    Example:
        >>> trained = featuremill.train("features", output="head", head="ridge", val_fraction=0.5)
        >>> trained.head.model.kind, trained.head.classes
        ('ridge', ('checker', 'disc', 'square', 'stripes'))

    Args:
        features: What `extract` wrote, or Parquet with a column of vectors.
        output: Folder for the head.
        compare: Kinds of heads to compare; the best is kept.
        quiet: No facts on the data on standard error.
        options: See `featuremill train --help`.

    Raises:
        FeaturemillError: With the thing, the cause and the cure.
    """
    if compare and "head" in options:
        raise UsageError("head and compare both say what to train; give one of them")
    given = {**options, "head": compare} if compare else options
    asked = _build(TrainOptions, given, features=os.fspath(features), output=os.fspath(output))
    return training.train(asked, say=_say(quiet))


@_takes(PredictOptions)
def predict(
    head: Place, *inputs: Place, output: Place | None = None, quiet: bool = False, **options: Any
) -> PredictSummary:
    """Labels images or stored features with a head that `train` made, or with ImageNet's own (`"imagenet"`).

    Example:
        >>> predicted = featuremill.predict("head", "photos", output="predictions")
        >>> print(predicted)  # doctest: +ELLIPSIS
        read 84 = predicted 80 + failed 4
        ...

    Args:
        head: Folder of the head.
        inputs: Images as `extract` takes them, or features.
        output: Folder for the predictions; without one the first rows are in the result's `shown`.
        quiet: Neither plan nor progress on standard error.
        options: See `featuremill predict --help`.

    Raises:
        FeaturemillError: With the thing, the cause and the cure, over `max_failure_rate` or all failed; what was
            committed is kept.
    """
    place = None if output is None else os.fspath(output)
    asked = _build(PredictOptions, options, head=os.fspath(head), inputs=_texts(inputs), output=place)
    summary = prediction.predict(asked, say=_say(quiet), quiet=quiet)
    _check_failures(summary, asked.max_failure_rate)
    return summary


@_takes(QueryOptions)
def query(features: Place, **options: Any) -> Found:
    """Finds the stored rows nearest to images, rows or vectors: exact, in one pass, without an index.

    Example:
        >>> found = featuremill.query("features", image="photos/disc/disc_000.jpg", top=3)
        >>> [near.row.label for near in found.neighbours[0]][:1]
        ['disc']

    Args:
        features: What `extract` wrote, or other Parquet with vectors.
        options: See `featuremill query --help`; `image`, `key` and `vector` take one or a list.

    Raises:
        FeaturemillError: With the thing, the cause and the cure.
    """
    return exploration.query(_build(QueryOptions, options, output=os.fspath(features)))

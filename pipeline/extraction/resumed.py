"""An OUT that was begun goes on with its own settings, as far as nobody names others."""

from collections.abc import Callable, Collection
from dataclasses import fields, replace
from typing import Any

from pipeline.extraction.added import beside, settings_of
from pipeline.extraction.options import ExtractOptions
from transforms import storage
from transforms.declared import flags
from transforms.errors import FeaturemillError
from transforms.network.bases import base_of
from transforms.store.manifest import read_manifest

_NETWORK = ("backbone", "weights", "features")


def resumed(
    options: ExtractOptions, named: Collection[str], *, say: Callable[[str], None] = lambda line: None
) -> ExtractOptions:
    """Returns the options, with OUT's own settings in the place of those that nobody named.

    Where others are named, the run reports that OUT holds features of another spec. So is everybody on a store: a look
    at what OUT holds is a request there, and none goes out before all options are checked.

    Args:
        named: Names of the fields that somebody gave a value.
        say: Is called with a line that says what OUT holds, where that isn't what the options say.
    """
    begun = options.output
    if options.add_feature:
        options, named = beside(options, named)
        begun = settings_of(options)
    elif options.overwrite or not storage.is_local(begun) or not storage.stat(storage.join(begun, "manifest.json")):
        return options
    try:
        manifest = read_manifest(begun)
    except FeaturemillError:
        # The run says what is wrong with it.
        return options
    spec = manifest.spec
    if "backbone" in named and options.backbone != spec.backbone:
        # Its settings would fit no other base. The run says what OUT holds.
        return options
    if "backbone" in named and base_of(spec.backbone).is_file:
        named = {*named, "weights"}
    stored: dict[str, Any] = {"backbone": spec.backbone, "weights": manifest.weights}
    stored["features"] = tuple(map(str, spec.features))
    stored["keep"] = tuple(f"{name}:{kind}" for name, kind in manifest.kept.items())
    declared = {own.name: own for own in fields(ExtractOptions) if "option" in own.metadata}
    stored |= {own.name: getattr(spec, own.name) for own in fields(spec) if own.name in declared.keys() - {*_NETWORK}}
    if any(name in named and getattr(options, name) != stored[name] for name in ("resize", "image_size")):
        # What was cut from the whole image of that size is no setting of another one.
        del stored["short_side"]
    taken = {name: value for name, value in stored.items() if name not in named and value != getattr(options, name)}
    if not taken:
        return options
    shown = (
        f"{flags(name, declared[name].metadata['option'])[0]} {each}"
        for name, value in taken.items()
        if value is not None
        for each in (value if isinstance(value, tuple) else (value,))
    )
    say(f"resumes  {begun} as it was begun: {' '.join(shown)}")
    # Taps of the dense layers are known only with these; others are computed without them.
    return replace(
        options, **taken, include_top=options.include_top or ("features" in taken and base_of(spec.backbone).has_top)
    )

"""A feature added to an OUT that is there: an OUT of its own in it, with the units and the rows that OUT has."""

import re
from collections.abc import Collection
from dataclasses import replace

from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.plan import Plan
from transforms import storage
from transforms.errors import FeaturemillError, UsageError
from transforms.network.bases import BASES, FILES, NETWORKS
from transforms.store.layout import ADDED_PREFIX
from transforms.store.output import Output
from transforms.text import counted, did_you_mean

_FORM = "NAME=TAP:POOL or NAME=BASE:TAP:POOL, such as deep=resnet50:conv5_block3_out:avg"


def beside(options: ExtractOptions, named: Collection[str]) -> tuple[ExtractOptions, list[str]]:
    """Returns the options of the run that fills the added feature's own folder, and the names that now have values.

    Raises:
        UsageError: No such feature, or an option that doesn't go with it.
        FeaturemillError: OUT holds no features, or one of that name.
    """
    others = {"--feature": "features" in named, "--keep": "keep" in named}
    others |= {"--limit": options.limit, "--prune": options.prune}
    for flag in filter(others.get, others):
        raise UsageError(
            f"{flag} doesn't go with --add-feature, which adds one feature to the rows of OUT; leave it out"
        )
    output = Output(options.output)
    name, base, tap, pool = _parsed(options, output)
    manifest = output.manifest
    if manifest.sample_limit:
        raise FeaturemillError(f"{output} is a sample, to which nothing is added; add to one made without --limit")
    own = [*(feature.name for feature in manifest.spec.features), *manifest.kept]
    if name.lower() in map(str.lower, own):
        raise FeaturemillError(f"{output} has a column {name} of its own; give the added one another name")
    alike = [added for added in manifest.added_features if added.lower() == name.lower() and added != name]
    if alike:
        raise FeaturemillError(f"{output} has an added feature {alike[0]}; give this one another name")
    base = base or (options.backbone if "backbone" in named else manifest.spec.backbone)
    # Another base brings its own.
    own = ("image_size", "resize", "short_side", "interpolation", "normalise")
    unset = {name: None for name in own if name not in named}
    side = output.added_feature(name)
    if base in FILES and "backbone" not in named:
        # The file of OUT's own base, or the one that was named when the feature was begun.
        begun = side.manifest if side.holds_features else manifest
        unset |= {"weights": begun.weights, "normalise": begun.spec.normalise}
    return replace(
        options,
        **unset,
        add_feature=None,
        notes=(),
        # The same as of OUT, or its inputs would be others; they are stored there alone.
        keep=tuple(f"{name}:{kind}" for name, kind in manifest.kept.items()),
        beside=output.folder,
        output=side.folder,
        backbone=base,
        features=(f"{name}={tap}:{pool}",),
    ), [*named, "features", "backbone", "keep"]


def _parsed(options: ExtractOptions, output: Output) -> tuple[str, str, str, str]:
    """Returns name, base, tap and pool of the added feature; the base is empty where none is named."""
    text = options.add_feature
    match = re.fullmatch(r"([^=:]+)=([^=]+):([^=:]+)", text.strip())
    if not match:
        raise UsageError(f"--add-feature {text!r} is not of the form {_FORM}")
    name, tap, pool = match.groups()
    base, _, rest = tap.partition(":")
    if rest and base in NETWORKS:
        return name, base, rest, pool
    if rest and not {options.backbone, output.manifest.spec.backbone} & {*FILES}:
        # Only names of tensors have colons.
        raise UsageError(f"--add-feature {text!r}: no backbone {base!r}{did_you_mean(base, BASES)}")
    return name, "", tap, pool


def settings_of(options: ExtractOptions) -> str:
    """Returns the folder whose settings go on: OUT's, or those of the added feature, once it was begun."""
    if not options.beside or storage.stat(storage.join(options.output, "manifest.json")):
        return options.output
    return options.beside


def plan_beside(main: Output, plan: Plan, side: Output) -> Plan:
    """Returns the plan of an added feature from that of OUT: what OUT has, and the added feature doesn't.

    Raises:
        FeaturemillError: OUT itself isn't complete.
    """
    if plan.todo or not main.manifest.is_complete or main.manifest.relocation:
        waiting = f"{counted(len(plan.todo), 'unit')} to be embedded" if plan.todo else "a run that isn't finished"
        raise FeaturemillError(
            f"{main} has {waiting}; run the same command without --add-feature and its name first, then this one"
        )
    there = side.listing.unit_ids()
    return Plan(
        todo=tuple(planned for planned in plan.done if planned.unit_id not in there),
        done=tuple(planned for planned in plan.done if planned.unit_id in there),
        stale=(),
        dropped=(),
        remove=tuple(sorted(there - {planned.unit_id for planned in plan.done})),
    )


def note_added(main: Output, side: Output) -> None:
    """Says in OUT's manifest that it has an added feature, before anything of that is there."""
    name = side.folder.rsplit("/", 1)[-1].removeprefix(ADDED_PREFIX)
    if name not in main.manifest.added_features:
        with main.writing():
            storage.make_folder(main.path("_tmp"))
            main.write_manifest(replace(main.manifest, added_features=[*main.manifest.added_features, name]))

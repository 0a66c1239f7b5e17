"""The commands on an OUT that is there: inspect, verify, compact, relocate, convert, register, report, drop-feature."""

from dataclasses import asdict
from typing import Any

import click

from pipeline.cli.options import OptionsCommand, debug_option, echo, json_option, saying, show


@click.command()
@click.argument("output", metavar="OUT")
@click.option("--deep", is_flag=True, help="Read every file whole and compare it with the hash that it carries.")
@json_option
@debug_option
def inspect(output: str, deep: bool, as_json: bool) -> int:
    """Show what OUT holds and check that parts, footers and manifest agree (exit code 1 if not)."""
    from pipeline.maintenance import inspect as module

    inspection = module.inspect(output, deep=deep)
    show(inspection, module.inspection_json, module.inspection_text, as_json=as_json)
    return 1 if inspection.problems else 0


@click.command(cls=OptionsCommand, options="pipeline.maintenance.verify:VerifyOptions")
@click.argument("output", metavar="OUT")
@json_option
@debug_option
def verify(as_json: bool, **given: Any) -> int:
    """Embed a random sample of OUT's rows again, from their sources, and compare.

    Exit code 1 if one drifts by more than the tolerance, or its source is gone or changed.
    """
    from pipeline.maintenance import verify as module

    verification = module.verify(module.VerifyOptions(**given))
    show(verification, module.verification_json, module.verification_text, as_json=as_json)
    return 0 if verification.ok else 1


@click.command(cls=OptionsCommand, options="pipeline.maintenance.compact:CompactOptions")
@click.argument("output", metavar="OUT")
@json_option
@debug_option
def compact(as_json: bool, **given: Any) -> int:
    """Merge OUT's small parts into larger ones, sorted by key. Rows, totals and resume stay what they are."""
    from pipeline.maintenance import compact as module

    summary = module.compact(module.CompactOptions(**given), say=saying())
    return show(summary, asdict, module.compact_text, as_json=as_json)


@click.command(cls=OptionsCommand, options="pipeline.maintenance.relocate:RelocateOptions")
@click.argument("output", metavar="OUT")
@click.argument("moves", nargs=-1, required=True, metavar="OLD=NEW...")
@json_option
@debug_option
def relocate(as_json: bool, **given: Any) -> int:
    """Tell OUT that its images lie elsewhere now, so that nothing is embedded again.

    OLD is a folder or a file that was embedded, NEW the place where it is now. Files that are missing there, or aren't
    the same, are named, and nothing is changed. Cut off, the same command again finishes it.
    """
    from pipeline.maintenance import relocate as module

    summary = module.relocate(module.RelocateOptions(**given), say=saying())
    return show(summary, asdict, module.relocate_text, as_json=as_json)


@click.command(cls=OptionsCommand, options="pipeline.maintenance.convert:ConvertOptions")
@click.argument("source", metavar="OUT")
@debug_option
def convert(**given: Any) -> int:
    """Copy OUT for readers that can't take it as it is; most can, see docs/query.md.

    Parquet: all columns in one file, vectors as plain lists, in another width if asked. A folder: vectors.tsv and
    metadata.tsv for TensorBoard's projector. Totals, failures and fingerprint stay with OUT.
    """
    from pipeline.maintenance import convert as module

    echo(module.converted_text(module.convert(module.ConvertOptions(**given))))
    return 0


@click.command(cls=OptionsCommand, options="pipeline.maintenance.register:RegisterOptions")
@click.argument("output", metavar="OUT")
@json_option
@debug_option
def register(as_json: bool, **given: Any) -> int:
    """Make a table of OUT's parts, as they lie, or bring it up to date.

    No row is written again. After extract, --prune or compact the same command removes from the table what is gone and
    adds what is new, in one commit; until then readers of the table may miss parts that are gone.
    """
    from pipeline.maintenance import register as module

    found = module.register(module.RegisterOptions(**given))
    return show(found, asdict, module.registered_text, as_json=as_json)


@click.command(cls=OptionsCommand, options="pipeline.maintenance.report:ReportOptions")
@click.argument("output", metavar="OUT")
@debug_option
def report(**given: Any) -> int:
    """Show a run in one page: totals, failures, time, labels, sizes, vectors, duplicates, the spec.

    Nothing but OUT is read, finished or not.
    """
    from pipeline.maintenance import report as module

    echo(module.run_report(module.ReportOptions(**given)))
    return 0


@click.command()
@click.argument("output", metavar="OUT")
@click.argument("name", metavar="NAME")
@debug_option
def drop_feature(output: str, name: str) -> int:
    """Remove the feature NAME, which extract --add-feature added to OUT. All else stays."""
    from pipeline.maintenance import drop as module

    echo(module.drop_feature(output, name))
    return 0


COMMANDS = (inspect, verify, compact, relocate, convert, register, report, drop_feature)

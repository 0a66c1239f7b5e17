"""The commands that put questions to stored features: query, sql, duplicates, outliers, map."""

import sys
from typing import Any

import click

from pipeline.cli.options import (
    OptionsCommand,
    Terminal,
    debug_option,
    echo,
    hand_out,
    json_option,
    overwrite_option,
    result_options,
    saying,
)
from transforms.text import counted


@click.command(cls=OptionsCommand, options="pipeline.exploration.query:QueryOptions")
@click.argument("output", metavar="OUT")
@result_options
@debug_option
def query(rows: str | None, page: str | None, overwrite: bool, as_json: bool, **given: Any) -> int:
    """Find the stored rows nearest to images, rows or vectors: exact, in one pass, without an index.

    Several queries in one call share the pass. A condition sees a row's key, label, source, position, sha256, width and
    height, and nothing else.
    """
    from pipeline.exploration import query as module
    from pipeline.exploration.query import write_query_page
    from pipeline.rendering.targets import check_targets
    from transforms.committed import held

    read = [given["output"], *given["images"], *given["vectors"], given["weights"]]
    # A dash is standard input.
    check_targets([name for name in read if name not in (None, "-")], rows=rows, page=page, overwrite=overwrite)
    with held(rows, page):
        found = module.query(module.QueryOptions(**given))
        writers = ((rows, module.write_found), (page, write_query_page))
        return hand_out(found, writers, module.found_json, module.found_text, as_json=as_json)


@click.command()
@click.argument("output", metavar="OUT")
@click.argument("text", metavar="QUERY")
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Show the result as CSV.")
@click.option("--output", "-o", "rows", metavar="FILE", help="Write the result to a .parquet, .csv or .jsonl file.")
@overwrite_option
@debug_option
def sql(output: str, text: str, as_json: bool, as_csv: bool, rows: str | None, overwrite: bool) -> int:
    """Ask OUT or PRED in SQL (DuckDB's), by the views features, failures, units and, of PRED, predictions.

    featuremill sql OUT "SELECT label, count(*) FROM features GROUP BY 1"

    The query sees these views and nothing else: no files, no network, nothing to change. OUT is on this machine.
    """
    from pipeline.exploration import sql as module
    from pipeline.rendering.targets import check_targets
    from transforms.committed import held

    if as_json + as_csv + (rows is not None) > 1:
        raise click.UsageError("give one of --json, --csv and --output")
    check_targets([output], rows=rows, overwrite=overwrite)
    with held(rows), module.sql(output, text) as answer:
        if not answer.complete:
            echo("note     the run is not finished: these are its rows so far", err=True)
        if rows:
            echo(f"{counted(module.write_answer(answer, rows), 'row')} in {rows}", err=True)
        elif as_json:
            module.write_answer_json(answer, sys.stdout)
        elif as_csv:
            module.write_answer_csv(answer, Terminal(sys.stdout) if sys.stdout.isatty() else sys.stdout)
        else:
            echo(module.answer_text(answer))
    return 0


@click.command(cls=OptionsCommand, options="transforms.similarity.copies:DuplicateOptions")
@click.argument("output", metavar="OUT")
@result_options
@debug_option
def duplicates(output: str, rows: str | None, page: str | None, overwrite: bool, as_json: bool, **given: Any) -> int:
    """Find exact copies by content and near copies by cosine, as groups; labels that disagree come first.

    Every pair is compared. Rows of a group are connected by pairs, so the ends of a chain may be less alike.
    """
    from pipeline.exploration import duplicates as module
    from pipeline.rendering.targets import check_targets
    from transforms.committed import held
    from transforms.similarity.copies import find_duplicates

    check_targets([output], rows=rows, page=page, overwrite=overwrite)
    with held(rows, page):
        found = find_duplicates(output, **given)
        writers = ((rows, module.write_duplicates), (page, module.write_duplicates_page))
        return hand_out(found, writers, module.duplicates_json, module.duplicates_text, as_json=as_json)


@click.command(cls=OptionsCommand, options="transforms.similarity.outlying:OutlierOptions")
@click.argument("output", metavar="OUT")
@result_options
@debug_option
def outliers(output: str, rows: str | None, page: str | None, overwrite: bool, as_json: bool, **given: Any) -> int:
    """Find the rows farthest from the centre of their class, or from their nearest neighbours.

    By class takes two passes; by neighbours compares every pair of rows.
    """
    from pipeline.exploration import outliers as module
    from pipeline.rendering.targets import check_targets
    from transforms.committed import held
    from transforms.similarity.outlying import find_outliers

    check_targets([output], rows=rows, page=page, overwrite=overwrite)
    with held(rows, page):
        found = find_outliers(output, **given)
        writers = ((rows, module.write_outliers), (page, module.write_outliers_page))
        return hand_out(found, writers, module.outliers_json, module.outliers_text, as_json=as_json)


@click.command(cls=OptionsCommand, options="pipeline.maps.run:MapOptions")
@click.argument("output", metavar="OUT")
@click.option("--quiet", "-q", is_flag=True, help="Show only the result.")
@debug_option
def map_(quiet: bool, **given: Any) -> int:
    """Draw the rows of OUT on a plane, in one page to zoom, select and search in; it needs no server.

    Rows that look alike to the network lie together. A click shows the ten nearest; a lasso selects rows, whose keys
    can be saved as CSV.
    """
    from pipeline.maps import run as module

    echo(module.map_text(module.make_map(module.MapOptions(**given), say=saying(quiet=quiet))))
    return 0


map_.name = "map"
COMMANDS = (query, sql, duplicates, outliers, map_)

"""The commands that make pages of stored features to look at: map, report."""

from typing import Any

import click

from pipeline.cli_options import debug_option


@click.command()
@click.argument("output", metavar="OUT")
@click.option("--html", "page", required=True, metavar="PAGE", help="The page, one file.")
@click.option("--feature", metavar="NAME", help="What is placed and compared.  [default: embedding]")
@click.option("--method", default="umap", show_default=True, help="umap, tsne (both from 50 components), or pca.")
@click.option("--seed", default=0, show_default=True, help="Of umap and tsne.")
@click.option("--color", metavar="COLUMN", help="What the points are coloured by at first.  [default: label]")
@click.option("--predictions", metavar="PRED", help="What predict wrote on OUT: colours by prediction and agreement.")
@click.option("--output", "-o", "coordinates", metavar="FILE", help="The places as Parquet, too: key, x, y, label ….")
@click.option("--limit", default=100_000, show_default=True, help="At most so many rows, evenly drawn.")
@click.option("--thumbnails", default=8000, show_default=True, help="At most so many, evenly drawn; 0 for none.")
@click.option("--quiet", "-q", is_flag=True, help="Only the result.")
@debug_option
def map_(quiet: bool, **given: Any) -> int:
    """Draw the rows of OUT on a plane, in one page to zoom, select and search in; it needs no server.

    Rows that look alike to the network lie together. A click shows the ten nearest; a lasso selects rows, whose keys
    can be saved as CSV.
    """
    from pipeline.maps import run as module

    say = (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))
    click.echo(module.map_text(module.make_map(module.MapOptions(**given), say=say)))
    return 0


@click.command()
@click.argument("output", metavar="OUT")
@click.option("--html", "page", required=True, metavar="PAGE", help="The page, one file.")
@click.option("--feature", metavar="NAME", help="What the small map shows.  [default: embedding]")
@debug_option
def report(output: str, **given: Any) -> int:
    """Tell of a run in one page: the books, failures, time, labels, sizes, vectors, duplicates, the spec.

    Nothing but OUT is read, finished or not.
    """
    from pipeline.maintenance import report as module

    click.echo(module.run_report(output, **given))
    return 0


map_.name = "map"
COMMANDS = (map_, report)

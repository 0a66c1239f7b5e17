"""`python -m pipeline.cli`: the command line without its console script."""

from pipeline.cli import main

main()

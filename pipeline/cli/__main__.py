"""`python -m pipeline.cli`: the command line without its console script."""

from pipeline.cli import main

if __name__ == "__main__":
    main()

"""The console script, and `python -m featuremill`."""

from featuremill.own import load


def main() -> None:
    """Runs the command line, whatever else is called `pipeline` or `transforms` on the path."""
    load()
    from pipeline import cli

    cli.main()


if __name__ == "__main__":
    main()

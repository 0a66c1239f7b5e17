"""The command line: options in, exit code out. Each command is thin; its work is in the folder of its family."""


def main() -> None:
    """The console script."""
    from pipeline.cli import app

    app.main()

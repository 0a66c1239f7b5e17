"""The command line: options in, exit code out. Each command is thin; its work is in the folder of its family."""


def main() -> None:
    """Runs the command line, whose modules are imported only now."""
    from pipeline.cli import app

    app.main()

"""The group of commands; every error becomes one line and an exit code.

Only click is imported at the top, so that `--help` is instant.
"""

import errno
import os
import sys
import traceback

import click

from pipeline.cli import exploration, extraction, heads, maintenance
from pipeline.cli.help import Tasks, complete_files_too
from pipeline.cli.options import EXIT_INTERRUPTED, echo
from pipeline.runners.supervised import supervise, tell
from transforms.text import shown, shown_within

# Commands that commit as they go; the others write at their end.
_RESUMED = (["extract"], ["predict"], ["compact"], ["relocate"], ["drop-feature"])
# Commands that decode images of any origin by the thousand, which their decoders may not survive.
_DECODING = (["extract"], ["predict"])
# Of what the system itself says where no module has said it better.
_CURES = {
    errno.EACCES: "fix the permissions",
    errno.EPERM: "fix the permissions",
    errno.EROFS: "choose a place that can be written",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
}


# ... and how libraries say that the system gives them no more memory, or no thread, which takes some.
_NO_MEMORY = ("can't start new thread", "failed to map segment", "Cannot allocate memory")


@click.group(cls=Tasks, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="featuremill")
def cli() -> None:
    """Batch feature extraction with frozen VGG networks: image shards in, Parquet out, every image accounted for."""


cli.add_tasks(
    {
        "Extract": extraction.COMMANDS,
        "Ask": exploration.COMMANDS,
        "Heads": heads.COMMANDS,
        "Keep": maintenance.COMMANDS,
    }
)


def run_cli(args: list[str]) -> int:
    """Runs the command line and returns its exit code; every error becomes one line on standard error."""
    try:
        return cli.main(args, prog_name="featuremill", standalone_mode=False) or 0
    except click.ClickException as error:
        # Also a name that the shell found for a pattern.
        error.message = shown_within(error.message)
        error.show()
        return error.exit_code
    except SystemExit as error:
        # click ends so when nobody reads its output any more.
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        if "--debug" in args:
            click.echo(shown(traceback.format_exc()), err=True)
        if getattr(error, "is_reported", False):
            # Whoever supervises this process says so, or goes on.
            return 1
        code, message = _explain(error, args)
        # A file's name may hold line breaks.
        echo(f"featuremill: {shown_within(message)}", err=True)
        return code


def _explain(error: BaseException, args: list[str]) -> tuple[int, str]:
    from transforms.errors import FeaturemillError, UsageError

    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        kept = "what was committed is kept: run the same command again to go on"
        return EXIT_INTERRUPTED, f"interrupted; {kept if args[:1] in _RESUMED else 'nothing is left half written'}"
    if isinstance(error, FeaturemillError):
        return (2 if isinstance(error, UsageError) else 1), str(error)
    if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY):
        message = " ".join(str(error).split())
        return 1, f"out of memory{f' ({message})' if message else ''}; free some, or raise the limit (ulimit -v)"
    cure = _CURES.get(error.errno) if isinstance(error, OSError) else None
    if cure:
        return 1, f"{' '.join(str(error).split())}; {cure}"
    return 1, f"{type(error).__name__}: {' '.join(str(error).split())}; run with --debug for the traceback"


def _fill_descriptors() -> None:
    """Opens standard streams that were closed (`2>&-`), or the next file would get their number, and messages."""
    for number, mode in enumerate("rww"):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free.
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, ("stdin", "stdout", "stderr")[number], os.fdopen(number, mode, closefd=False))


def main() -> None:
    """Runs the command line."""
    _fill_descriptors()
    args = sys.argv[1:]
    if "_FEATUREMILL_COMPLETE" in os.environ:
        complete_files_too()
    if args[:1] in _DECODING:
        args = supervise(args)
    # A copy of the descriptor for our own lines: while TensorFlow is imported its chatter is held back there, and what
    # is said then, such as what Ctrl-C left behind, would be held back with it.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    code = run_cli(args)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        tell(ended=str(code))
        # Not sys.exit: after Ctrl-C or a killed worker, Beam's threads would keep the process alive for good.
        os._exit(code)

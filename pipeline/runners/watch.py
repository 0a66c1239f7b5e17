"""Runs a Beam pipeline and stays in charge: ticks while it runs, ends when a worker dies, obeys Ctrl-C at once."""

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import psutil

from pipeline.runners.job_server import cancel, failures
from pipeline.runners.options import SET_TOKEN
from pipeline.runners.supervised import described, tell
from transforms.errors import FeaturemillError
from transforms.text import one_line

if TYPE_CHECKING:
    import apache_beam as beam

# Beam carries a worker's exception across processes and runners as the text of its traceback.
_OUR_ERROR = re.compile(r"transforms\.errors\.(?:FeaturemillError|UsageError): (.+?)(?: \[while running|$)", re.M)
# ... and ends with the original error's own line.
_LAST_ERROR = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt)[^:\n]*: .+?)(?: \[while running|$)", re.M)
# Where Beam can it adds the step to the message itself.
_WHILE = re.compile(r" \[while running '[^']*'\]['\"]?$")
# What goes wrong on clusters: a pattern in the runner's text, the cause, the cure.
_CAUSES = (
    (
        r"ModuleNotFoundError: No module named '(pipeline|transforms|apache_beam)",
        "a worker can't import {}: featuremill isn't installed there",
        "install this version of it where the workers run, and run the same command again",
    ),
    (
        r"failed in state CANCELL?ED|JobCancellationException",
        "the job was cancelled on the cluster",
        "run the same command again to go on",
    ),
    (
        r"CANCELLED: client cancelled|SDK harness .*disconnected|CANCELLED: Multiplexer hanging up",
        "a worker process died, perhaps for lack of memory, and the runner gave up",
        "run the same command again to go on",
    ),
    (
        r"the worker pool was asked with (no token|a wrong token)",
        "the worker pool was asked with {}",
        f"{SET_TOKEN}, and run the same command again",
    ),
    (
        r"UNAVAILABLE: io exception|UNAVAILABLE: Network closed|Connection refused",
        "a worker pool can't be reached",
        "start it where the tasks run (python -m featuremill.own pipeline.runners.worker_pool), or correct "
        "--environment_config, and run the same command again",
    ),
    (
        r"(?:TaskManager|TaskExecutor).*? (?:is no longer reachable|timed out|was lost)|RemoteTransportException"
        r"|NoResourceAvailableException",
        "the cluster lost a TaskManager, or has too few slots for --parallelism",
        "start more of them, or pass a smaller --parallelism, and run the same command again",
    ),
)
_RETURN_CODE = re.compile(r"return code (-?\d+)")
_TICK_SECONDS = 0.25
_CANCEL_SECONDS = 3.0
# A cluster that has ended a job may still be noting why.
_ASK_AGAIN_SECONDS = (1.0, 3.0)
# Under Beam's name, so that it is shown with --debug only.
_log = logging.getLogger("apache_beam.featuremill")


class WorkerDied(FeaturemillError):
    """A worker process is gone. Whatever it was running on top of can't be waited for.

    Attributes:
        is_reported: Whether the process that supervises this one knows, and prints the error itself.
    """

    is_reported = False


def run_watched(pipeline: "beam.Pipeline", tick: Callable[[], None]) -> None:
    """Runs the pipeline to its end, calling `tick` a few times a second.

    Beam runs in a thread of its own, because two of its habits can't be had otherwise: `run()` of the local runner
    doesn't react to Ctrl-C while a bundle is in an engine, and it waits forever for a worker process that was killed.

    Raises:
        FeaturemillError: The pipeline failed; the message is the worker's, on one line.
        WorkerDied: A worker process was killed. The pipeline is left behind in its thread, so the process should end.
        KeyboardInterrupt: Ctrl-C; the workers of this machine are ended. The same holds for the thread.
    """
    finished = threading.Event()
    others = set(psutil.Process().children(recursive=True))
    errors: list[BaseException] = []
    results: list[beam.runners.runner.PipelineResult] = []

    def run() -> None:
        try:
            results.append(pipeline.run())
            results[0].wait_until_finish()
        except BaseException as error:
            errors.append(error)
        finally:
            finished.set()

    with _DeathWatch() as deaths:
        threading.Thread(target=run, name="beam", daemon=True).start()
        try:
            while not finished.wait(_TICK_SECONDS):
                tick()
                if deaths.seen:
                    raise _worker_died(deaths.seen)
        except BaseException:
            if results:
                # A remote job would go on without us; it gets a moment to hear of it.
                ending = threading.Thread(target=cancel, args=(results[0], pipeline.options), daemon=True)
                ending.start()
                ending.join(_CANCEL_SECONDS)
            _end_workers(others)
            raise
    if errors:
        raise explain(errors[0], lambda: failures(results[0], pipeline.options) if results else "") from errors[0]
    state = results[0].state
    if state not in ("DONE", None):
        raise FeaturemillError(f"the runner ended the job as {state}; see its log, then run the same command again")


def _worker_died(seen: str) -> WorkerDied:
    died = WorkerDied(
        f"a worker process died ({seen}), perhaps for lack of memory; what was committed is kept: run the same command "
        "again to go on, with fewer --workers if it happens again"
    )
    code = _RETURN_CODE.search(seen)
    died.is_reported = tell(died=described(int(code[1])) if code else seen, message=str(died))
    return died


class _DeathWatch:
    """Notices when a local worker process ends with an error, by the exception that its watching thread dies of."""

    def __init__(self) -> None:
        self.seen = ""

    def __enter__(self) -> "_DeathWatch":
        self._previous = threading.excepthook
        threading.excepthook = self._notice
        return self

    def _notice(self, args: threading.ExceptHookArgs) -> None:
        if "Worker subprocess exited" in str(args.exc_value):
            self.seen = one_line(args.exc_value)
        else:
            # Beam's other threads lose their connection to a dead worker, with a traceback each.
            _log.error("thread %s failed", args.thread, exc_info=args.exc_value)

    def __exit__(self, kind: object, *_: object) -> None:
        # After an error Beam's threads live on, and go on failing one by one.
        if kind is None:
            threading.excepthook = self._previous


def _end_workers(others: set[psutil.Process]) -> None:
    """Kills the processes that were started since; a caller's own children are none of ours."""
    for child in set(psutil.Process().children(recursive=True)) - others:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


def explain(error: BaseException, ask: Callable[[], str] = lambda: "") -> FeaturemillError:
    """Returns the worker's own message out of whatever a runner wrapped it in.

    Args:
        error: Of the runner.
        ask: What else the cluster says; asked where the error itself says nothing that is known.
    """
    if isinstance(error, FeaturemillError):
        return FeaturemillError(_WHILE.sub("", str(error)))
    text = str(error)
    others = _LAST_ERROR.findall(text)
    known = _known(text) or ("" if others else _asked(ask))
    if known:
        return FeaturemillError(known)
    others = others or [f"{type(error).__name__}: {_WHILE.sub('', one_line(error))}"]
    return FeaturemillError(
        f"the pipeline failed: {others[-1]}; what was committed is kept: run the same command again, "
        "with --debug for the traceback"
    )


def _asked(ask: Callable[[], str]) -> str:
    """Returns the message that the cluster's words come to; asks again where it has some, but none that is known."""
    for seconds in _ASK_AGAIN_SECONDS:
        text = ask()
        known = _known(text)
        if known or not text:
            return known
        time.sleep(seconds)
    return _known(ask())


def _known(text: str) -> str:
    """Returns the message that a runner's text comes to, empty if nothing in it is known."""
    ours = _OUR_ERROR.findall(text)
    if ours:
        return ours[-1]
    for pattern, cause, cure in _CAUSES:
        found = re.search(pattern, text)
        if found:
            return f"{cause.format(*found.groups())}; what was committed is kept: {cure}"
    return ""

"""Beam's own options, checked: Beam ignores what it doesn't know, and a misspelt option would pass in silence."""

import argparse
import json
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pipeline.runners.dataflow import RUNNER, check_places, dataflow_args, is_template
from transforms.errors import FeaturemillError, UsageError
from transforms.machine import own_command
from transforms.text import did_you_mean, one_line

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineRunner

# As Beam writes them.
RUNNERS = (
    *("BundleBasedDirectRunner", "DataflowRunner", "DirectRunner", "FlinkRunner", "FnApiRunner", "InteractiveRunner"),
    *("KafkaStreamsRunner", "PortableRunner", "PrismRunner", "SparkRunner", "SwitchingDirectRunner"),
    *("TestDataflowRunner", "TestDirectRunner"),
)


def beam_options(args: Sequence[str], *, runner: str, workers: int, places: Sequence[str]) -> "PipelineOptions":
    """Returns Beam's options for a run.

    Args:
        args: Beam's own options, as on its command line.
        runner: One of `RUNNERS`, or another's module.
        workers: Processes on this machine.
        places: What is read and written; a cluster has to reach it.

    Raises:
        UsageError: An option after `--` that Beam doesn't have, with the nearest ones, or that isn't for this runner.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    _check(list(args))
    for ours, theirs in (("--workers", "--direct_num_workers"), ("--workers", "--direct_running_mode"), _RUNNER):
        if any(arg.split("=")[0] == theirs for arg in args):
            raise UsageError(f"{theirs} after -- would be ignored; pass {ours} before it")
    if any(arg.startswith(_SECRETS) for arg in args):
        raise UsageError("a runner shows what follows --; put keys into the environment (AWS_ACCESS_KEY_ID, …)")
    if runner == RUNNER:
        check_places(places)
        args = dataflow_args(args)
    elif is_template(args):
        raise UsageError(f"--template_location is {RUNNER}'s, and {runner} runs the job at once; leave it out")
    options = PipelineOptions(list(args), direct_num_workers=workers)
    _add_token(options)
    return options


def pool_token() -> str:
    """Returns what a worker pool and those who ask it for workers have in common; empty if nothing says it.

    Raises:
        FeaturemillError: The file that should hold it can't be read, or is empty.
    """
    file = os.environ.get(TOKEN_FILE)
    if not file:
        return os.environ.get(TOKEN, "").strip()
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise FeaturemillError(f"{TOKEN_FILE} {file} can't be read: {one_line(error)}; correct it") from error
    if not token:
        raise FeaturemillError(f"{TOKEN_FILE} {file} is empty; write the token into it")
    return token


def _add_token(options: "PipelineOptions") -> None:
    """Puts the token, if there is one, into what a runner passes on to a worker pool."""
    from apache_beam.options.pipeline_options import PortableOptions

    portable = options.view_as(PortableOptions)
    config, token = portable.environment_config, pool_token()
    if portable.environment_type != "EXTERNAL" or not config or not token:
        return
    values = json.loads(config) if config.lstrip().startswith("{") else {"url": config}
    portable.environment_config = json.dumps({**values, "params": {**values.get("params", {}), TOKEN_PARAM: token}})


def beam_runner(runner: str, workers: int) -> "PipelineRunner":
    """Returns the runner; for several workers on this machine, one that starts `pipeline.runners.worker` processes.

    Not `direct_running_mode=multi_processing`: it does the same, but with Beam's own worker, whose log can't be kept
    from standard error.

    Raises:
        UsageError: Beam has no such runner.
    """
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.runners.runner import create_runner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    if workers == 1:
        try:
            return create_runner(runner)
        except (ValueError, ImportError, AttributeError) as error:
            raise UsageError(f"runner {runner!r} can't be used: {one_line(error)}") from error
    debug = logging.getLogger().isEnabledFor(logging.INFO)
    module = "apache_beam.runners.worker.sdk_worker_main" if debug else "pipeline.runners.worker"
    # Beam runs it in a shell, which would stay between us and the worker, and remark on its end.
    command = f"exec {shlex.join(own_command(module))}"
    return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))


# Where a worker pool and its clients find their common token, and what it is called among a worker's parameters.
TOKEN, TOKEN_FILE, TOKEN_PARAM = "FEATUREMILL_POOL_TOKEN", "FEATUREMILL_POOL_TOKEN_FILE", "featuremill_token"
# Of a job that a pool refused.
SET_TOKEN = f"set {TOKEN} where the job is launched, as the pool has it"
# Beam's options are a part of the job.
_SECRETS = ("--s3_access_key_id", "--s3_secret_access_key", "--s3_session_token")
# Both are called the same; only the place differs.
_RUNNER = ("--runner", "--runner")


class _Parser(argparse.ArgumentParser):
    """Raises where argparse would print Beam's whole usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"Beam's options: {message}")


def _check(args: list[str]) -> None:
    from apache_beam.options.pipeline_options import PipelineOptions

    parser = _Parser(add_help=False, allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(args)
    if unknown:
        valid = [flag for action in parser._actions for flag in action.option_strings]
        # What follows may be a secret, given to a misspelt option.
        name = unknown[0].split("=")[0]
        raise UsageError(f"Beam has no option {name!r}{did_you_mean(name, valid) if name.startswith('--') else ''}")


def runner_name(given: str) -> str:
    """Returns a runner's name as in `RUNNERS`: Beam also takes it in any case, without `Runner`, or with its module.

    What isn't Beam's comes back as it is: other people's runners go by their modules.
    """
    short = given.rpartition(".")[2] if given.startswith("apache_beam.runners.") else given
    known = {name.lower(): name for name in RUNNERS}
    return known.get(short.lower()) or known.get(f"{short.lower()}runner", given)

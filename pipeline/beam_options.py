"""Beam's own options, checked: Beam ignores what it doesn't know, and a misspelt option would pass in silence."""

import argparse
import logging
import shlex
import sys
from typing import TYPE_CHECKING, NoReturn

from pipeline.dataflow import RUNNER, check_places, dataflow_args, is_template
from pipeline.options import ExtractOptions
from transforms.errors import UsageError
from transforms.text import did_you_mean, one_line

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineRunner


def beam_options(options: ExtractOptions) -> "PipelineOptions":
    """Returns Beam's options for a run.

    Raises:
        UsageError: An option after `--` that Beam doesn't have, with the nearest ones, or that isn't for this runner.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    _check(list(options.beam_args))
    for ours, theirs in (("--workers", "--direct_num_workers"), ("--workers", "--direct_running_mode"), _RUNNER):
        if any(arg.split("=")[0] == theirs for arg in options.beam_args):
            raise UsageError(f"{theirs} after -- would be ignored; pass {ours} before it")
    if any(arg.startswith(_SECRETS) for arg in options.beam_args):
        raise UsageError("a runner shows what follows --; put keys into the environment (AWS_ACCESS_KEY_ID, …)")
    args = options.beam_args
    if options.runner == RUNNER:
        check_places((*options.inputs, options.output))
        args = dataflow_args(args)
    elif is_template(args):
        raise UsageError(f"--template_location is {RUNNER}'s, and {options.runner} runs the job at once; leave it out")
    return PipelineOptions(list(args), direct_num_workers=options.workers)


def beam_runner(options: ExtractOptions) -> "PipelineRunner":
    """Returns the runner; for several workers on this machine, one that starts `pipeline.worker` processes.

    Not `direct_running_mode=multi_processing`: it does the same, but with Beam's own worker, whose log can't be kept
    from standard error.

    Raises:
        UsageError: Beam has no such runner.
    """
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.runners.runner import create_runner
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

    if options.workers == 1:
        try:
            return create_runner(options.runner)
        except (ValueError, ImportError, AttributeError) as error:
            raise UsageError(f"runner {options.runner!r} can't be used: {one_line(error)}") from error
    debug = logging.getLogger().isEnabledFor(logging.INFO)
    module = "apache_beam.runners.worker.sdk_worker_main" if debug else "pipeline.worker"
    command = shlex.join([sys.executable, "-m", module])
    return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command))


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

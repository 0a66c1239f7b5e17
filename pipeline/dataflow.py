"""What Dataflow is told by default, where the user doesn't say otherwise: one engine for each thing that computes."""

import argparse
from collections.abc import Sequence

from transforms.records import UsageError

RUNNER = "DataflowRunner"


def dataflow_args(args: Sequence[str]) -> tuple[str, ...]:
    """Returns Beam's options with the defaults that an engine per process needs.

    A worker has a process for each of its vCPUs, and each process one engine of one thread. With several harness
    threads a process would work on several units at once, and hold a queue of decoded images for each. On a GPU
    there is one process for the whole machine, because two would each take all of the GPU's memory.

    Args:
        args: As they follow `--` on the command line.

    Raises:
        UsageError: No container image: workers would have neither this package nor an engine.
    """
    said = _said(args)
    if not said.sdk_container_image:
        raise UsageError(
            "Dataflow's workers need the package in a container image; build one from the Dockerfile and pass "
            "--sdk_container_image=REGISTRY/featuremill:TAG after --"
        )
    more = []
    if said.number_of_worker_harness_threads is None:
        more.append("--number_of_worker_harness_threads=1")
    if has_gpu(args) and not any("use_multiple_sdk_containers" in name for name in said.experiments):
        more.append("--experiments=no_use_multiple_sdk_containers")
    return (*args, *more)


def has_gpu(args: Sequence[str]) -> bool:
    """Whether the options ask for workers with an accelerator."""
    return any("worker_accelerator" in option for option in _said(args).dataflow_service_options)


def _said(args: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--sdk_container_image", "--worker_harness_container_image")
    parser.add_argument("--number_of_worker_harness_threads")
    parser.add_argument("--experiments", "--experiment", action="append", default=[])
    parser.add_argument("--dataflow_service_options", "--dataflow_service_option", action="append", default=[])
    return parser.parse_known_args(list(args))[0]

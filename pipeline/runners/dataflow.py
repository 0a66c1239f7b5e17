"""Dataflow's defaults, where the user doesn't say otherwise: one engine for each thing that computes."""

import argparse
import os
from collections.abc import Iterable, Sequence

from transforms.errors import UsageError
from transforms.storage import is_local

RUNNER = "DataflowRunner"


def dataflow_args(args: Sequence[str]) -> tuple[str, ...]:
    """Returns Beam's options with the defaults that an engine per process needs.

    A worker has a process for each of its vCPUs, and each process one engine of one thread. With several harness
    threads a process would work on several units at once, and hold a queue of decoded images for each. On a GPU
    there is one process for the whole machine, because two would each take all of the GPU's memory.

    Args:
        args: As they follow `--` on the command line.

    Raises:
        UsageError: Something is missing that Dataflow can't do without: it would only say so after minutes. Without a
            container image or a setup file, workers would have neither this package nor an engine.
    """
    parsed = _parsed(args)
    needed = {
        "--project=PROJECT": parsed.project,
        "--region=REGION": parsed.region or os.environ.get("CLOUDSDK_COMPUTE_REGION"),
        "--temp_location=gs://BUCKET/tmp": parsed.temp_location or parsed.staging_location,
    }
    missing = [option for option, value in needed.items() if not value]
    if missing:
        raise UsageError(f"Dataflow needs {', '.join(missing)}; pass what is missing after --")
    if not parsed.sdk_container_image and not parsed.setup_file:
        raise UsageError(
            "Dataflow's workers need the package in a container image; build one from the Dockerfile and pass "
            "--sdk_container_image=REGISTRY/featuremill:TAG after --"
        )
    more = []
    if parsed.number_of_worker_harness_threads is None:
        more.append("--number_of_worker_harness_threads=1")
    if not any(arg.endswith("save_main_session") for arg in args):
        # On by default there, but all our code is in packages: what the launcher's __main__ holds is no worker's.
        more.append("--no_save_main_session")
    if has_gpu(args) and not any("use_multiple_sdk_containers" in name for name in parsed.experiments):
        more.append("--experiments=no_use_multiple_sdk_containers")
    return (*args, *more)


def check_places(places: Iterable[str]) -> None:
    """Checks that what a job elsewhere reads and writes can be reached from there.

    Raises:
        UsageError: A local path among the inputs or the output.
    """
    for place in places:
        if is_local(place.removeprefix("@")):
            raise UsageError(f"Dataflow's workers can't reach {place}; copy it to a bucket and name it gs://BUCKET/…")


def has_gpu(args: Sequence[str]) -> bool:
    """Returns whether the options ask for workers with an accelerator."""
    parsed = _parsed(args)
    asked = [*parsed.dataflow_service_options, *parsed.resource_hints]
    return any("worker_accelerator" in option or option.startswith("accelerator=") for option in asked)


def is_template(args: Sequence[str]) -> bool:
    """Returns whether the job is only written down for somebody else to start, as a Flex Template's launcher does."""
    return bool(_parsed(args).template_location)


def _parsed(args: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("project", "region", "temp_location", "staging_location", "template_location", "setup_file"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--sdk_container_image", "--worker_harness_container_image")
    parser.add_argument("--number_of_worker_harness_threads")
    for name in ("experiment", "dataflow_service_option", "resource_hint"):
        parser.add_argument(f"--{name}s", f"--{name}", action="append", default=[])
    return parser.parse_known_args(list(args))[0]

"""What a Flex Template's launcher starts: `featuremill extract`, from the template's parameters.

The launcher passes its parameters and Dataflow's own options in one row; the command wants ours before `--`.
"""

import sys

from pipeline import cli

# Those of metadata.json that are the command's own options; all others are Beam's.
OPTIONS = (
    "output",
    "weights",
    "backbone",
    "normalise",
    "feature",
    "path_field",
    "keep",
    "image_size",
    "precision",
    "engine",
    "batch_size",
    "unit_bytes",
)


def command(args: list[str]) -> list[str]:
    """Returns the arguments of `featuremill` for the launcher's."""
    inputs, own, theirs = [], [], []
    for arg in args:
        name, _, value = arg.removeprefix("--").partition("=")
        if name == "inputs":
            inputs = value.split()
        elif name in OPTIONS:
            own += [f"--{name.replace('_', '-')}", value]
        elif name != "runner":
            theirs.append(arg)
    return ["extract", *inputs, *own, "--runner", "DataflowRunner", "--", *theirs]


if __name__ == "__main__":
    sys.argv[1:] = command(sys.argv[1:])
    cli.main()

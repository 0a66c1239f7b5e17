"""Reads the files that its standard input names, one a line, and says for each what came of it; may well crash."""

import resource
import sys
from pathlib import Path

from tests.fuzz.kinds import KINDS
from transforms.errors import FeaturemillError


def main(kind: str) -> None:
    read = KINDS[kind].read
    for line in sys.stdin:
        try:
            result = "read" if read(Path(line.rstrip("\n"))) else "failed"
        except FeaturemillError as error:
            result = "failed" if "\n" not in str(error) else f"raw several lines: {error!r}"
        except BaseException as error:
            result = f"raw {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"{peak_mb} {result}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

"""A worker process of `--workers N`: Beam's own, but silent, and deaf to Ctrl-C.

Beam's worker writes to standard error that a library which isn't needed is missing, that its runner has gone, and a
traceback for each thread that Ctrl-C reaches. What workers log goes to the runner, which shows it with --debug; and on
Ctrl-C the runner's process ends its workers. What crashes in C still reaches the file descriptor.
"""

import os
import signal
import sys


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    from apache_beam.runners.worker import sdk_worker_main

    from transforms.embedding import held_up

    held_up.allow()

    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main()

"""Importing Keras without TensorFlow's chatter."""

import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

# What TensorFlow's C++ code says while it is loaded, before any setting of its log level is heard.
_CHATTER = re.compile(rb"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} [\d:.]+ +\d+ \S+:\d+\] ")


def import_keras() -> ModuleType:
    """Imports Keras with its backend, and returns it. The first call takes seconds."""
    if "keras" not in sys.modules:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        # TensorFlow leaves oneDNN off on x86 CPUs without AVX512. Its other kernels split sums among threads as these
        # happen to be free, so an image's last bits would change from run to run; oneDNN's don't, and are faster.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
        # They would take most of a GPU's memory at once, and a second process would have none.
        os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        with _without_chatter():
            import keras
        logging.getLogger("absl").setLevel(logging.ERROR)
    import keras

    return keras


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Holds back what is written to standard error, and lets go of all but the chatter at the end.

    It is written by C++ to the file descriptor, so replacing `sys.stderr` wouldn't catch it.
    """
    try:
        sys.stderr.flush()
        original = os.dup(2)
    except (AttributeError, OSError, ValueError):  # No standard error to keep clean.
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original, 2)
            os.close(original)
            held.seek(0)
            rest = b"".join(line for line in held if not _CHATTER.match(line))
            if rest:
                os.write(2, rest)

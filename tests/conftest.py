"""Settings that must be there before anything is imported."""

import os

# Some tests import Keras by itself, as an oracle; it should run on the same kernels as in `transforms.quiet`.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

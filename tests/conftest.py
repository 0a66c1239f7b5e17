"""Settings that must be there before anything is imported."""

import os
import tempfile

import pytest

# Before pytest looks for a profile of its settings.
from tests.support import properties  # noqa: F401

# Some tests import Keras by itself, as an oracle; it should run on the same kernels as ours (`network.keras_import`).

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# The tests' own servers are asked directly, whatever proxy this machine needs for others.
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, (os.environ.get(_name), "127.0.0.1", "localhost")))


@pytest.fixture(scope="session", autouse=True)
def _own_cache():
    """Keeps converted weights out of the user's cache; subprocesses of the tests find the same folder."""
    with tempfile.TemporaryDirectory(prefix="featuremill-tests-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATUREMILL_CACHE", folder)
        yield

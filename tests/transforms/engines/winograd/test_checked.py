"""An instruction set that computes wrong numbers is passed over."""

import numpy as np
import pytest

from tests.transforms.engines.winograd import test_kernel  # noqa: F401 - skips where there is no compiler
from transforms.engines.winograd import checked
from transforms.engines.winograd.kernel import kernels
from transforms.errors import FeaturemillError


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(checked, "_verdicts", {})


class Wrong:
    """As another kernel, but for the last bit of a number."""

    name = "broken"

    def __init__(self, kernel, layer):
        self._kernel, self._layer = kernel, layer

    def __getattr__(self, name):
        return getattr(self._kernel, name)

    def conv(self, source, target, *args, **more):
        self._kernel.conv(source, target, *args, **more)
        if self._layer == "conv":
            target[0, 2, 2, 5] = np.nextafter(target[0, 2, 2, 5], np.float32(9))

    def dense(self, *args):
        found = self._kernel.dense(*args)
        if self._layer == "dense":
            found[-1, -1] = np.nextafter(found[-1, -1], np.float32(9))
        return found


def test_the_fastest_is_right_here():
    assert checked.checked_kernel().name == kernels()[0].name


def test_plain_loops_are_no_engine(monkeypatch):
    monkeypatch.setattr(checked, "kernels", lambda: kernels()[-1:])
    with pytest.raises(FeaturemillError, match=r"int16, needs an x86-64 CPU with AVX2 .* pass --engine ncnn or"):
        checked.checked_kernel()


@pytest.mark.parametrize("layer", ["conv", "dense"])
def test_a_wrong_one_is_passed_over(layer, monkeypatch, caplog):
    found = kernels()
    monkeypatch.setattr(checked, "kernels", lambda: [Wrong(found[0], layer), *found])
    assert checked.checked_kernel().name == found[0].name
    assert "doesn't use broken: its numbers are wrong" in caplog.text


def test_none_is_right(monkeypatch):
    found = kernels()
    monkeypatch.setattr(checked, "kernels", lambda: [Wrong(found[0], "conv"), found[-1]])
    with pytest.raises(FeaturemillError, match=r"wrong numbers on this CPU \(broken\); pass --engine ncnn"):
        checked.checked_kernel()

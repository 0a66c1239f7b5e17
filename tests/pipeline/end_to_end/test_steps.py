"""Within an epoch one sees the step, the loss and the time left, on a terminal and in a log."""

import io

import pytest

from pipeline.end_to_end.steps import Steps


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, quiet=False):
    """Returns what is shown of two epochs of 10 steps, each of 7 seconds but the very first, of 20."""
    seconds = 0.0
    with Steps(steps=10, epochs=3, quiet=quiet, stream=stream, clock=lambda: seconds) as steps:
        for epoch in (1, 2):
            for step in range(1, 11):
                seconds += 20 if (epoch, step) == (1, 1) else 7
                steps.tick(epoch, step, 1 / step)
    return stream.getvalue()


def test_a_log_has_a_line_every_half_minute():
    lines = shown(io.StringIO()).splitlines()
    # The first step compiled: it says nothing of the others.
    assert lines[0] == "epoch 1 of 3: step 3 of 10, loss 0.3333, 49 s left in this epoch"
    assert lines[1] == "epoch 1 of 3: step 8 of 10, loss 0.1250, 14 s left in this epoch"
    assert lines[2] == "epoch 2 of 3: step 3 of 10, loss 0.3333, 49 s left in this epoch"
    assert len(lines) == 4


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    printed = shown(Terminal())
    assert "epoch 2 of 3" in printed
    assert "step 10 of 10, loss 0.1000, 0 s left in this epoch" in printed


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_quiet_is_quiet(stream):
    assert shown(stream(), quiet=True) == ""

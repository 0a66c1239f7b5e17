"""Threads that work ahead: the same results in the same order, never too many of them, and none for nobody."""

import threading
import time

import pytest

from transforms.machine import ahead


def test_results_come_in_the_order_of_the_items():
    def slow_at_first(item):
        time.sleep(0.05 if item < 2 else 0)
        return item * item

    assert list(ahead(slow_at_first, range(50), threads=4, most=8)) == [item * item for item in range(50)]
    assert list(ahead(abs, [])) == []


@pytest.mark.parametrize(
    ("limits", "at_most"), [({"most": 5}, 5), ({"size": lambda item: 10, "most_bytes": 30}, 3)], ids=["items", "bytes"]
)
def test_no_more_is_begun_than_may_wait(limits, at_most):
    taken = []
    results = ahead(str, (taken.append(item) or item for item in range(100)), threads=2, **limits)
    for count in range(1, 11):
        next(results)
        # What was handed out, what waits, and the item that found no room.
        assert len(taken) <= count + at_most
    results.close()
    assert len(taken) <= 10 + at_most


def test_one_that_is_larger_than_the_limit_passes():
    assert list(ahead(len, [b"x" * 9, b"", b"y" * 9], size=len, most_bytes=5)) == [9, 0, 9]


def test_an_error_rises_in_its_turn_and_ends_the_rest():
    done = []

    def work(item):
        if item == 3:
            raise ValueError("the third")
        done.append(item)
        time.sleep(0.2 if item > 3 else 0)
        return item

    results = ahead(work, range(1000), threads=1)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(results)
    assert len(done) < 100


def test_whoever_stops_leaves_no_thread_behind():
    before = set(threading.enumerate())
    for _ in ahead(lambda item: time.sleep(0.01), range(1000), threads=3):
        break
    assert set(threading.enumerate()) <= before

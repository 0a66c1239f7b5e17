"""What `make bench` says of whole commands: shares of the bare engine, and what decoding leaves of it."""

import pytest

from benchmarks import __main__ as bench
from benchmarks import table


def test_shares_and_limit_at_each_precision(monkeypatch):
    monkeypatch.setattr(bench, "choose", lambda name, precision, backbone: "winograd")
    monkeypatch.setattr(bench, "available_cores", lambda: 2)
    whole = ("extract", 21.0, 110.5), ("extract --precision int16", 10.5, 55.25)
    found = {
        "bare": [
            {"what": "winograd", "images_per_second": [20]},
            {"what": "winograd int16", "images_per_second": [40]},
        ],
        "decoding": [{"what": "photos, 2 threads", "images_per_second": [80, 90, 200, 360, 400]}],
        "small": [{"what": what, "seconds": [seconds]} for what, seconds, _ in whole],
        "large": [{"what": what, "seconds": [seconds]} for what, _, seconds in whole],
    }
    single, half = bench.steady_state(found)
    assert list(single.values())[1:] == pytest.approx([18.1, 0.905, 20.0, 1.0, 1 / 1.1], abs=1e-3)
    assert half["limit"] == pytest.approx(1 / 1.2)
    # On four cores the same decoding takes half as long beside an engine of the same rate.
    monkeypatch.setattr(bench, "available_cores", lambda: 4)
    assert bench.steady_state(found)[1]["limit"] == pytest.approx(1 / 1.1)
    assert table._steady_table([single])[-1] == "| `extract` | 18.10 | 0.90 | 20.00 | 1.00 | 0.91 |"
    assert bench.steady_state({"bare": []}) == []

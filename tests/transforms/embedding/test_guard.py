"""Images that crash, hold up or fill their decoder: failures of a unit, which goes on behind them."""

import os
import threading
import time

import pyarrow.parquet as pq
import pytest

from benchmarks.gpu import photo
from tests.pipeline.extraction import test_run as te
from tests.support import deadly
from tests.support.factories import draw_items
from transforms.embedding import attempts, decoders
from transforms.embedding.attempts import attempt, begun
from transforms.embedding.unit import Job
from transforms.records import EncodedImage, Failure

DEEDS = {
    "abort": ("crashed the decoder", "crashed the decoder (signal 6)"),
    "segfault": ("crashed the decoder", "crashed the decoder (signal 11)"),
    "exit": ("crashed the decoder", "crashed the decoder (exit code 3)"),
    "loop": ("too slow", "takes over 0.5 s; raise --record-seconds"),
    "hold": ("too slow", "takes over 0.5 s; raise --record-seconds"),
    "memory": ("out of memory", "takes over 315 MB of memory; raise --record-memory"),
}
LIMITS = {"record_seconds": 0.5, "record_memory": 300 << 20}


def write_photos(folder, deeds) -> None:
    folder.mkdir()
    for number, item in enumerate(item for item in draw_items(per_class=3, size=40, seed=4) if item.data):
        (folder / f"{number:02}_good.png").write_bytes(item.data)
    for number, deed in enumerate(deeds):
        # Before, between and behind good ones.
        (folder / f"{5 * number:02}_{deed}.bmp").write_bytes(deadly.image(deed))


def failures(output) -> dict[str, tuple[str, str]]:
    """{name of the file: (error, message)} of all failures."""
    rows = [row for part in (output / "failures").iterdir() for row in pq.read_table(part).to_pylist()]
    return {os.path.basename(row["key"]): (row["error"], row["message"]) for row in rows}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with an image of each kind that is deadly in child processes, and not in this one."""
    write_photos(tmp_path / "photos", DEEDS)
    for name, value in deadly.codecs(tmp_path / "codecs").items():
        monkeypatch.setenv(name, value)
    return tmp_path / "photos"


def leave_notes(folder, output, **more) -> None:
    """Leaves OUT as a run does whose process ended while all its units were under way."""
    te.extract(folder, output, **more)
    for part in (output / "features").iterdir():
        part.unlink()
        (output / f"_tmp/{part.stem}{attempts._ENDING}").write_text("begun")


def assert_guilty(output, summary, deeds=tuple(DEEDS)) -> None:
    found = failures(output)
    for deed in deeds:
        [(error, message)] = [pair for name, pair in found.items() if deed in name]
        assert error == DEEDS[deed][0]
        assert DEEDS[deed][1] in message
    totals = summary.totals
    assert (totals.rows_read, totals.rows_failed) == (totals.rows_embedded + len(found), len(found))
    assert os.listdir(output / "_tmp") == []


def test_a_unit_that_was_under_way_is_done_apart(photos, tmp_path):
    output = tmp_path / "out"
    te.extract(photos, output, **LIMITS)
    assert not [name for name in failures(output) if name.endswith(".bmp")], "this process was to decode them"
    leave_notes(photos, output, **LIMITS)
    summary = te.extract(photos, output, **LIMITS)
    assert_guilty(output, summary)
    assert summary.failures["decode: crashed the decoder"] == 3


def test_all_units_without_a_note_are_done_in_this_process(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(decoders.Isolated, "call", None)
    te.extract(photos, tmp_path / "out")


def test_a_note_lies_there_as_long_as_a_unit_is_under_way(tmp_path):
    output = str(tmp_path)
    with attempt(output, "one.unit-01") as is_second:
        assert not is_second
        assert begun(output) == {"one.unit-01"}
        with attempt(output, "other") as is_second:
            assert not is_second
    assert begun(output) == set()
    with pytest.raises(KeyError), attempt(output, "one.unit-01"):
        raise KeyError
    assert begun(output) == set()
    never_left = attempt(output, "one.unit-01")
    never_left.__enter__()
    with attempt(output, "one.unit-01") as is_second:
        assert is_second


def job(**more) -> Job:
    options = te.options("x", "/tmp/out", **more)
    return options.job(te.WEIGHTS)


def test_images_behind_one_that_is_left_behind_are_decoded(monkeypatch):
    """A thread takes several at once, and all but one of them are as they would be by themselves."""
    is_over, decode_record = threading.Event(), decoders.decode_record

    def held_up(image, how, apart=None):
        if image.key == "2" and apart is None:
            while not is_over.is_set():
                pass
        return decode_record(image, how, apart)

    monkeypatch.setattr(decoders, "decode_record", held_up)
    data = photo(0, (40, 40))
    images = [EncodedImage(str(number), None, "s", number, data) for number in range(5)]
    given_back = []
    with decoders.Decoders(1, job(**LIMITS), done=lambda image: given_back.append(image.key)) as threads:
        found = threads.results(threads.submit(images))
    is_over.set()
    assert [each.key if isinstance(each, Failure) else each.image.key for each in found] == list("01234")
    assert [each.error for each in found if isinstance(each, Failure)] == ["too slow"]
    assert given_back == list("01234")


def test_an_image_that_holds_up_a_thread_is_left_behind(photos, tmp_path, monkeypatch):
    """In this process, where no thread can be ended."""
    is_over, decode_record = [], decoders.decode_record
    left_behind = []

    def held_up(image, how, apart=None):
        if apart is None and "loop" in image.key:
            while not is_over:
                pass
            left_behind.append(image.key)
        return decode_record(image, how, apart)

    monkeypatch.setattr(decoders, "decode_record", held_up)
    output = tmp_path / "out"
    summary = te.extract(photos, output, **LIMITS)
    assert_guilty(output, summary, ["loop"])
    assert not left_behind
    # As long as that one computes, all is decoded apart.
    summary = te.extract(photos, tmp_path / "again", **LIMITS)
    assert_guilty(tmp_path / "again", summary)
    is_over.append(True)
    deadline = time.monotonic() + 60
    while not left_behind:
        assert time.monotonic() < deadline
        time.sleep(0.01)

"""The command over images that crash their decoder: it goes on by itself, and ends as it does without any."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import ROOT
from tests.pipeline.extraction.test_run import rows
from tests.pipeline.prediction.test_run import draw_head
from tests.support import commands, deadly
from tests.support.commands import finish
from tests.support.factories import draw_items
from tests.transforms.embedding.test_guard import DEEDS, failures, write_photos
from transforms.predictors.head import save_head

pytestmark = pytest.mark.long

SETTINGS = ["--image-size", "32", "--batch-size", "4", "--record-seconds", "0.5", "--record-memory", "300MiB"]


def start(tmp_path, *args, pause: float = 0.0, **more) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.support.fakes", *map(str, args), *SETTINGS]
    environment = deadly.codecs(tmp_path / "codecs", FAKE_PAUSE_SECONDS=str(pause))
    return commands.start(command, env=environment, **more)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_no_image_ends_a_run(tmp_path, workers):
    """Each crashes the process once; where memory is short the system would."""
    write_photos(tmp_path / "photos", ["abort", "segfault", "loop", "exit"])
    output = tmp_path / "out"
    code, out, err = finish(
        start(tmp_path, tmp_path / "photos", "-o", output, "--json", "--quiet", "--workers", workers)
    )
    assert code == 0, err
    lines = err.splitlines()
    assert 1 <= len(lines) <= 3
    assert all("crashed (" in line and "going on" in line for line in lines), err
    found = failures(output)
    for deed in ("abort", "segfault", "loop", "exit"):
        [(error, message)] = [pair for name, pair in found.items() if deed in name]
        assert error == DEEDS[deed][0]
        assert DEEDS[deed][1] in message
    totals = json.loads(out)["totals"]
    assert totals["rows_read"] == totals["rows_embedded"] + totals["rows_failed"]
    assert totals["rows_embedded"] == len(rows(output)) > 5
    assert os.listdir(output / "_tmp") == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_image_that_keeps_the_lock_for_ever_is_too_slow(tmp_path, workers):
    """No thread of its process can notice, nor can Ctrl-C."""
    write_photos(tmp_path / "photos", ["hold"])
    output = tmp_path / "out"
    code, _, err = finish(start(tmp_path, tmp_path / "photos", "-o", output, "--quiet", "--workers", workers))
    assert code == 0, err
    assert "crashed (signal 27, a record took too long) while " in err
    assert len(err.splitlines()) == 1
    [(error, message)] = [pair for name, pair in failures(output).items() if "hold" in name]
    assert error == DEEDS["hold"][0]
    assert DEEDS["hold"][1] in message
    assert os.listdir(output / "_tmp") == []


@pytest.mark.parametrize("deed", ["hold", "hang"])
def test_a_shard_whose_reading_hangs_is_read_as_far_as_it_can_be(tmp_path, deed):
    """With Python's lock or without."""
    items = [item for item in draw_items(per_class=3, size=40, seed=4) if item.data]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [item.data for item in items[:6]]}), path, row_group_size=2)
    codecs = deadly.codecs(tmp_path / "codecs", DEADLY_ROW_GROUP="1", DEADLY_DEED=deed)
    command = [sys.executable, "-m", "tests.support.fakes", str(path), "-o", str(tmp_path / "out"), "--quiet"]
    code, _, err = finish(commands.start([*command, *SETTINGS], env=codecs))
    assert code == 0, err
    assert "crashed (signal 27, a record took too long) while x.parquet-" in err
    assert len(rows(tmp_path / "out")) == 2
    [(error, message)] = failures(tmp_path / "out").values()
    assert error == "too slow"
    assert "beyond record 2: it takes over 0.5 s" in message


_PREDICT = """
from functools import partial
from pipeline.prediction import run as module
from tests.support.fakes import WEIGHTS, load_fake
module.predict = partial(module.predict, load=load_fake, weights=WEIGHTS)
from pipeline.cli import main
main()
"""


def test_a_file_of_predictions_is_written_over_a_crash(tmp_path):
    """What went before is kept in a folder for the time being, and --overwrite still holds for the file."""
    write_photos(tmp_path / "photos", ["abort"])
    save_head(draw_head(["a", "b"]), str(tmp_path / "HEAD"))
    (tmp_path / "found.csv").write_text("an earlier one")
    args = ["predict", tmp_path / "HEAD", tmp_path / "photos", "-o", tmp_path / "found.csv", "--overwrite", "-q"]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    environment = deadly.codecs(tmp_path / "codecs", TMPDIR=str(temporary))
    command = [sys.executable, "-c", _PREDICT, *map(str, args)]
    code, out, err = finish(commands.start(command, env=environment, cwd=ROOT))
    assert code == 0, err
    assert "crashed (" in err
    assert "going on" in err
    assert "decode: crashed the decoder" in out
    assert (tmp_path / "found.csv").read_text().startswith("key,")
    assert list(temporary.glob("featuremill-predict-*")) == []


def wait_until(happens, command: subprocess.Popen) -> None:
    deadline = time.monotonic() + commands.SECONDS
    while not happens() and command.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def under_way(tmp_path, *args, **more) -> tuple[subprocess.Popen, list[psutil.Process]]:
    """Starts a slow command, and returns it and its children when units are under way."""
    write_photos(tmp_path / "photos", [])
    command = start(tmp_path, tmp_path / "photos", "-o", tmp_path / "out", "--unit-bytes", "1", *args, **more)
    folder = tmp_path / "out/_tmp"
    wait_until(lambda: folder.is_dir() and any(name.endswith(".begun") for name in os.listdir(folder)), command)
    return command, psutil.Process(command.pid).children(recursive=True)


@pytest.mark.parametrize(
    ("number", "to_all"),
    [
        (signal.SIGKILL, False),
        (signal.SIGTERM, False),
        (signal.SIGHUP, False),
        (signal.SIGINT, False),
        (signal.SIGINT, True),
    ],
)
def test_a_signal_to_the_command_ends_all_of_it(tmp_path, number, to_all):
    command, children = under_way(tmp_path, "--quiet", pause=3600)
    assert children
    os.killpg(command.pid, number) if to_all else command.send_signal(number)
    code, _, err = finish(command, 30)
    if number == signal.SIGINT:
        assert code == 130
        assert (
            err.strip() == "featuremill: interrupted; what was committed is kept: run the same command again to go on"
        )
    else:
        assert (code, err) == (-number, "")
    _, alive = psutil.wait_procs(children, 10)
    assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []


def test_what_the_system_kills_goes_on(tmp_path):
    """As for lack of memory."""
    command, children = under_way(tmp_path, "--quiet", pause=0.5)
    children[0].kill()
    code, _, err = finish(command)
    assert code == 0, err
    assert "crashed (signal 9, perhaps for lack of memory) while " in err
    assert len(err.splitlines()) == 1


def test_it_gives_up_where_it_gets_no_further(tmp_path):
    """What crashes isn't an image: the engine does."""
    write_photos(tmp_path / "photos", [])
    code = (
        "import os, sys\n"
        "from tests.support import fakes\n"
        "fakes.FakeEngine.embed = lambda *_: os.abort()\n"
        f"sys.argv[1:] = {[str(tmp_path / 'photos'), '-o', str(tmp_path / 'out'), '--quiet', *SETTINGS]!r}\n"
        "fakes.main()\n"
    )
    code, out, err = finish(commands.start([sys.executable, "-c", code]))
    assert (code, out) == (1, "")
    first, last = err.splitlines()
    assert "going on" in first
    assert "crashed (signal 6) again while photos-" in last
    assert "please report this" in last


def test_a_crash_under_a_limit_to_memory_says_so():
    """As what ncnn and OpenMP do where they get no thread."""
    code = (
        "import os, resource\n"
        "from pipeline.runners.supervised import supervise\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))\n"
        "supervise([])\n"
        "os.abort()\n"
    )
    code, _, err = finish(commands.start([sys.executable, "-c", code]))
    message = "featuremill: crashed (signal 6, perhaps for lack of memory, which ulimit -v limits)"
    assert (code, err) == (1, f"{message}; what was committed is kept; raise the limit\n")


def test_it_removes_what_was_there_only_once(tmp_path):
    write_photos(tmp_path / "photos", [])
    code, _, err = finish(start(tmp_path, tmp_path / "photos", "-o", tmp_path / "out"))
    assert code == 0, err
    for number in range(3):
        (tmp_path / f"photos/{number}_abort.bmp").write_bytes(deadly.image("abort", height=number + 5))
    args = (tmp_path / "photos", "-o", tmp_path / "out", "--overwrite", "--yes", "--unit-bytes", "1", "--json")
    code, _, err = finish(start(tmp_path, *args))
    assert code == 0, err
    assert err.count("going on") >= 1
    assert len(failures(tmp_path / "out")) >= 3


def test_a_sample_and_failures_that_are_retried_are_done_apart(tmp_path):
    write_photos(tmp_path / "photos", ["abort", "segfault"])
    code, _, err = finish(start(tmp_path, tmp_path / "photos", "-o", tmp_path / "out", "--limit", "20", "--quiet"))
    assert (code, err) == (0, "")
    assert len(failures(tmp_path / "out")) == 5
    code, _, err = finish(start(tmp_path, tmp_path / "photos", "-o", tmp_path / "all", "--quiet"))
    assert (code, err.count("going on")) == (0, 1)
    args = (tmp_path / "photos", "-o", tmp_path / "all", "--quiet", "--retry-failed")
    code, _, err = finish(start(tmp_path, *args))
    assert (code, err) == (0, "")

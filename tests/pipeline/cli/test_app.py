"""The command line: exit codes, messages, what is printed where. No network is computed here."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import click
import pytest

from pipeline.cli import app
from pipeline.cli.app import run_cli
from pipeline.cli.options import failures_exit_code
from pipeline.demo.samples import draw_items, write_tar
from pipeline.extraction import run as extract_module
from tests import ROOT
from tests.support.fakes import WEIGHTS, load_fake
from tests.support.pages_data import clusters, write_out
from transforms.engines import choose
from transforms.errors import FeaturemillError
from transforms.storage import readable
from transforms.store.manifest import SCHEMA_VERSION


def test_a_run_of_which_all_images_failed_is_no_success(capsys):
    assert [failures_exit_code(rate, 1.0, "OUT/failures") for rate in (0.0, 0.99)] == [0, 0]
    assert failures_exit_code(1.0, 1.0, "OUT/failures") == 3
    assert "all images failed; see OUT/failures" in capsys.readouterr().err


@pytest.fixture
def tar(tmp_path) -> Path:
    write_tar(tmp_path / "photos.tar", draw_items(per_class=3, size=40, seed=0))
    return tmp_path / "photos.tar"


@pytest.fixture
def fake_engine(monkeypatch):
    real = extract_module.run
    monkeypatch.setattr(extract_module, "run", lambda o, **more: real(o, load=load_fake, weights=WEIGHTS, **more))


@pytest.mark.usefixtures("fake_engine")
def test_plan_goes_to_stderr_and_summary_to_stdout(tar, tmp_path, capsys):
    assert run_cli(["extract", str(tar), "-o", str(tmp_path / "out"), "--image-size", "32"]) == 0
    captured = capsys.readouterr()
    for word in (
        "1 shard matched",
        "1 to do",
        "512 × float32",
        f"engine   {choose('auto', 'float32')} on",
        "threads",
        readable(str(tmp_path / "out")),
    ):
        assert word in captured.err
    assert "read 12 = embedded 8 + failed 4" in captured.out


@pytest.mark.usefixtures("fake_engine")
def test_json_is_all_there_is_on_stdout(tar, tmp_path, capsys):
    run_cli(["extract", str(tar), "-o", str(tmp_path / "out"), "--image-size", "32", "--json", "--quiet"])
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["totals"]["rows_embedded"] == 8
    assert sum(summary["failures"].values()) == 4
    assert captured.err == ""
    assert run_cli(["inspect", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 8


@pytest.mark.usefixtures("fake_engine")
def test_overwrite_asks_first(tar, tmp_path, monkeypatch, capsys):
    args = ["extract", str(tar), "-o", str(tmp_path / "out"), "--image-size", "32", "--quiet"]
    assert run_cli(args) == 0
    for answer in (False, click.Abort()):
        monkeypatch.setattr("click.confirm", mock.Mock(side_effect=[answer]))
        assert run_cli([*args, "--overwrite"]) == 1
        assert "nothing was removed" in capsys.readouterr().err
    assert (tmp_path / "out/manifest.json").exists()
    assert run_cli([*args, "--overwrite", "--yes"]) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--backbone", "vgg18"], "no backbone 'vgg18'; did you mean vgg1"),
        (["--feature", "x=block5_pol:avg"], "did you mean block5_pool"),
        (["--feature", "x=block5_pool:mean"], "no pooling 'mean'"),
        (["--feature", "x=fc1:flatten"], "pass --include-top"),
        (["--feature", "block5_pool"], "NAME=TAP:POOL"),
        (["--feature", "key=block5_pool:avg"], "can't be its column"),
        (["--feature", "x=block5_pool:avg", "--feature", "x=block4_pool:avg"], "two features are called 'x'"),
        (["--interpolation", "bicubical"], "did you mean bicubic"),
        (["--image-size", "16"], "below 32"),
        (["--batch-size", "0"], "at least 1"),
        (["--batch-size", "many"], "'many' is neither auto nor a number of images, such as 64"),
        (["--max-failure-rate", "2"], "between 0 and 1"),
        (["--unit-bytes", "big"], "not a size"),
        (["--weights", "random:x"], "random:"),
        (["--engine", "kera"], "did you mean keras"),
        (["--engine-per", "core"], "no 'core' for --engine-per; did you mean worker"),
        (["--weights", "random:0", "--", "--flink_verson=2"], "did you mean --flink_version"),
        (["--engine", "ncnn", "--precision", "bfloat16"], "pass --engine keras"),
        (["--weights", "random:0", "--runner", "Nonsense"], "runner 'Nonsense' can't be used"),
        (["--weights", "random:0", "--", "--direct_num_workers=2"], "pass --workers before it"),
        (["--weights", "random:0", "--", "--runner=FlinkRunner"], "pass --runner before it"),
        (["--weights", "random:0", "--", "--flink_version=9"], "Beam's options"),
        (["--image-size", "100000"], "is over 2048"),
        (["--feature", "a=block5_pool:avg", "--feature", "A=block4_pool:avg"], "two features are called 'a'"),
        (["--feature", "Key=block5_pool:avg"], "can't be its column"),
        (["--wokers", "2"], "--workers"),
        (["--include-top", "--image-size", "128", "--feature", "x=fc1:flatten"], "image_size must be 224"),
    ],
)
def test_usage_errors_exit_2_with_the_valid_names(tar, tmp_path, capsys, args, message):
    assert run_cli(["extract", str(tar), "-o", str(tmp_path / "out"), *args]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_missing_input_exits_1_before_any_work(tmp_path, capsys):
    assert run_cli(["extract", str(tmp_path / "no*.tar"), "-o", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert "no*.tar" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("url", ["ftp://host/x", "https://host/x"])
def test_stores_that_are_none_of_ours_exit_1_with_the_cure(tar, tmp_path, capsys, url):
    assert run_cli(["extract", url, "-o", str(tmp_path / "out"), "--weights", "random:0"]) == 1
    assert "use s3://, gs://, abfss://, hdfs://" in capsys.readouterr().err
    assert run_cli(["extract", str(tar), "-o", url, "--weights", "random:0"]) == 1
    assert "use s3://, gs://, abfss://, hdfs://" in capsys.readouterr().err


def test_missing_weights_exit_1(tar, tmp_path, capsys):
    args = ["extract", str(tar), "-o", str(tmp_path / "out"), "--weights", str(tmp_path / "no.h5")]
    assert run_cli(args) == 1
    assert "no.h5" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_inspect_of_nothing_exits_1(tmp_path, capsys):
    assert run_cli(["inspect", str(tmp_path)]) == 1
    assert "holds no features" in capsys.readouterr().err


@pytest.mark.parametrize("spec", [{}, {"features": [{"name": "embedding"}]}, {"features": 3}, [], None])
def test_a_manifest_whose_spec_is_broken_exits_1(tmp_path, capsys, spec):
    manifest = {"schema_version": SCHEMA_VERSION, "fingerprint": "f", "spec": spec, "status": "complete", "totals": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert run_cli(["inspect", str(tmp_path)]) == 1
    assert "its spec is not one of featuremill" in capsys.readouterr().err


def without_override(*args):
    """Runs featuremill without root's right to read and write what it has no permission for."""
    import os

    less = "-dac_override,-dac_read_search"
    prefix = [] if os.geteuid() else ["setpriv", "--bounding-set", less, "--inh-caps", less]
    command = [*prefix, sys.executable, "-m", "pipeline.cli", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["features", "manifest.json"])
def test_what_may_not_be_read_gets_its_cure(tmp_path, name):
    write_out(tmp_path / "out", clusters(20)[0])
    (tmp_path / "out" / name).chmod(0)
    try:
        done = without_override("inspect", tmp_path / "out")
    finally:
        (tmp_path / "out" / name).chmod(0o755)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "Permission denied" in line
    assert line.endswith("; fix the permissions")


def test_a_full_standard_output_gets_its_cure():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pipeline.cli", "describe", "vgg16"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("; free some space")


def test_describe(capsys):
    assert run_cli(["describe", "vgg19", "--include-top"]) == 0
    assert "143,667,240" in capsys.readouterr().out
    assert run_cli(["describe", "vgg91"]) == 2


def test_tracebacks_only_with_debug(tmp_path):
    command = [sys.executable, "-m", "pipeline.cli", "inspect", str(tmp_path)]
    plain = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    debug = subprocess.run([*command, "--debug"], cwd=ROOT, capture_output=True, text=True)
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
    assert plain.returncode == debug.returncode == 1


def test_every_command_and_option_has_help(capsys):
    from pipeline.cli.app import cli

    for name, command in cli.commands.items():
        assert command.help, name
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or parameter.help, (name, parameter.name)
        assert run_cli([name, "--help"]) == 0
    assert re.search(r"Exit codes: 0 complete", capsys.readouterr().out)


def test_closed_standard_streams(tar, tmp_path):
    """As with `2>&-`: what is asked for is done, and no file of the run gets what was to be said."""
    command = f"exec {sys.executable} -m tests.support.fakes {tar} --image-size 32 -o {tmp_path}/out"
    for number, closed in enumerate(("2>&-", ">&-", "<&- >&- 2>&-")):
        shell = ["bash", "-c", f"{command}{number} {closed}"]
        done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        manifest = json.loads((tmp_path / f"out{number}" / "manifest.json").read_text())
        assert manifest["totals"]["rows_embedded"] == 8
        assert ("read 12 = embedded 8 + failed 4" in done.stdout) == (closed == "2>&-")


@pytest.mark.parametrize("function", ["transforms.engines.cache", "transforms.network.published"])
def test_no_home_folder(monkeypatch, function):
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    for name in ("FEATUREMILL_CACHE", "KERAS_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(FeaturemillError, match="no home folder is known for this user; set HOME"):
        importlib.import_module(function).cache_folder()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "featuremill: out of memory; free some, or raise the limit (ulimit -v)"),
        (RuntimeError("can't start new thread"), "featuremill: out of memory (can't start new thread); free some, or"),
        (ImportError("a.so: failed to map segment from shared object"), "featuremill: out of memory (a.so: failed to"),
    ],
)
def test_a_lack_of_memory_is_reported_with_its_cure(monkeypatch, capsys, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(app.cli, "main", fail)
    assert run_cli(["inspect", "x"]) == 1
    assert capsys.readouterr().err.startswith(message)

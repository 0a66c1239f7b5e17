"""`import featuremill`: what it gives, at what price, under which names, and what it says where another hides ours."""

import doctest
import inspect
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

import featuremill
from pipeline.cli.app import cli
from pipeline.demo.samples import draw_items, write_folder
from pipeline.runners.options import beam_runner
from tests import ROOT
from tests.support.commands import start
from transforms.machine import own_command

COMMANDS = ("extract", "train", "predict", "query")
# Each example may use what those before it have written.
EXAMPLES = (*COMMANDS, "open_features", "FeatureSpec", "layers", "build", "EmbedImages")
# What a command does with its result, and what only a terminal needs.
PRINTING = {"json", "quiet", "debug", "yes", "html"}


def python(*args: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("front")
    write_folder(folder / "photos", draw_items(per_class=21, size=40, seed=0))
    return folder


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    text = inspect.getdoc(getattr(featuremill, name))
    example = doctest.DocTestParser().get_doctest(text, {"featuremill": featuremill}, name, None, None)
    assert example.examples
    printed = []
    doctest.DocTestRunner().run(example, out=printed.append)
    assert "".join(printed) == ""


def test_everything_has_an_example():
    assert {*EXAMPLES, "FeaturemillError", "__version__"} == set(dir(featuremill)) == set(featuremill.__all__)


@pytest.mark.parametrize("name", COMMANDS)
def test_keywords_are_the_commands_options(name):
    flags = {param.opts[0] for param in cli.commands[name].params}
    options = {flag[2:].replace("-", "_") for flag in flags if flag.startswith("--")} - PRINTING
    # Of query they are where the result is written to, and over what.
    options -= {"output", "overwrite"} if name == "query" else set()
    parameters = inspect.signature(getattr(featuremill, name)).parameters
    assert set(parameters) - {"inputs", "features", "quiet", "beam_args"} == options - {"quiet"}


def test_a_path_a_text_and_a_list_are_the_same(folder, monkeypatch):
    monkeypatch.chdir(folder)
    places = [folder / "features", str(folder / "features")]
    images = sorted(folder.glob("photos/*/*_000.jpg"))
    found = [featuremill.query(place, image=images, top=1) for place in places]
    one = featuremill.query("features", image=images[0], top=1)
    assert [len(some.queries) for some in found] == [4, 4]
    assert one.neighbours[0] == found[0].neighbours[0] == found[1].neighbours[0]
    assert repr(one).splitlines()[0] == f"image {images[0]}"


def test_what_cannot_be_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(TypeError, match=r"no option 'imagesize'; did you mean image_size"):
        featuremill.extract("photos", output="other", imagesize=32)
    with pytest.raises(featuremill.FeaturemillError, match="no backbone"):
        featuremill.extract("photos", output="other", backbone="vgg18")
    with pytest.raises(featuremill.FeaturemillError, match="head and compare"):
        featuremill.train("features", output="other", head="knn", compare=["ridge"])
    settings = {"weights": "random:0", "image_size": 32}
    with pytest.raises(featuremill.FeaturemillError, match=r"4\.76% of the images failed, over max_failure_rate 1"):
        featuremill.extract("photos", output="features", max_failure_rate=0.01, **settings)


def test_heads_are_compared(folder, monkeypatch):
    monkeypatch.chdir(folder)
    trained = featuremill.train(Path("features"), output=Path("best"), compare=["ridge", "knn"], val_fraction=0.5)
    assert [run["kind"] for run in trained.runs] == ["ridge", "knn"]
    assert "best: head.json" in repr(trained)


def test_importing_is_light():
    heavy = "{'numpy', 'pyarrow', 'tensorflow', 'apache_beam', 'click'}"
    assert python("-c", f"import sys, featuremill; print({heavy} & {{*sys.modules}})", cwd=ROOT).stdout == "set()\n"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'extrakt'"):
        _ = featuremill.extrakt


@pytest.fixture(params=["transforms.py", "pipeline.py", "transforms/__init__.py"])
def hiding(request, tmp_path):
    """A user's own file in the working folder."""
    path = tmp_path / request.param
    path.parent.mkdir(exist_ok=True)
    path.write_text("print('mine')\n")
    return path


def test_in_a_users_program_one_line_names_what_hides_ours(hiding, tmp_path):
    code = "import featuremill\ntry:\n    featuremill.extract\nexcept ImportError as error:\n    print(error)"
    name = hiding.relative_to(tmp_path).parts[0].removesuffix(".py")
    message = f"{hiding} hides featuremill's own package {name}; rename it, or take its folder off Python's path\n"
    assert python("-c", code, cwd=tmp_path).stdout == message
    assert message in python("-c", "import transforms, pipeline, featuremill; featuremill.train", cwd=tmp_path).stderr


@pytest.mark.parametrize("module", ["featuremill", "featuremill.own pipeline.cli"])
def test_the_command_and_its_workers_run_ours(module, hiding, tmp_path):
    shown = python("-m", *module.split(), "describe", "vgg16", cwd=tmp_path)
    assert shown.stderr == ""
    assert shown.stdout.startswith("vgg16 without top")
    assert shown.returncode == 0


@pytest.fixture(params=["current folder", "PYTHONPATH"])
def users(request, tmp_path):
    """A folder to work in and an environment, with a user's modules in the one or on the path of the other."""
    theirs = tmp_path / ("work" if request.param == "current folder" else "theirs")
    for folder in (theirs, tmp_path / "work"):
        folder.mkdir(exist_ok=True)
    # A module of Python's own as well, in the folder: what is started there must not even look at it.
    names = ["pipeline", "transforms", *(["gzip"] if theirs.name == "work" else [])]
    for name in names:
        (theirs / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write('{name} ')\n")
    environment = os.environ | ({"PYTHONPATH": str(theirs)} if theirs.name == "theirs" else {})
    yield tmp_path / "work", environment
    assert not (tmp_path / "imported").exists(), (tmp_path / "imported").read_text()


def test_workers_never_import_a_users_modules(users, folder):
    work, environment = users
    (work / "photos").symlink_to(folder / "photos")
    entry = "from featuremill.__main__ import main; main()"
    options = ["--workers", "2", "--weights", "random:0", "--image-size", "32", "--quiet"]
    # As the console script: its path begins with the folder that it lies in.
    command = [sys.executable, "-c", f"import sys; sys.path[0] = {str(ROOT)!r}; {entry}"]
    command += ["extract", "photos", "-o", "out", *options]
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert "read 84 = embedded 80 + failed 4" in done.stdout, done.stderr


def test_a_pool_and_its_workers_never_import_a_users_modules(users):
    from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, endpoints_pb2

    work, environment = users
    with socket.socket() as one, socket.socket() as other:
        ports = []
        for server in (one, other):
            server.bind(("localhost", 0))
            ports.append(server.getsockname()[1])
    # As docs/running.md says.
    command = [sys.executable, "-m", "featuremill.own", "pipeline.runners.worker_pool", "--port", str(ports[0])]
    pool = start(command, cwd=work, env=environment)
    try:
        assert "workers wait on localhost" in pool.stdout.readline(), pool.communicate()[1]
        with grpc.insecure_channel(f"localhost:{ports[0]}") as channel, hanging_up(ports[1]):
            stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
            control = endpoints_pb2.ApiServiceDescriptor(url=f"localhost:{ports[1]}")
            answer = stub.StartWorker(beam_fn_api_pb2.StartWorkerRequest(worker_id="w1", control_endpoint=control))
            assert answer.error == ""
            # The worker was up, and found a runner that hangs up; else this is a line of its traceback, or none.
            printed = next(line for line in pool.stderr if not line.startswith("WARNING"))
            assert f"worker w1 of localhost:{ports[1]} ended" in printed
    finally:
        pool.kill()
        pool.communicate()


@contextmanager
def hanging_up(port):
    """Is a runner that has no work."""
    from apache_beam.portability.api import beam_fn_api_pb2_grpc

    class Runner(beam_fn_api_pb2_grpc.BeamFnControlServicer):
        def Control(self, requests, context):
            context.abort(grpc.StatusCode.UNAVAILABLE, "no work")

    server = grpc.server(ThreadPoolExecutor(2))
    beam_fn_api_pb2_grpc.add_BeamFnControlServicer_to_server(Runner(), server)
    server.add_insecure_port(f"localhost:{port}")
    server.start()
    try:
        yield
    finally:
        server.stop(0)


def test_workers_are_started_so():
    environment = beam_runner("FnApiRunner", 2)._default_environment
    assert environment.command_string.endswith("featuremill/own.py pipeline.runners.worker")
    assert own_command("a.module") == [sys.executable, str(ROOT / "featuremill/own.py"), "a.module"]


def test_a_feature_is_added_from_python_too(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"output": "features", "weights": "random:0", "quiet": True}
    rows = featuremill.extract(folder / "photos", image_size=32, **given).totals.rows_embedded
    summary = featuremill.extract(folder / "photos", add_feature="deep=block2_pool:avg", **given)
    assert summary.totals.rows_embedded == rows
    assert featuremill.open_features("features").to_numpy("deep").shape == (rows, 128)

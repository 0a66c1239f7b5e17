"""What goes into the image and into a `--setup_file`, and what a Flex Template accepts: all that needs no Docker."""

import json
import operator
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import app
from tests.distributed.clusters import ROOT
from transforms.network.bases import BASES

# What the Dockerfile copies before it builds wheels, and what Beam packs for `--setup_file`.
SOURCES = (
    "setup.py",
    "pyproject.toml",
    "constraints.txt",
    "README.md",
    "LICENSE",
    "featuremill",
    "pipeline",
    "transforms",
)
IMAGE = "europe-docker.pkg.dev/my-project/ml/featuremill:1"
NEEDED = {"inputs": "gs://bucket/in/*.tar", "output": "gs://bucket/out", "sdk_container_image": IMAGE}
LAUNCHERS = ("--runner=DataflowRunner", "--project=p", "--region=europe-west4", "--temp_location=gs://bucket/tmp")
# {parameter: (a value, what the command makes of it, wrong values)}
PARAMETERS = {
    "inputs": (
        "gs://bucket/a/*.tar  @gs://bucket/list.txt",
        ("gs://bucket/a/*.tar", "@gs://bucket/list.txt"),
        ["photos", "gs://", "gs://bucket/a photos", "gs://bucket/a --overwrite", "gs://bucket/a\nb"],
    ),
    "output": ("gs://bucket/out 2", "gs://bucket/out 2", ["out", "s3://bucket/out", "gs://"]),
    "sdk_container_image": (IMAGE, IMAGE, ["", "two words"]),
    "weights": ("gs://bucket/w.h5", "gs://bucket/w.h5", ["", "w.h5", "Imagenet", "random:x"]),
    "backbone": ("vgg16", "vgg16", ["vgg", "resnet"]),
    "normalise": ("caffe", "caffe", ["", "imagenet", "config.json"]),
    "path_field": ("file name", "file name", ["", "a\nb"]),
    "keep": ("price:float", ("price:float",), ["", "price:", "a\nb"]),
    "feature": ("pooled=block4_pool:gem", ("pooled=block4_pool:gem",), ["block4_pool", "a=b", "a=b:mean", "2=b:avg"]),
    "image_size": ("96", 96, ["0", "-1", "large", "1.5"]),
    "precision": ("bfloat16", "bfloat16", ["float64"]),
    "engine": ("keras", "keras", ["tensorflow"]),
    "batch_size": ("32", 32, ["0", "many", "auto 8"]),
    "unit_bytes": ("1.5MiB", 3 << 19, ["lots", "1.2.3MiB", "-1"]),
}


def launch(monkeypatch, given: dict[str, str]) -> tuple[int, list]:
    """Runs what the launcher starts, up to the run itself; returns the exit code and the options that came there."""
    from pipeline.extraction import run as extract

    seen = []
    monkeypatch.setattr(
        extract, "run", lambda options, **_: seen.append((options, extract.beam_settings(options)["options"]))
    )
    arguments = [f"--{name}={value}" for name, value in (NEEDED | given).items()]
    command = runpy.run_path(str(ROOT / "flex_template/launch.py"))["command"]
    return app.run_cli(command([*arguments, *LAUNCHERS])), seen


def metadata() -> dict[str, dict]:
    listed = json.loads((ROOT / "flex_template/metadata.json").read_text())["parameters"]
    return {parameter["name"]: parameter for parameter in listed}


def accepts(name: str, value: str) -> bool:
    """Whether the template takes this value, by its own regular expressions."""
    patterns = metadata()[name]["regexes"]
    # They bring their own anchors.
    assert all(pattern.startswith("^") and pattern.endswith("$") for pattern in patterns)
    return all(re.search(pattern, value) for pattern in patterns)


def test_every_parameter_is_tried_here():
    assert set(metadata()) == set(PARAMETERS)


def test_every_backbone_is_accepted():
    assert [name for name in BASES if not accepts("backbone", name)] == []


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_reaches_the_options_and_a_wrong_value_does_not(monkeypatch, name):
    value, expected, wrong = PARAMETERS[name]
    assert accepts(name, value)
    code, [(options, beam)] = launch(monkeypatch, {name: value})
    assert code == 0
    if name == "sdk_container_image":
        assert beam.get_all_options()[name] == expected
    else:
        places = {"feature": "features", "path_field": "fields.path"}
        assert operator.attrgetter(places.get(name, name))(options) == expected
    assert beam.get_all_options()["project"] == "p"
    assert options.runner == "DataflowRunner"
    assert [bad for bad in wrong if accepts(name, bad)] == []


@pytest.mark.parametrize("given", [{"image_size": "31"}, {"feature": "a=block9_pool:avg"}, {"unit_bytes": "1parsec"}])
def test_what_only_the_command_can_tell_is_a_usage_error(monkeypatch, capsys, given):
    assert all(accepts(name, value) for name, value in given.items())
    assert launch(monkeypatch, given) == (2, [])
    assert capsys.readouterr().err


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The package as a worker gets it by `--setup_file`: packed from a clean copy, then installed from the archive."""
    folder = tmp_path_factory.mktemp("setup_file")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    run([sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", "dist"], folder)
    [archive] = (folder / "dist").iterdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    run([*pip, "--target", str(folder / "site"), str(archive)], folder)
    return folder / "site"


def run(command: list[str], folder: Path, **env: str) -> str:
    done = subprocess.run(command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(folder: Path) -> set[str]:
    found = {
        path.relative_to(folder)
        for name in ("featuremill", "pipeline", "transforms")
        for path in (folder / name).rglob("*.*")
    }
    # Sources in C++ are compiled, not installed.
    found = {path for path in found if path.suffix not in (".cpp", ".hpp")}
    return {str(path) for path in found if "__pycache__" not in path.parts and not path.name.startswith(".")}


def test_nothing_is_missing_in_the_package(installed):
    assert files(installed) == files(ROOT)
    assert "pipeline/rendering/templates/base.html" in files(installed)


def test_the_package_works_away_from_the_checkout(installed, tmp_path):
    code = (
        "import importlib, pkgutil, pipeline, transforms\n"
        "for package in (pipeline, transforms):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        # A library that ctypes loads, by the name of a module.
        "        if not module.name.endswith('._library'):\n"
        "            print(importlib.import_module(module.name).__file__)\n"
    )
    imported = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(installed)).split()
    assert len(imported) > 100
    assert {path for path in imported if not path.startswith(f"{installed}/")} == set()
    version = re.search(r'version="(.+)"', (ROOT / "setup.py").read_text()).group(1)
    printed = run(
        [sys.executable, str(installed / "bin/featuremill"), "--version"], tmp_path, PYTHONPATH=str(installed)
    )
    assert printed == f"featuremill, version {version}\n"

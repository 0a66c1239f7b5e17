"""The walls: which folder may import which, and which heavy library belongs to which module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.structure import arrows, circles, read_modules
from tests import ROOT

MODULES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("transforms/**/*.py")])
# Each floor may import the floors below it, and nothing beside it or above. A module by itself is its own folder.
FLOORS = (
    {"pipeline.cli"},
    {"pipeline.maintenance", "pipeline.prediction", "pipeline.end_to_end"},
    {"pipeline.extraction", "pipeline.training", "pipeline.exploration", "pipeline.maps"}
    | {"pipeline.describe", "pipeline.demo"},
    {"pipeline.rendering", "pipeline.runners"},
    {"transforms.end_to_end"},
    {"transforms.predictors"},
    {"transforms.evaluation"},
    {"transforms.heads"},
    {"transforms.embedding", "transforms.similarity"},
    {"transforms.rows", "transforms.engines"},
    {"transforms.store", "transforms.images", "transforms.shards", "transforms.network"},
    {"transforms.parquet", "transforms.committed"},
    {"transforms.storage", "transforms.spec", "transforms.locks"},
    {"transforms.labels"},
    {"transforms.object_stores", "transforms.declared", "transforms.pools", "transforms.isolated"},
    {"transforms.machine"},
    {"transforms.records", "transforms.errors", "transforms.text"},
)
MOST_MODULES = 12
# Who may name a heavy library at all, lazily or not.
OWNERS = {
    "pillow_heif": {"transforms/images/decode.py"},
    "click": {
        "pipeline/cli/app.py",
        "pipeline/cli/exploration.py",
        "pipeline/cli/extraction.py",
        "pipeline/cli/heads.py",
        "pipeline/cli/help.py",
        "pipeline/cli/maintenance.py",
        "pipeline/cli/options.py",
    },
    "keras": {
        "transforms/end_to_end/assembly.py",
        "transforms/network/vgg.py",
        "transforms/network/applications.py",
        "transforms/network/bases.py",
        "transforms/network/keras_file.py",
        "transforms/network/normalise.py",
        "transforms/engines/keras.py",
        "transforms/pools.py",
        "transforms/end_to_end/tuning.py",
        "transforms/heads/neural.py",
        "transforms/network/keras_import.py",
        "transforms/end_to_end/resizing.py",
        "transforms/end_to_end/signatures.py",
        "transforms/network/weight_files.py",
        "pipeline/end_to_end/export.py",
    },
    "tensorflow": {"transforms/engines/backends.py", "transforms/end_to_end/signatures.py"},
    "jax": {"transforms/engines/backends.py"},
    "torch": {"transforms/engines/backends.py"},
    "apache_beam": {
        "transforms/embedding/embed_images.py",
        "transforms/embedding/extract_units.py",
        "pipeline/runners/options.py",
        "pipeline/extraction/run.py",
        "pipeline/runners/job_server.py",
        "pipeline/runners/watch.py",
        "pipeline/runners/worker.py",
        "pipeline/runners/worker_pool.py",
    },
    "jinja2": {"pipeline/rendering/html.py"},
    "plotly": {"pipeline/maps/page.py"},
    "umap": {"transforms/similarity/projection.py"},
    "matplotlib": {"pipeline/describe.py", "pipeline/rendering/plots.py", "pipeline/training/plots.py"},
    "duckdb": {"transforms/store/repeats.py", "transforms/rows/sandbox.py"},
    "ncnn": {"transforms/engines/ncnn.py"},
    "pyiceberg": {"pipeline/maintenance/register.py"},
    "deltalake": {"pipeline/maintenance/register.py"},
    "onnx": {"transforms/network/onnx_file.py"},
    "onnxruntime": {"transforms/network/onnx_file.py"},
    "h5py": {"transforms/network/weight_files.py"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.fixture(scope="module")
def tree():
    return read_modules(ROOT)


def room(module: str) -> str:
    """Returns what stands on a floor: the folder inside `pipeline` or `transforms`, or the module that lies there."""
    return ".".join(module.split(".")[:2])


def test_folders_import_only_from_the_floors_below(tree):
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    assert {room(name) for name in tree} == {*floor, "pipeline", "transforms"}
    graphs = [arrows(tree, typed=typed) for typed in (False, True)]
    drawn = [(name, target) for graph in graphs for name in graph for target in graph[name]]
    wrong = [
        f"{name} > {target}"
        for name, target in drawn
        if room(name) != room(target) and not floor.get(room(name), len(FLOORS)) < floor.get(room(target), -1)
    ]
    assert wrong == [], "these arrows don't run down; see FLOORS"


def test_no_circles(tree):
    assert circles(arrows(tree, typed=False)) == []


def test_no_folder_is_crowded(tree):
    folders = [module.folder for name, module in tree.items() if name != module.folder]
    assert {folder for folder in folders if folders.count(folder) > MOST_MODULES} == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_have_owners(path):
    name = path.relative_to(ROOT).as_posix()
    top = {module.split(".")[0] for module in imports(path)}
    for library, owners in OWNERS.items():
        assert library not in top or name in owners, f"{library} belongs to {sorted(owners)}"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("pipeline.cli.app", ["numpy", "pyarrow", "apache_beam", "tensorflow", "keras", "rich"]),
        ("pipeline.extraction.run", ["apache_beam", "tensorflow", "keras", "duckdb", "matplotlib"]),
        ("pipeline.maintenance.verify", ["apache_beam", "tensorflow", "keras", "ncnn"]),
        ("transforms.store.features", ["apache_beam", "tensorflow", "keras"]),
        ("transforms.embedding.extract_units", ["tensorflow", "keras"]),
        ("transforms.engines.ncnn", ["tensorflow", "keras", "ncnn", "apache_beam"]),
        ("transforms.engines.onnx", ["tensorflow", "keras", "onnx", "onnxruntime", "apache_beam"]),
        ("transforms.heads", ["pyarrow", "scipy", "sklearn", "apache_beam", "tensorflow", "keras"]),
        ("transforms.network.weights", ["tensorflow", "keras", "apache_beam"]),
    ],
)
def test_importing_is_light(module, unwanted):
    code = f"import sys, {module}; print([name for name in {unwanted!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"

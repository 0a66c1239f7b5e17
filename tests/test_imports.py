"""The walls: which folder may import which, and which heavy library belongs to which module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.structure import arrows, circles, read_modules
from tests import ROOT

MODULES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("transforms/**/*.py")])
# What everybody may import, these among themselves in this order.
GROUND = ("declared", "machine", "records", "errors", "text")
# What each folder imports beside that; a module by itself is its own folder, and those of `transforms` go without its
# name. An arrow that isn't here fails, so a new one is a decision: it must run down, so that no circle arises.
ALLOWED = {
    "pipeline.cli": (
        "pipeline.maintenance pipeline.prediction pipeline.end_to_end pipeline.exploration pipeline.maps "
        "pipeline.extraction pipeline.training pipeline.describe pipeline.rendering pipeline.runners "
        "similarity store committed storage"
    ),
    "pipeline.maintenance": (
        "pipeline.extraction pipeline.rendering similarity rows engines store shards network parquet committed "
        "spec storage"
    ),
    "pipeline.prediction": (
        "pipeline.extraction pipeline.training pipeline.rendering pipeline.runners predictors evaluation "
        "embedding rows engines store shards network parquet committed spec storage"
    ),
    "pipeline.end_to_end": (
        "pipeline.training pipeline.rendering end_to_end predictors evaluation heads rows engines store "
        "network committed spec storage pools"
    ),
    "pipeline.exploration": (
        "pipeline.rendering similarity rows engines store images network parquet spec storage isolated"
    ),
    "pipeline.maps": "pipeline.rendering similarity rows store parquet committed spec storage",
    "pipeline.extraction": (
        "pipeline.runners embedding rows engines store shards images network parquet spec storage labels object_stores"
    ),
    "pipeline.training": (
        "pipeline.rendering predictors evaluation heads similarity rows engines store committed storage labels"
    ),
    "pipeline.describe": "pipeline.rendering network committed storage",
    "pipeline.demo": "shards",
    "pipeline.rendering": "rows store parquet committed storage labels",
    "pipeline.runners": "embedding storage",
    "transforms.end_to_end": "predictors heads rows engines images network committed spec storage pools",
    "transforms.predictors": "evaluation heads rows store network parquet committed spec storage labels",
    "transforms.evaluation": "heads similarity rows labels",
    "transforms.heads": "similarity rows network",
    "transforms.similarity": "rows",
    "transforms.embedding": "rows engines store shards images spec storage isolated",
    "transforms.rows": "store shards images parquet locks spec storage labels isolated",
    "transforms.engines": "network committed spec isolated pools",
    "transforms.store": "parquet committed locks spec storage labels",
    "transforms.shards": "parquet storage labels isolated object_stores",
    "transforms.images": "spec storage",
    "transforms.network": "committed spec storage pools",
    "transforms.parquet": "storage isolated",
    "transforms.committed": "locks storage",
    "transforms.locks": "",
    "transforms.spec": "pools",
    "transforms.storage": "object_stores",
    "transforms.labels": "",
    "transforms.isolated": "",
    "transforms.object_stores": "",
    "transforms.pools": "",
}
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


@pytest.fixture(scope="module")
def allowed() -> dict[str, set[str]]:
    ground = [f"transforms.{name}" for name in GROUND]
    found = {name: set(ground[number + 1 :]) for number, name in enumerate(ground)}
    for name, targets in ALLOWED.items():
        found[name] = {each if each.startswith("pipeline.") else f"transforms.{each}" for each in targets.split()}
        found[name] |= set(ground)
    return found


def test_folders_import_only_what_they_may(tree, allowed):
    assert {room(name) for name in tree} == {*allowed, "pipeline", "transforms"}
    drawn = {
        (room(name), room(target))
        for typed in (False, True)
        for name, targets in arrows(tree, typed=typed).items()
        for target in targets
        if room(name) != room(target)
    }
    wrong = {(name, target) for name, target in drawn if target not in allowed.get(name, ())}
    assert wrong == set(), "these arrows aren't allowed; see ALLOWED"
    ground = {f"transforms.{name}" for name in GROUND}
    listed = {(name, target) for name in ALLOWED for target in allowed[name] - ground}
    assert listed <= drawn, "nobody needs these any more; take them out of ALLOWED"


def test_what_is_allowed_runs_down(allowed):
    """The folders stand in the tree's order, top to bottom."""
    order = [*ALLOWED, *(f"transforms.{name}" for name in GROUND)]
    above = [(name, each) for name in allowed for each in allowed[name] if order.index(each) <= order.index(name)]
    assert above == []


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

"""The walls: who may import whom, and which heavy library belongs to which module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

MODULES = sorted([*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("transforms/**/*.py")])
# Who may name a heavy library at all, lazily or not.
OWNERS = {
    "click": {
        "pipeline/cli/app.py",
        "pipeline/cli/exploration.py",
        "pipeline/cli/extraction.py",
        "pipeline/cli/heads.py",
        "pipeline/cli/maintenance.py",
        "pipeline/cli/options.py",
    },
    "keras": {
        "transforms/end_to_end/assembly.py",
        "transforms/network/vgg.py",
        "transforms/engines/keras.py",
        "transforms/end_to_end/tuning.py",
        "transforms/heads/neural.py",
        "transforms/network/keras_import.py",
        "transforms/end_to_end/resizing.py",
        "transforms/end_to_end/signatures.py",
        "transforms/network/weight_files.py",
        "pipeline/end_to_end/export.py",
    },
    "tensorflow": {"transforms/engines/keras.py", "transforms/end_to_end/signatures.py"},
    "apache_beam": {
        "transforms/embedding/embed_images.py",
        "transforms/embedding/extract_units.py",
        "transforms/storage.py",
        "transforms/object_stores.py",
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
    "duckdb": {"transforms/store/reports.py", "transforms/rows/sandbox.py"},
    "ncnn": {"transforms/engines/ncnn.py"},
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


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_walls(path):
    name = path.relative_to(ROOT).as_posix()
    named = imports(path)
    top = {module.split(".")[0] for module in named}
    if name.startswith("transforms/"):
        assert "pipeline" not in top, "transforms say how a step works and never call what runs them"
    if not name.startswith("pipeline/cli/"):
        assert not any(module.startswith("pipeline.cli") for module in named)
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
        ("transforms.heads", ["pyarrow", "scipy", "sklearn", "apache_beam", "tensorflow", "keras"]),
        ("transforms.network.weights", ["tensorflow", "keras", "apache_beam"]),
    ],
)
def test_importing_is_light(module, unwanted):
    code = f"import sys, {module}; print([name for name in {unwanted!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"

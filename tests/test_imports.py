"""The walls: who may import whom, and which heavy library belongs to which module."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted([*ROOT.glob("pipeline/*.py"), *ROOT.glob("transforms/**/*.py")])
# Who may name a heavy library at all, lazily or not.
OWNERS = {
    "click": {
        "pipeline/cli.py",
        "pipeline/cli_heads.py",
        "pipeline/cli_look.py",
        "pipeline/cli_options.py",
        "pipeline/cli_pages.py",
    },
    "keras": {
        "transforms/assembly.py",
        "transforms/backbone.py",
        "transforms/engines/keras.py",
        "transforms/finetuning.py",
        "transforms/heads/neural.py",
        "transforms/quiet.py",
        "transforms/resizing.py",
        "transforms/signatures.py",
        "transforms/weight_files.py",
        "pipeline/export.py",
    },
    "tensorflow": {"transforms/engines/keras.py", "transforms/signatures.py"},
    "apache_beam": {
        "transforms/embed_images.py",
        "transforms/extract_units.py",
        "pipeline/beam_options.py",
        "pipeline/extract.py",
        "pipeline/remote.py",
        "pipeline/watch.py",
        "pipeline/worker.py",
        "pipeline/worker_pool.py",
        "transforms/heads/ridge_beam.py",
    },
    "jinja2": {"pipeline/pages.py"},
    "plotly": {"pipeline/map_page.py"},
    "umap": {"transforms/projection.py"},
    "matplotlib": {"pipeline/describe.py", "pipeline/report_plots.py"},
    "duckdb": {"pipeline/books.py", "transforms/sandbox.py"},
    "ncnn": {"transforms/engines/ncnn.py"},
    "h5py": {"transforms/weight_files.py"},
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
    if name != "pipeline/cli.py":
        assert "pipeline.cli" not in named
    for library, owners in OWNERS.items():
        assert library not in top or name in owners, f"{library} belongs to {sorted(owners)}"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("pipeline.cli", ["numpy", "pyarrow", "apache_beam", "tensorflow", "keras", "rich"]),
        ("pipeline.extract", ["apache_beam", "tensorflow", "keras", "duckdb", "matplotlib"]),
        ("pipeline.verify", ["apache_beam", "tensorflow", "keras", "ncnn"]),
        ("transforms.features", ["apache_beam", "tensorflow", "keras"]),
        ("transforms.extract_units", ["tensorflow", "keras"]),
        ("transforms.engines.ncnn", ["tensorflow", "keras", "ncnn", "apache_beam"]),
        ("transforms.heads", ["pyarrow", "scipy", "sklearn", "apache_beam", "tensorflow", "keras"]),
        ("transforms.weights", ["tensorflow", "keras", "apache_beam"]),
    ],
)
def test_importing_is_light(module, unwanted):
    code = f"import sys, {module}; print([name for name in {unwanted!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"

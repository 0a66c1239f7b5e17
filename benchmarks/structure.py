"""Figures on how the code is built, as JSON: `python -m benchmarks.structure [ROOT]`.

It parses any checkout and imports nothing of it, so the same script measures an old tree and a new one.
"""

import ast
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TOPS = ("transforms", "pipeline")
LONG_FUNCTION, LONG_MODULE = 40, 300
Graph = Mapping[str, set[str]]


@dataclass(frozen=True)
class Module:
    """A source file: its dotted name, its text, and the tree of it."""

    name: str
    folder: str
    text: str
    tree: ast.Module


def read_modules(root: Path) -> dict[str, Module]:
    """Returns {dotted name: module}; a package goes by its folder's name, as in imports."""
    found = {}
    for path in sorted(path for top in TOPS for path in root.glob(f"{top}/**/*.py")):
        relative = path.relative_to(root)
        folder = ".".join(relative.parts[:-1])
        name = folder if path.name == "__init__.py" else ".".join(relative.with_suffix("").parts)
        text = path.read_text()
        found[name] = Module(name, folder, text, ast.parse(text))
    return found


def imports(nodes: Iterable[ast.AST], names: Iterable[str]) -> set[str]:
    """Returns which of these modules are imported; `from package import module` counts as the module alone."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            targets = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {target if target in names else node.module for target in targets}
    return found & set(names)


def for_types(tree: ast.Module) -> set[ast.AST]:
    """Returns all nodes under `if TYPE_CHECKING`."""
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")]
    return {node for guard in guards for statement in guard.body for node in ast.walk(statement)}


def circles(graph: Graph) -> list[list[str]]:
    """Returns the groups of two nodes and more that reach each other."""
    reached = {node: reach(graph, node) for node in graph}
    groups = {
        frozenset(other for other in graph if other in reached[node] and node in reached[other]) for node in graph
    }
    return sorted(sorted(group) for group in groups if len(group) > 1)


def reach(graph: Graph, start: str) -> set[str]:
    """Returns all nodes that arrows lead to, the start itself only if some lead back."""
    found, waiting = set(), [start]
    while waiting:
        new = graph.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def arrows(modules: Mapping[str, Module], *, typed: bool) -> dict[str, set[str]]:
    """Returns {module: modules that it imports}, lazily or not; only those under `if TYPE_CHECKING`, or only others."""
    found = {}
    for name, module in modules.items():
        guarded = for_types(module.tree)
        nodes = guarded if typed else set(ast.walk(module.tree)) - guarded
        found[name] = imports(nodes, modules) - {name}
    return found


def between_folders(graph: Graph, modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Returns the arrows from folder to folder; a package's own `__init__` counts as the folder."""
    found: dict[str, set[str]] = {module.folder: set() for module in modules.values()}
    for name, targets in graph.items():
        found[modules[name].folder] |= {modules[target].folder for target in targets} - {modules[name].folder}
    return found


def functions(module: Module) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def takes_output(function: ast.FunctionDef) -> bool:
    given = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return any(a.arg == "output" and a.annotation and ast.unparse(a.annotation).strip("'\"") == "str" for a in given)


def figures(modules: Mapping[str, Module]) -> dict:
    """Returns all figures of a tree."""
    lines: Counter[str] = Counter()
    for module in modules.values():
        lines[module.folder.split(".")[0]] += module.text.count("\n")
    result: dict = {
        "lines": {**lines, "together": lines.total()},
        "modules": len(modules),
        "modules_per_folder": dict(sorted(Counter(module.folder for module in modules.values()).items())),
    }
    for typed in (False, True):
        graph = arrows(modules, typed=typed)
        named = sorted(f"{name} > {target}" for name, targets in graph.items() for target in targets)
        result["imports_for_types" if typed else "imports"] = {
            "arrows": sum(map(len, graph.values())),
            "transforms_to_pipeline": [a for a in named if a.startswith("transforms") and "> pipeline" in a],
            "circles_between_modules": circles(graph),
            "circles_between_folders": circles(between_folders(graph, modules)),
        }
    everything = [(module, function) for module in modules.values() for function in functions(module)]
    lengths = [function.end_lineno - function.lineno + 1 for _, function in everything]
    inside = {node for _, function in everything for node in ast.walk(function)}
    outside = [module for module in modules.values() if module.folder != "transforms.store"]
    return result | {
        "functions": len(everything),
        "functions_with_output_str": sum(takes_output(function) for _, function in everything),
        "manifest_brackets_outside_store": sum(module.text.count("manifest[") for module in outside),
        "functions_over_40_lines": sum(length > LONG_FUNCTION for length in lengths),
        "modules_over_300_lines": [m.name for m in modules.values() if m.text.count("\n") > LONG_MODULE],
        "pyarrow_imported_inside_functions": sum(map(names_pyarrow, inside)),
    }


def names_pyarrow(node: ast.AST) -> bool:
    named = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
    return isinstance(node, ast.Import | ast.ImportFrom) and any(name.split(".")[0] == "pyarrow" for name in named)


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    print(json.dumps(figures(read_modules(root)), indent=2))

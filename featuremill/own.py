"""Our packages `pipeline` and `transforms`, where a user has modules of the same names.

The command and its workers run nothing but our code, so they load ours, wherever else the path leads: also a module,
`python -m featuremill.own pipeline.runners.worker_pool`. Processes that we start ourselves run this file by its place:
with `-m`, Python would look into the current folder first. In somebody's own program both would be wanted, and only one
can be had: there it is an error.
"""

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

PACKAGES = ("pipeline", "transforms")
# In a checkout, an editable install and site-packages alike they lie beside this package.
_BESIDE = Path(__file__).resolve().parent.parent


def load() -> None:
    """Imports our packages by their place."""
    for name in PACKAGES:
        spec = spec_from_file_location(name, _BESIDE / name / "__init__.py")
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


def check() -> None:
    """Checks that our packages are what their names import.

    Raises:
        ImportError: Another module is, with its file and the cure.
    """
    for name in PACKAGES:
        spec = getattr(sys.modules.get(name), "__spec__", None) or find_spec(name)
        # A folder without __init__.py has no origin.
        place = spec and (spec.origin or next(iter(spec.submodule_search_locations), None))
        if place and Path(place).resolve() != _BESIDE / name / "__init__.py":
            raise ImportError(
                f"{place} hides featuremill's own package {name}; rename it, or take its folder off Python's path"
            )


if __name__ == "__main__":
    import runpy

    # The current folder, or this file's; only Python's safe path leaves both out.
    if not getattr(sys.flags, "safe_path", sys.flags.isolated):
        del sys.path[0]
    if str(_BESIDE) not in sys.path:
        sys.path.insert(0, str(_BESIDE))
    load()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

"""Versions of the libraries that a result depends on, for manifests and heads."""

import sys
from importlib import metadata

from transforms.engines import engine_libraries


def library_versions() -> dict[str, str | None]:
    """Returns the versions of Python and of what computes here, None for what isn't installed."""
    others = ("numpy", "pillow", "pyarrow", "scikit-learn")
    names = ("featuremill", "apache-beam", *engine_libraries(), *others)
    return {"python": sys.version.split()[0], **{name: _version(name) for name in names}}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

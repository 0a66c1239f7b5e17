"""Manifests edited by hand: without the hash of their own that would tell it."""

import json
from pathlib import Path
from typing import Any


def edit_manifest(folder: Path | str, source: Path | str | None = None, **values: Any) -> None:
    """Writes a folder's manifest anew with other values; taken from another folder if one is named."""
    manifest = json.loads(Path(source or folder, "manifest.json").read_text())
    manifest.pop("sha256", None)
    Path(folder, "manifest.json").write_text(json.dumps(manifest | values, indent=2) + "\n")

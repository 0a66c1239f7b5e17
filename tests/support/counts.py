"""Counts how often an OUT's own files are read and its parts are listed."""

from collections import Counter
from collections.abc import Callable

from transforms import storage
from transforms.store import output as output_module

ONCE = {"manifest.json": 1, "features": 1, "list_parts": 1}


def count_reads(monkeypatch) -> Counter:
    """Returns what is counted from now on, by the name of a file, folder or function; not what workers do."""
    found: Counter[str] = Counter()

    def counting(module: object, name: str, key: str = "", named: Callable[..., bool] = lambda *_: True) -> None:
        real = getattr(module, name)

        def counted(*args, **more):
            found[key or name] += named(*args)
            return real(*args, **more)

        monkeypatch.setattr(module, name, counted)

    for name in ("list_parts", "read_units", "read_plan"):
        counting(output_module, name)
    for reader, name in {
        ("read_bytes", "manifest.json"),
        ("open_read", "units.parquet"),
        ("open_read", "plan.parquet"),
        ("list_infos", "features"),
        ("list_folder", "features"),
    }:
        counting(storage, reader, name, lambda uri, *_, name=name: uri.endswith(f"/{name}"))
    return found

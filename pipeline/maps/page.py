"""The map as one page: rows packed into it, plotly to draw them, and nothing from anywhere else."""

import base64
import gzip
import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.maps.rows import MapRows
from pipeline.maps.thumbnails import MapThumbnails
from pipeline.rendering.html import TEMPLATES, render
from transforms.text import printable

# Categories with a colour and a shape of their own; the rest are drawn as one.
MOST_CATEGORIES = 24
_NAME_LETTERS = 160


def map_html(
    rows: MapRows,
    places: np.ndarray,
    *,
    neighbours: np.ndarray,
    cosines: np.ndarray,
    thumbnails: MapThumbnails,
    color: str,
    about: dict[str, str],
) -> str:
    """Returns the page.

    Args:
        rows: N rows.
        places: N×2 float32.
        neighbours: N×k int32, the nearest first.
        cosines: N×k, theirs.
        thumbnails: Of some rows.
        color: Column that the points are coloured by at first.
        about: `output`, `rows`, `feature` and `method`, for people.
    """
    keys = [key.encode("utf-8", "replace").decode() for key in rows.facts["key"].to_pylist()]
    order = sorted(thumbnails.images)
    images = [base64.b64encode(thumbnails.images[place]).decode() for place in order]
    data = {
        "rows": len(keys),
        "k": neighbours.shape[1],
        "color": color,
        "keys": _packed_json(keys),
        "places": _packed(places.astype("<f4")),
        "neighbours": _packed(neighbours.astype("<i4")),
        # Three digits are shown.
        "cosines": _packed(np.round(cosines * 10_000).astype("<i2")),
        "columns": [_column(name, values) for name, values in rows.columns.items()],
        "thumbnails": {
            "rows": _packed(np.array(order, "<i4")),
            # Each encoded by itself: the page cuts one out and shows it as it is.
            "sizes": _packed(np.array(list(map(len, images)), "<u4")),
            "text": "".join(images),
            "gone": _packed(np.array(thumbnails.gone, "<i4")),
        },
    }
    return render(
        "map.html",
        title=f"Map of {printable(about['output'])}",
        about={name: printable(value) for name, value in about.items()},
        data=_script_json(data),
        plotly=_plotly_js(),
        app="\n".join((TEMPLATES / name).read_text() for name in ("corrections.js", "map.js")),
        thumbnail_share=len(order) / len(keys),
    )


def _packed(array: np.ndarray) -> str:
    # Without the time of day: the same map is the same page.
    return base64.b64encode(gzip.compress(array.tobytes(), 6, mtime=0)).decode()


def _packed_json(values: list[str]) -> str:
    return base64.b64encode(gzip.compress(json.dumps(values).encode(), 6, mtime=0)).decode()


def _script_json(data: dict[str, Any]) -> str:
    """Returns JSON that can stand inside a script element, whatever its strings say."""
    return json.dumps(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _column(name: str, values: pa.Array) -> dict[str, Any]:
    if pa.types.is_floating(values.type):
        numbers = values.to_numpy(zero_copy_only=False).astype("<f4")
        return {"name": name, "kind": "number", "values": _packed(numbers)}
    found = Counter(values.to_pylist())
    # The commonest first, equal ones by name, unknown last.
    order = sorted(found, key=lambda value: (value is None, -found[value], value or ""))
    codes = {value: code for code, value in enumerate(order)}
    return {
        "name": name,
        "kind": "category",
        "codes": _packed(np.array([codes[value] for value in values.to_pylist()], "<u4")),
        "names": _packed_json(["(none)" if value is None else printable(value, _NAME_LETTERS) for value in order]),
        "shown": min(len(order), MOST_CATEGORIES),
    }


def _plotly_js() -> str:
    """Returns plotly's own bundle, which its Python package carries."""
    from plotly.offline import get_plotlyjs

    # It would close the script element that it stands in.
    return get_plotlyjs().replace("</script", "<\\/script")

"""The results as Markdown, and what they were measured on."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks.process import spread
from transforms.machine import available_cores

_PACKAGES = ("featuremill", "tensorflow", "keras", "ncnn", "apache-beam", "pyarrow", "numpy", "pillow")
_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")


def machine() -> dict:
    """Returns what the figures depend on."""
    lines = _cpu_lines()
    flags = lines.get("flags", "").split()
    return {
        "cpu": lines.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in _FLAGS if flag in flags],
        "cores": available_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _cpu_lines() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def markdown(result: dict, titles: dict[str, str]) -> str:
    """Returns the tables: medians, with the least and the most in brackets."""
    host = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in host["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        f"{host['cpu']}, {host['cores']} cores ({', '.join(host['cpu_flags'])}), {host['memory_gb']} GB, Python "
        f"{host['python']}; {versions}. Input: {result['inputs']}. Median (least–most), whole processes unless said.",
    ]
    for name, rows in result["sections"].items():
        lines += ["", f"## {name}", "", titles[name], ""]
        lines += _process_table(rows) if "seconds" in rows[0] else _figure_table(rows)
    if result["steady_state"]:
        lines += ["", *_steady_table(result["steady_state"])]
    return "\n".join([*lines, ""])


def _steady_table(rows: list[dict]) -> list[str]:
    lines = [
        "Shares of the bare engine's rate: without start-up is from 2,000 against 210 photos, and the limit is what "
        "decoding on the same cores leaves.",
        "",
        "| 2,000 photos | images/s | of the bare engine | images/s without start-up | of the bare engine | limit |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        what, *figures = row.values()
        lines.append(f"| `{what}` | {' | '.join(f'{figure:.2f}' for figure in figures)} |")
    return lines


def _process_table(rows: list[dict]) -> list[str]:
    first = rows[0]["what"]
    lines = [
        f"| command | runs | seconds | images/s | peak MB | `{first}` is faster by |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = f"{spread(row['first_is_faster_by'])}×" if "first_is_faster_by" in row else ""
        cells = [spread(row["seconds"]), spread(row["images_per_second"]), spread(row["peak_mb"], 0), ratio]
        lines.append(f"| `{row['what']}` | {len(row['seconds'])} | {' | '.join(cells)} |")
    stages = [row for row in rows if "stage_seconds" in row and row["images"] > 1]
    for row in stages:
        seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in row["stage_seconds"].items())
        lines += ["", f"`{row['what']}`, seconds per stage in its last run, added up over threads: {seconds}."]
    return lines


def _figure_table(rows: list[dict]) -> list[str]:
    lines = ["| what | runs | images/s | peak MB |", "|---|---|---|---|"]
    for row in rows:
        what = f"{row['what']}: {row['note']}" if row["note"] else row["what"]
        rates = row["images_per_second"]
        lines.append(f"| {what} | {len(rates)} | {spread(rates)} | {spread(row['peak_mb'], 0)} |")
    return lines

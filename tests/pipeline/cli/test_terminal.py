"""Nothing in somebody's keys, labels and paths steers a terminal or forges a line, whichever command prints it."""

import io
import json
import re
import tarfile
from pathlib import Path

import pytest

from pipeline.cli.app import run_cli
from pipeline.extraction import run as extract_module
from pipeline.maintenance import verify as verify_module
from pipeline.maintenance.verify import Verification
from tests.support.factories import draw_items
from tests.support.fakes import WEIGHTS, load_fake
from transforms.text import shown, shown_within

# ESC, BEL, a C1 control that begins an escape too, overrides and isolates of direction, separators of lines, a line.
EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egpj\u2066x\u2069\u2028\u2029\x85\r\x7f\x00\nFORGED all is well"
EVIL_NAME = EVIL.replace("\x00", "")
# A place that the user names is on a line by itself.
EVIL_LINE = EVIL_NAME.replace("\n", "")
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
ESCAPED = r"\x1b[2J"


@pytest.mark.parametrize("text", ["plain", "日本語 עברית 🐜 ü", "two\nlines\tand a tab", r"\x1b is text"])
def test_text_stays_what_it_is(text):
    assert shown(text) == text


def test_what_steers_is_written_out():
    assert shown(EVIL_NAME).startswith(
        r"\x1b[2J\x1b]0;owned\x07\x9b31m\u202egpj\u2066x\u2069\u2028\u2029\x85\r\x7f" + "\n"
    )
    assert shown_within("a\nb\tc\x85") == r"a\nb\tc\x85"
    assert shown("\udc80") == r"\udc80"


@pytest.fixture
def made(tmp_path, monkeypatch) -> Path:
    """IN, a tar of images twice in it under hostile names and labels, and OUT."""
    real = extract_module.run
    monkeypatch.setattr(extract_module, "run", lambda o, **more: real(o, load=load_fake, weights=WEIGHTS, **more))
    items = [item for item in draw_items(per_class=24, size=40, seed=0) if item.name.endswith(".jpg")]
    folder = tmp_path / f"in {EVIL_NAME}"
    folder.mkdir()
    with tarfile.open(folder / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for number, item in enumerate([*items, items[0]]):
            for ending, data in (("jpg", item.data), ("cls", f"{item.label} {EVIL_NAME}".encode())):
                info = tarfile.TarInfo(f"{number:03} {EVIL_NAME}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo(f"zz {EVIL_NAME}.jpg")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    (folder / f"passed over {EVIL_NAME}.{EVIL_NAME[:20]}").write_text("")
    return tmp_path


def check(capsys, args: list[object], *, codes: tuple[int, ...] = (0,), quotes: bool = True) -> str:
    assert run_cli([*map(str, args)]) in codes
    printed = "".join(capsys.readouterr())
    assert not STEERS.search(printed), [args[0], STEERS.search(printed)]
    assert not re.search("^FORGED", printed, re.MULTILINE), printed
    if quotes:
        assert ESCAPED in printed or "\N{REPLACEMENT CHARACTER}[2J" in printed, printed
    return printed


def test_no_command_hands_it_on(made, capsys, monkeypatch):
    [folder] = made.glob("in *")
    out = made / "out"
    check(capsys, ["extract", folder, "-o", out, "--image-size", "32"])
    check(capsys, ["extract", folder, f"{folder} gone", "-o", out, "--image-size", "32"], codes=(1,))
    check(capsys, ["inspect", out])
    check(capsys, ["query", out, "--where", "position >= 0", "--key", _key(out)])
    check(capsys, ["sql", out, "SELECT * EXCLUDE embedding FROM features"])
    check(capsys, ["duplicates", out])
    check(capsys, ["outliers", out])
    check(capsys, ["convert", out, "-o", made / f"copy {EVIL_LINE}"])
    check(capsys, ["train", out, "-o", made / f"head {EVIL_LINE}", "--head", "ridge", "--val-fraction", "0.5"])
    head = made / f"head {EVIL_LINE}"
    check(capsys, ["predict", head, out, "-o", made / f"pred {EVIL_LINE}"])
    check(capsys, ["predict", head, out])
    check(capsys, ["inspect", f"{EVIL_NAME} gone"], codes=(1,))
    check(capsys, ["inspect", out, f"{EVIL_NAME} one too many"], codes=(2,))
    problems = tuple(f"{key}: its content changed" for key in (_key(out), "another"))
    verification = Verification(str(out), "x", ("x",), 3, 3, 1, 1e-4, {}, problems)
    monkeypatch.setattr(verify_module, "verify", lambda *_, **__: verification)
    check(capsys, ["verify", out], codes=(1,))
    moved = made / f"moved {EVIL_NAME}"
    folder.rename(moved)
    check(capsys, ["relocate", out, f"{folder}={made}/nowhere {EVIL_NAME}"], codes=(1,))
    check(capsys, ["relocate", out, f"{folder}={moved}"], quotes=False)


def _key(out: Path) -> str:
    from transforms.store.features import open_features

    return open_features(str(out)).keys[0]


def test_json_is_exact(made, capsys):
    [folder] = made.glob("in *")
    assert run_cli(["extract", str(folder), "-o", str(made / "out"), "--image-size", "32", "-q"]) == 0
    capsys.readouterr()
    assert run_cli(["sql", str(made / "out"), "SELECT key, label FROM features", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(EVIL_NAME in row["key"] and row["label"].endswith(EVIL_NAME) for row in rows)
    assert run_cli(["inspect", str(made / "out"), "--json"]) == 0
    assert any(label.endswith(EVIL_NAME) for label in json.loads(capsys.readouterr().out)["labels"])


def test_csv_is_exact_but_on_a_terminal(made, capsys, monkeypatch):
    [folder] = made.glob("in *")
    assert run_cli(["extract", str(folder), "-o", str(made / "out"), "--image-size", "32", "-q"]) == 0
    capsys.readouterr()
    for is_terminal in (False, True):
        monkeypatch.setattr("sys.stdout.isatty", lambda is_terminal=is_terminal: is_terminal)
        assert run_cli(["sql", str(made / "out"), "SELECT key FROM features LIMIT 1", "--csv"]) == 0
        assert bool(STEERS.search(capsys.readouterr().out)) != is_terminal


def test_all_commands_print_by_one_function():
    for module in ("exploration", "extraction", "heads", "maintenance"):
        text = (Path(verify_module.__file__).parents[1] / f"cli/{module}.py").read_text()
        assert "click.echo" not in text
        assert "print(" not in text

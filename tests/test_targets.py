"""What every command writes: flushed before it has its name, by one command at a time, and nothing of others' goes.

Each command that there is must be here: `test_every_command_is_here` knows those that write nothing.
"""

import os
import shutil
import signal
import zipfile
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.cli.app import run_cli
from pipeline.end_to_end import export
from pipeline.maintenance.compact import CompactOptions, compact
from pipeline.maintenance.relocate import RelocateOptions, relocate
from pipeline.prediction.options import PredictOptions
from pipeline.prediction.run import predict
from tests.pipeline.extraction import test_run as te
from tests.support.commands import finish, killed_before, start
from tests.support.factories import draw_items, write_tar
from tests.support.pages_data import clusters, write_out
from transforms import committed
from transforms.committed import held
from transforms.errors import FeaturemillError
from transforms.store.output import Output

pytestmark = pytest.mark.long

# {command: (what it is called with, the targets among it)}; OUT, IN and HEAD are what there is, NEW… are targets.
COMMANDS = {
    "train": (["OUT", "--head", "ridge", "-o", "NEW.head"], ["NEW.head"]),
    "convert": (["OUT", "-o", "NEW.parquet"], ["NEW.parquet"]),
    "convert to text": (["OUT", "-o", "NEW"], ["NEW"]),
    "query": (["OUT", "--key", "k1", "-o", "NEW.parquet", "--html", "NEW.html"], ["NEW.parquet", "NEW.html"]),
    "sql": (["OUT", "SELECT key FROM features", "-o", "NEW.parquet"], ["NEW.parquet"]),
    "duplicates": (["OUT", "-o", "NEW.parquet", "--html", "NEW.html"], ["NEW.parquet", "NEW.html"]),
    "outliers": (["OUT", "-o", "NEW.parquet", "--html", "NEW.html"], ["NEW.parquet", "NEW.html"]),
    "suspects": (["OUT", "-o", "NEW.csv", "--html", "NEW.html", "--head", "ridge"], ["NEW.csv", "NEW.html"]),
    "map": (["OUT", "--html", "NEW.html", "-o", "NEW.parquet", "-q", "--method", "pca"], ["NEW.html", "NEW.parquet"]),
    "report": (["OUT", "--html", "NEW.html"], ["NEW.html"]),
    "describe": (["vgg16", "--plot", "NEW.svg"], ["NEW.svg"]),
    "predict": (["HEAD", "OUT", "-o", "NEW"], ["NEW"]),
    # Only that they are refused: they need a network.
    "finetune": (["HEAD", "OUT", "-o", "NEW"], ["NEW"]),
    "export": (["HEAD", "-o", "NEW.keras"], ["NEW.keras"]),
    "extract": (["IN", "-o", "NEW"], ["NEW"]),
    "compact": (["NEW"], ["NEW"]),
    "relocate": (["NEW", "/a=/b"], ["NEW"]),
    "register": (["NEW", "--delta"], ["NEW"]),
    "drop-feature": (["NEW", "deep"], ["NEW"]),
}
# Those that change an OUT that is there.
ON_AN_OUT_THERE = ("compact", "relocate", "register", "drop-feature")
WITHOUT_TARGETS = {"compare", "estimate", "inspect", "verify"}
QUICK = [name for name in COMMANDS if name not in ("finetune", "export", "extract", *ON_AN_OUT_THERE)]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """OUT of drawn vectors, a head on it, and IN, a tar of images."""
    folder = tmp_path_factory.mktemp("made")
    vectors, labels = clusters(120)
    write_out(folder / "OUT", vectors, keys=[f"k{i}" for i in range(120)], labels=labels)
    assert run_cli(["train", str(folder / "OUT"), "--head", "ridge", "-o", str(folder / "HEAD"), "-q"]) == 0
    write_tar(folder / "IN", draw_items(per_class=4, size=48, seed=1))
    return folder


def arguments(name: str, made: Path, folder: Path) -> list[str]:
    places = {"OUT": made / "OUT", "IN": made / "IN", "HEAD": made / "HEAD"}
    given = [str(places.get(arg, folder / arg if arg.startswith("NEW") else arg)) for arg in COMMANDS[name][0]]
    return [name.split()[0], *given]


def targets(name: str, folder: Path) -> list[str]:
    return [str(folder / target) for target in COMMANDS[name][1]]


def test_every_command_is_here():
    assert {name.split()[0] for name in COMMANDS} | WITHOUT_TARGETS == set(cli.app.cli.commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_command_on_a_target_is_reported(made, tmp_path, capsys, name):
    for target in targets(name, tmp_path):
        is_folder = name in ("extract", "predict", *ON_AN_OUT_THERE)
        if is_folder:
            shutil.copytree(made / "OUT", target)
        with Output(target).locked() if is_folder else held(target):
            before = sorted(tmp_path.rglob("*"))
            assert run_cli(arguments(name, made, tmp_path)) == 1
            line = capsys.readouterr().err.splitlines()[-1]
            assert f"is in use by another command (process {os.getpid()} on " in line
            assert sorted(tmp_path.rglob("*")) == before


class Flushes:
    """Checks that whatever gets a name is on disk as it is, its folders too."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.named: list[str] = []
        self._flushed: dict[tuple[int, int], int] = {}
        self._fsync, self._replace, self._exchange = os.fsync, os.replace, committed._exchange
        patch.setattr(os, "fsync", self.fsync)
        patch.setattr(os, "replace", self.replace)
        patch.setattr(committed, "_exchange", self.exchange)

    def fsync(self, descriptor: int) -> None:
        info = os.fstat(descriptor)
        self._flushed[info.st_dev, info.st_ino] = info.st_size
        self._fsync(descriptor)

    def _check(self, path: str, name: str) -> None:
        inside = [os.path.join(root, file) for root, folders, files in os.walk(path) for file in (*folders, *files)]
        for each in (path, *inside):
            info = os.stat(each)
            assert self._flushed.get((info.st_dev, info.st_ino)) == info.st_size, f"{each} isn't on disk"
        self.named.append(name)

    def replace(self, old: str, new: str) -> None:
        self._check(old, new)
        folder = os.stat(os.path.dirname(new))
        self._flushed.pop((folder.st_dev, folder.st_ino), None)
        self._replace(old, new)

    def exchange(self, new: str, old: str) -> bool:
        self._check(new, old)
        return self._exchange(new, old)

    def is_flushed(self, folder: Path) -> bool:
        info = os.stat(folder)
        return (info.st_dev, info.st_ino) in self._flushed


@pytest.mark.parametrize("name", QUICK)
def test_what_is_written_is_on_disk_before_it_has_its_name(made, tmp_path, monkeypatch, name):
    flushes = Flushes(monkeypatch)
    assert run_cli(arguments(name, made, tmp_path)) == 0
    wanted = targets(name, tmp_path)
    if name == "predict":
        wanted = [f"{wanted[0]}/{file}" for file in ("predictions/part-00000.parquet", "manifest.json")]
    assert set(wanted) <= set(flushes.named)
    assert all(flushes.is_flushed(Path(target).parent) for target in wanted)
    if name in ("train", "convert to text"):
        flushes.named.clear()
        assert run_cli([*arguments(name, made, tmp_path), "--overwrite"]) == 0
        assert flushes.named == wanted
    assert not [path for path in tmp_path.rglob("*") if ".tmp" in path.name or "lock" in path.name]


_RUNS = "from pipeline.cli.app import run_cli\nsys.exit(run_cli(sys.argv[1:]))"


@pytest.mark.parametrize("name", ["train", "convert", "convert to text", "map", "predict"])
def test_what_a_killed_command_left_goes_with_the_next(made, tmp_path, name):
    """Killed before a folder is made, before a file has its name, and before the lock goes."""
    left = set()
    for moment, event in ((1, "os.mkdir"), (1, "os.rename"), (2, "os.rename"), (1, "shutil.rmtree"), (1, "os.remove")):
        folder = tmp_path / f"{event} {moment}"
        folder.mkdir()
        assert run_cli(arguments(name, made, folder)) == 0
        before = sorted(path.name for path in folder.iterdir())
        command = [*arguments(name, made, folder), "--overwrite"]
        status, _, err = finish(start(killed_before(moment, _RUNS, *command, events=(event,))))
        # Not every command does each of these.
        assert status in (-signal.SIGKILL, 0), err
        left.update(path.name for path in folder.iterdir() if path.name not in before)
        assert run_cli(command) == 0
        assert sorted(path.name for path in folder.iterdir()) == before
        assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp") or path.parent.name == "_tmp"]
    assert left or name == "predict", "no kill left anything: the moments are wrong"


# Of others, in the folders of OUT and PRED.
STRANGERS = ("notes.txt", "mine.jpg", f"old.{'z' * 32}.tmp", f"compact-{'0' * 32}notes.txt")


def others(folder: Path) -> dict[str, bytes]:
    """Files of somebody else, some of which are called as ours are."""
    unit = f"x.tar-000000000-{'a' * 16}"
    names = ("photo.jpg", f"{unit}.parquet", f"{unit}.{'0' * 32}.parquet", f"manifest.json.{'0' * 32}")
    folder.mkdir()
    for name in (*names, "part-00000.parquet"):
        (folder / name).write_text(f"somebody's {name}")
        os.utime(folder / name, (1, 1))
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def extracted(made, tmp_path_factory) -> Path:
    """OUT of the images of IN and of other images."""
    folder = tmp_path_factory.mktemp("extracted")
    for number in (1, 2):
        write_tar(folder / f"{number}.tar", draw_items(per_class=4, size=48, seed=number))
    te.extract([folder / "1.tar", folder / "2.tar"], folder / "out", unit_bytes=9000)
    return folder


ON_AN_OUT = {
    "extract": lambda folder, out: te.extract(folder / "1.tar", out, unit_bytes=9000),
    "overwrite": lambda folder, out: te.extract(folder / "1.tar", out, unit_bytes=9000, overwrite=True),
    "prune": lambda folder, out: te.extract(folder / "1.tar", out, unit_bytes=9000, prune=True),
    "retry": lambda folder, out: te.extract(folder / "1.tar", out, unit_bytes=9000, retry_failed=True),
    "compact": lambda folder, out: compact(CompactOptions(str(out))),
    "relocate": lambda folder, out: relocate(RelocateOptions(str(out), [f"{folder}/1.tar={folder}/moved.tar"])),
}


def prepared(extracted: Path, folder: Path) -> Path:
    """A copy of the inputs and OUT for commands that all have something to do."""
    shutil.copytree(extracted, folder / "own")
    own = folder / "own"
    shutil.copy2(own / "1.tar", own / "moved.tar")
    out = own / "out"
    shutil.rmtree(out)
    te.extract([own / "1.tar", own / "2.tar"], out, unit_bytes=9000)
    return own


@pytest.mark.parametrize("linked", ["features", "failures", "_tmp"])
@pytest.mark.parametrize("name", ON_AN_OUT)
def test_no_link_in_an_out_is_followed(extracted, tmp_path, name, linked):
    own = prepared(extracted, tmp_path)
    theirs = others(tmp_path / "theirs")
    shutil.rmtree(own / "out" / linked)
    (own / "out" / linked).symlink_to(tmp_path / "theirs")
    with pytest.raises(FeaturemillError, match=rf"out/{linked} is a link, and nothing in .* may lead elsewhere"):
        ON_AN_OUT[name](own, own / "out")
    assert contents(tmp_path / "theirs") == theirs
    assert (own / "out" / linked).is_symlink()


@pytest.mark.parametrize("name", ON_AN_OUT)
def test_only_our_own_files_are_removed_from_an_out(extracted, tmp_path, name):
    own = prepared(extracted, tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    mine = []
    for folder in ("features", "failures", "_tmp"):
        for stranger in STRANGERS:
            (own / "out" / folder / stranger).write_text("mine")
            os.utime(own / "out" / folder / stranger, (1, 1))
            mine.append(own / "out" / folder / stranger)
        # Called like ours, but a folder.
        for stem in (f"x-000000000-{'a' * 16}", f"x-000000000-{'a' * 16}.{'0' * 32}"):
            (own / "out" / folder / f"{stem}.d").mkdir()
            (own / "out" / folder / f"{stem}.d" / "photos").symlink_to(tmp_path / "photos")
            mine.append(own / "out" / folder / f"{stem}.d" / "photos")
    (own / "out" / "failures" / "mine.parquet").write_text("mine")
    if name == "prune":
        (own / "2.tar").unlink()
    ON_AN_OUT[name](own, own / "out")
    assert [path for path in [*mine, own / "out/failures/mine.parquet"] if not path.exists()] == []
    assert os.listdir(tmp_path / "photos") == ["a.jpg"]


@pytest.mark.parametrize("linked", ["predictions", "failures", "features", "_tmp"])
def test_no_link_in_a_pred_is_followed(made, tmp_path, linked):
    options = PredictOptions(head=str(made / "HEAD"), inputs=(str(made / "OUT"),), output=str(tmp_path / "pred"))
    predict(options)
    theirs = others(tmp_path / "theirs")
    if (tmp_path / "pred" / linked).exists():
        shutil.rmtree(tmp_path / "pred" / linked)
    (tmp_path / "pred" / linked).symlink_to(tmp_path / "theirs")
    for overwrite in (False, True):
        asked = PredictOptions(
            head=options.head, inputs=options.inputs, output=options.output, top=2, overwrite=overwrite
        )
        with pytest.raises(FeaturemillError, match=rf"pred/{linked} is a link"):
            predict(asked)
    assert contents(tmp_path / "theirs") == theirs


def test_only_our_own_files_are_removed_from_a_pred(made, tmp_path):
    options = {"head": str(made / "HEAD"), "inputs": (str(made / "OUT"),), "output": str(tmp_path / "pred")}
    predict(PredictOptions(**options))
    mine = [tmp_path / "pred" / folder / name for folder in ("predictions", "features", "_tmp") for name in STRANGERS]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert predict(PredictOptions(**options, top=2, overwrite=True)).manifest.parts == 1
    assert [path for path in mine if not path.exists()] == []


@pytest.mark.parametrize(("name", "file"), [("train", "report.html"), ("convert to text", "vectors.tsv")])
def test_what_a_link_in_a_folder_that_is_replaced_leads_to_stays(made, tmp_path, name, file):
    assert run_cli(arguments(name, made, tmp_path)) == 0
    target = Path(targets(name, tmp_path)[0])
    theirs = others(tmp_path / "theirs")
    (target / file).unlink()
    (target / file).symlink_to(tmp_path / "theirs")
    assert run_cli([*arguments(name, made, tmp_path), "--overwrite"]) == 0
    assert (target / file).is_file()
    assert contents(tmp_path / "theirs") == theirs


class _Model:
    """Saves as Keras does: an archive, written to the name that it is given."""

    def save(self, path: str) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model.weights.h5", bytes(100_000))


@pytest.mark.parametrize("name", ["new.keras", "new"])
def test_an_exported_model_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch, name):
    def save_folder(model, folder, classes, text) -> None:
        os.makedirs(f"{folder}/variables")
        Path(folder, "variables/data").write_bytes(bytes(100_000))

    monkeypatch.setattr(export, "_save_folder", save_folder)
    monkeypatch.setattr("transforms.end_to_end.signatures.check_backend", lambda: None)
    flushes = Flushes(monkeypatch)
    target = str(tmp_path / name)
    for _ in range(2):
        export._write(_Model(), target, {"classes": []}, as_file=name.endswith(".keras"))
    assert flushes.named == [target, target]
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("names", [["saved_model.pb", "photo.jpg"], ["photo.jpg"]])
def test_a_folder_that_is_more_than_a_model_is_not_replaced(made, tmp_path, capsys, names):
    (tmp_path / "NEW").mkdir()
    for name in names:
        (tmp_path / "NEW" / name).touch()
    assert run_cli(["export", str(made / "HEAD"), "-o", str(tmp_path / "NEW"), "--overwrite"]) == 1
    assert "is no model, or not alone" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path / "NEW")) == sorted(names)

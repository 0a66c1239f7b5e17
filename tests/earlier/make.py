"""Makes `earlier.tar.xz`: an OUT, a HEAD and a PRED of each kind, as commit 8057af2 wrote them.

It runs with that commit's code and not with later ones, whose modules have other names. So it was run, and is again:

    git worktree add /tmp/at-8057af2 8057af2
    cp -r tests/earlier /tmp/at-8057af2/tests/
    cd /tmp/at-8057af2 && python -m tests.earlier.make

All of it is made in FOLDER and unpacked there again by `tests/test_earlier.py`: keys are absolute paths, and ids of
units hash paths, sizes and times. The times of all files are whole seconds, which a tar keeps exactly.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from pipeline import extract as extract_module
from pipeline import predict as predict_module
from pipeline.options import ExtractOptions
from pipeline.predict_options import PredictOptions
from pipeline.samples import draw_items, write_folder, write_parquet, write_tar, write_tfrecord
from transforms.extract_units import load_job_engine

FOLDER = Path("/tmp/featuremill-earlier")
ARCHIVE = Path(__file__).parent / "earlier.tar.xz"
INPUTS = tuple(str(FOLDER / "in" / name) for name in ("photos", "photos.tar", "photos.tfrecord", "photos.parquet"))
# Taps low down: the fine-tuned head carries the weights up to there, and those of one block are 155 kB.
NETWORK = {
    "weights": "random:12",
    "image_size": 32,
    "features": ("embedding=block1_pool:avg", "texture=block1_conv2:max"),
    "engine": "ncnn",
    "threads": 1,
    "batch_size": 4,
    "unit_bytes": 16_000,
}
KILLED_AFTER_BATCHES = 8
SECONDS = 1_700_000_000


def main() -> None:
    """Makes everything in FOLDER, and packs it."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    make_inputs()
    command("extract", *INPUTS, "--output", FOLDER / "complete", *network_arguments())
    killed("extract", FOLDER / "unfinished")
    shutil.copytree(FOLDER / "complete", FOLDER / "compacted")
    command("compact", FOLDER / "compacted", "--target-bytes", "20kB")
    settle()
    for kind in ("ridge", "logistic", "knn", "linear"):
        head = FOLDER / "heads" / kind
        command("train", FOLDER / "complete", "--output", head, "--head", kind, "--no-learning-curve")
        settle()
        predicted = FOLDER / "predictions" / kind
        command("predict", head, FOLDER / "complete", "--output", predicted, "--probabilities", "--evaluate")
    tuned = FOLDER / "heads" / "tuned"
    tuning = ("--unfreeze", "all", "--epochs", "1", "--learning-rate", "1e-4")
    command("finetune", FOLDER / "heads" / "linear", FOLDER / "complete", "--output", tuned, *tuning)
    command("predict", tuned, INPUTS[1], "--output", FOLDER / "predictions" / "tuned", "--probabilities")
    killed("predict", FOLDER / "predictions" / "unfinished")
    settle()
    with tarfile.open(ARCHIVE, "w:xz", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(FOLDER.rglob("*")):
            archive.add(path, path.relative_to(FOLDER), recursive=False, filter=nobody)
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size:,} bytes")


def make_inputs() -> None:
    """Draws other images for each format; the last of each class is broken, in four different ways."""
    (FOLDER / "in").mkdir(parents=True)
    writers = (write_folder, write_tar, write_tfrecord, write_parquet)
    for seed, (path, write) in enumerate(zip(INPUTS, writers, strict=True)):
        write(path, draw_items(per_class=4, size=40, seed=seed))
    settle()


def settle() -> None:
    """Gives every file and folder one time."""
    for path in FOLDER.rglob("*"):
        os.utime(path, (SECONDS, SECONDS))


def command(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "pipeline.cli", *map(str, arguments)], check=True)


def network_arguments() -> list[str]:
    """Returns NETWORK as on the command line."""
    features = [argument for feature in NETWORK["features"] for argument in ("--feature", feature)]
    single = {name: value for name, value in NETWORK.items() if name != "features"}
    return features + [part for name, value in single.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def killed(name: str, output: Path) -> None:
    """Runs a command in a process that ends as by `kill -9`, in the middle of its work."""
    code = f"from tests.earlier import make; make.run_and_die({name!r}, {str(output)!r})"
    ended = subprocess.run([sys.executable, "-c", code])
    assert ended.returncode == 9, ended


def run_and_die(name: str, output: str) -> None:
    """Runs extract, or predict from images by the ridge head, with an engine that ends the process."""
    if name == "extract":
        extract_module.run(ExtractOptions(inputs=INPUTS, output=output, **NETWORK), load=load_mortal)
        return
    same = {option: NETWORK[option] for option in ("engine", "threads", "batch_size", "unit_bytes")}
    options = PredictOptions(
        head=str(FOLDER / "heads" / "ridge"), inputs=INPUTS[1:], output=output, probabilities=True, **same
    )
    predict_module.predict(options, load=load_mortal)


def load_mortal(job):
    """Returns the job's own engine, which ends the process after some batches."""
    engine = load_job_engine(job)
    embed, done = engine.embed, []

    def embed_or_die(pixels):
        done.append(len(pixels))
        if len(done) > KILLED_AFTER_BATCHES:
            os._exit(9)
        return embed(pixels)

    engine.embed = embed_or_die
    return engine


def nobody(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leaves out who made it."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


if __name__ == "__main__":
    main()

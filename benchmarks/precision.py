"""What each precision costs in accuracy, on photos: the tables of docs/precision.md.

Run as `python -m benchmarks.precision [--photos FOLDER] [--images 210]`; prints Markdown. Weights are drawn, since the
published ones can't be fetched everywhere: He-initialised, and heavy-tailed, which is harder than trained ones.
"""

import argparse
import gc
import os
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import photos
from benchmarks.process import say
from transforms.engines import load_engine
from transforms.errors import FeaturemillError
from transforms.images.decode import decode_image
from transforms.network.vgg import build, cut, layers
from transforms.network.weights import load_weights
from transforms.spec import FeatureSpec, parse_feature

BACKBONE, TAP, SIDE = "vgg19", "block5_pool", 224
FEATURES = (f"avg={TAP}:avg", f"flat={TAP}:flatten")
# What is compared with `keras` at float32.
RUNS = (("winograd", "float32"), ("ncnn", "float32"), ("winograd", "int16"), ("keras", "bfloat16"))
NEIGHBOURS, BATCH = 10, 8


def heavy_tailed(arrays: dict, seed: int = 0) -> dict:
    """Returns kernels of the same scale whose numbers follow Student's t(3), and whose filters differ log-normally."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for name, (kernel, bias) in arrays.items():
        numbers = rng.standard_t(3, kernel.shape) * rng.lognormal(0, 0.5, kernel.shape[-1])
        drawn[name] = (numbers * kernel.std() / numbers.std()).astype(np.float32), bias
    return drawn


def write_weights(path: Path, kind: str) -> None:
    """Writes a file of weights as Keras does."""
    table = layers(BACKBONE)
    arrays = dict(load_weights("random:0", table, backbone=BACKBONE).arrays)
    network = build(table, 32)
    for name, pair in (heavy_tailed(arrays) if kind == "heavy-tailed" else arrays).items():
        network.get_layer(name).set_weights(pair)
    network.save_weights(path)


def embed(weights: Path, engine: str, precision: str, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {feature: N×D float32} of N images."""
    features = tuple(map(parse_feature, FEATURES))
    sha256 = load_weights(str(weights), cut(layers(BACKBONE), [TAP]), backbone=BACKBONE).sha256
    spec = FeatureSpec(BACKBONE, sha256, features, image_size=SIDE, precision=precision)
    loaded = load_engine(engine, spec, str(weights), include_top=False, batch_size=BATCH, threads=None)
    batches = [loaded.embed(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]
    del loaded
    gc.collect()
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def compared(found: np.ndarray, expected: np.ndarray) -> tuple[float, float, float, float]:
    """Returns the worst cosine, that without the mean, the largest difference, and the neighbours' overlap.

    Args:
        found: N×D.
        expected: The same at full precision.
    """
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    mean = expected.mean(axis=0)
    difference = np.abs(found - expected).max(axis=1) / np.abs(expected).max(axis=1)
    near, near_expected = _nearest(found - mean), _nearest(expected - mean)
    overlap = np.mean([len(set(a) & set(b)) / NEIGHBOURS for a, b in zip(near, near_expected, strict=True)])
    return _cosines(found, expected).min(), _cosines(found - mean, expected - mean).min(), difference.max(), overlap


def _cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def _nearest(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    return np.argsort(-similar, axis=1)[:, :NEIGHBOURS]


def accuracies(vectors: np.ndarray, labels: list[str]) -> tuple[float, float]:
    """Returns the accuracy of ridge and logistic heads, in five folds."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    heads = (RidgeClassifier(alpha=len(vectors)), LogisticRegression(C=1 / len(vectors), max_iter=1000))
    found = [cross_val_predict(make_pipeline(StandardScaler(), head), vectors, labels, cv=folds) for head in heads]
    return tuple(float(np.mean(each == np.array(labels))) for each in found)


def table(weights: Path, pixels: np.ndarray, labels: list[str]) -> list[str]:
    """Returns the rows of one kind of weights."""
    say("  keras float32")
    expected = embed(weights, "keras", "float32", pixels)
    results = {"keras float32": expected}
    for engine, precision in RUNS:
        say(f"  {engine} {precision}")
        try:
            results[f"{engine} {precision}"] = embed(weights, engine, precision, pixels)
        except FeaturemillError as error:
            say(f"  {error}")
    with np.errstate(over="ignore"):
        results["float16 storage"] = {name: values.astype(np.float16) for name, values in expected.items()}
    lines = [
        "| | 1 - cosine, worst | the same, mean taken off | largest difference | of single numbers | top-10 kept "
        "| ridge | logistic |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, values in results.items():
        cosine, centred, difference, overlap = compared(values["avg"], expected["avg"])
        single = compared(values["flat"], expected["flat"])[2]
        ridge, logistic = accuracies(values["avg"].astype(np.float32), labels)
        lines.append(
            f"| {name} | {1 - cosine:.1e} | {1 - centred:.1e} | {difference:.1e} | {single:.1e} | {overlap:.1%} "
            f"| {ridge:.1%} | {logistic:.1%} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", help="A folder of photos in class folders; by default the shared ones.")
    parser.add_argument("--images", type=int, default=photos.SMALL)
    given = parser.parse_args()
    paths, origin = photos.source(given.photos)
    with tempfile.TemporaryDirectory(prefix="featuremill-bench-") as folder:
        os.environ["FEATUREMILL_CACHE"] = str(Path(folder, "cache"))
        if not paths:
            paths = sorted(photos.fill(Path(folder, "images"), [], given.images).rglob("*.*"))
        # Evenly from all classes.
        paths = list(islice(paths[:: max(1, len(paths) // given.images)], given.images))
        spec = FeatureSpec(BACKBONE, "", (), image_size=SIDE)
        decoded = [decode_image(path.read_bytes(), spec, max_pixels=89_000_000) for path in paths]
        pixels, labels = np.stack([image.pixels for image in decoded]), [path.parent.name for path in paths]
        print(f"{len(pixels)} of {origin}, {BACKBONE}, `{TAP}`; against `keras` at float32.")
        for kind in ("He-initialised", "heavy-tailed"):
            say(kind)
            weights = Path(folder, f"{kind}.weights.h5")
            write_weights(weights, kind)
            print("\n".join(["", f"**{kind} weights**", "", *table(weights, pixels, labels)]), flush=True)


if __name__ == "__main__":
    main()

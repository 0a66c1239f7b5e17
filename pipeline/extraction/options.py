"""`ExtractOptions`: what a run was asked for. It checks itself, before anything is opened."""

import re
from dataclasses import dataclass, field, fields

from pipeline.runners.dataflow import has_gpu
from pipeline.runners.options import runner_name
from transforms import storage
from transforms.embedding.unit import Job
from transforms.engines import ENGINES, check_engine, choose, default_batch_size
from transforms.errors import UsageError
from transforms.images.decode import PIXEL_CEILING
from transforms.machine import available_cores
from transforms.network.vgg import BACKBONES, MIN_IMAGE_SIZE, check_feature, cut, feature_size, layers
from transforms.network.weights import Weights, load_weights
from transforms.shards import Fields
from transforms.spec import DEFAULT_FEATURE, Feature, FeatureSpec, parse_feature
from transforms.text import did_you_mean

# Block 1 of a single image takes 1 GiB here.
MAX_IMAGE_SIZE = 2048

CHOICES = {
    "backbone": BACKBONES,
    "dtype": ("float32", "float16"),
    "resize": ("squash", "crop", "pad"),
    "interpolation": ("nearest", "bilinear", "bicubic", "lanczos"),
    "decode": ("exact", "fast"),
    "precision": ("float32", "bfloat16"),
    "engine": ENGINES,
}
_BYTE_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(text: str) -> int:
    """Reads `256MiB`, `64MB` or a plain number of bytes.

    Raises:
        UsageError: Neither.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not match or match.group(2) not in _BYTE_UNITS:
        raise UsageError(f"{text!r} is not a size; write 256MiB, 64MB or a number of bytes")
    return int(float(match.group(1)) * _BYTE_UNITS[match.group(2)])


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """What `extract` was asked for.

    Attributes:
        inputs: Shards, folders, globs, `@list.txt`.
        output: OUT, made absolute.
        backbone: `vgg19` or `vgg16`.
        weights: `imagenet`, a path, or `random:SEED`.
        include_top: Whether the dense layers are there to be tapped.
        features: `NAME=TAP:POOL` each.
        dtype, image_size, resize, interpolation, decode, exif, precision: As in `FeatureSpec`.
        engine: What computes the base; `auto` chooses on the machine that computes.
        batch_size: Images per engine call, None for the engine's own default.
        threads: Engine threads per worker process, None to share the cores out.
        workers: Local worker processes; 1 runs in this process.
        runner: Beam's name of the runner.
        beam_args: Beam's own options, as on its command line.
        unit_bytes: Shards larger than this are split.
        fields: Names of the fields in TFRecord and Parquet, where they aren't to be detected.
        prune: Remove parts of inputs that changed or vanished.
        retry_failed: Do units with failures again.
        overwrite: Remove what OUT holds first.
        max_failure_rate: A larger share of failures is exit code 3.
        max_pixels: An image with more pixels is a failure.
        limit: Only the first so many images, for a try.
    """

    inputs: tuple[str, ...]
    output: str
    backbone: str = "vgg19"
    weights: str = "imagenet"
    include_top: bool = False
    features: tuple[str, ...] = (DEFAULT_FEATURE,)
    dtype: str = "float32"
    image_size: int = 224
    resize: str = "squash"
    interpolation: str = "bilinear"
    decode: str = "exact"
    exif: bool = True
    engine: str = "auto"
    precision: str = "float32"
    batch_size: int | None = None
    threads: int | None = None
    workers: int = 1
    runner: str = "FnApiRunner"
    beam_args: tuple[str, ...] = ()
    unit_bytes: int = 256 * 2**20
    fields: Fields = field(default_factory=Fields)
    prune: bool = False
    retry_failed: bool = False
    overwrite: bool = False
    max_failure_rate: float = 1.0
    max_pixels: int = 89_000_000
    limit: int | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for what can't be, with the valid values."""
        object.__setattr__(self, "runner", runner_name(self.runner))
        if not self.inputs or not all(given.strip() for given in self.inputs):
            raise UsageError("an input is empty; name shards, folders, globs or @list.txt")
        if not self.output.strip():
            raise UsageError("the output is empty; name a folder")
        for name, valid in CHOICES.items():
            value = getattr(self, name)
            if value not in valid:
                raise UsageError(f"no {name} {value!r}{did_you_mean(value, valid)}")
        check_engine(self.engine, self.precision)
        if self.image_size < MIN_IMAGE_SIZE:
            raise UsageError(
                f"image size {self.image_size} is below {MIN_IMAGE_SIZE}: five poolings would leave nothing"
            )
        if self.image_size > MAX_IMAGE_SIZE:
            raise UsageError(f"image size {self.image_size} is over {MAX_IMAGE_SIZE}: one image would take gigabytes")
        for name in ("batch_size", "threads", "workers", "unit_bytes", "max_pixels", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if self.max_pixels > PIXEL_CEILING:
            raise UsageError(f"--max-pixels {self.max_pixels} is over {PIXEL_CEILING}, the decoder's own limit")
        if not 0 <= self.max_failure_rate <= 1:
            raise UsageError(f"--max-failure-rate is a share between 0 and 1, not {self.max_failure_rate}")
        if self.workers > 1 and self.runner != "FnApiRunner":
            raise UsageError(f"--workers is for this machine; tell {self.runner} by its own options after --")
        self._check_features()
        object.__setattr__(self, "output", storage.absolute(self.output))
        for given in self.inputs:
            if f"{self.output}/".startswith(f"{storage.absolute(given)}/"):
                raise UsageError(f"the output {self.output} lies inside the input {given}; choose a folder beside it")

    def _check_features(self) -> None:
        parsed = self.parsed_features
        # SQL doesn't tell upper from lower case.
        names = [feature.name.lower() for feature in parsed]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"two features are called {name!r}; give each a name of its own")
        for feature in parsed:
            check_feature(feature, self.backbone, self.include_top)
            feature_size(feature, self.backbone, self.image_size)

    @property
    def parsed_features(self) -> tuple[Feature, ...]:
        return tuple(parse_feature(text) for text in self.features)

    @property
    def engine_name(self) -> str:
        """keras or ncnn, chosen for this machine; `auto` stays on other runners, where each worker chooses for its own.

        Raises:
            FeaturemillError: The engine isn't installed, or can't run here.
        """
        return choose(self.engine, self.precision) if self.runner == "FnApiRunner" else self.engine

    @property
    def engine_batch_size(self) -> int:
        return self.batch_size or default_batch_size(self.engine_name, self.engine_threads)

    @property
    def engine_threads(self) -> int | None:
        """Threads of each worker's engine: as asked, or this machine's cores shared out; None is all of a machine's.

        Elsewhere one, because runners start a process for each core; but beside a GPU there is one process.
        """
        if self.threads:
            return self.threads
        if self.runner != "FnApiRunner":
            return None if has_gpu(self.beam_args) else 1
        return max(1, available_cores() // self.workers)

    def load_weights(self) -> Weights:
        """Loads the arrays of the layers up to the deepest tap."""
        table = cut(layers(self.backbone, include_top=self.include_top), [f.tap for f in self.parsed_features])
        return load_weights(self.weights, table, backbone=self.backbone)

    def spec(self, weights: Weights) -> FeatureSpec:
        """Returns the feature spec of a run with these weights."""
        same = {f.name: getattr(self, f.name) for f in fields(FeatureSpec) if f.name not in ("weights", "features")}
        return FeatureSpec(weights=weights.sha256, features=self.parsed_features, **same)

    def job(self, weights: Weights) -> Job:
        """Returns what workers need to know of a run with these weights."""
        return Job(
            output=self.output,
            spec=self.spec(weights),
            sizes=self.sizes,
            weights=self.weights,
            include_top=self.include_top,
            engine=self.engine_name,
            batch_size=self.engine_batch_size,
            threads=self.engine_threads,
            max_pixels=self.max_pixels,
        )

    @property
    def sizes(self) -> dict[str, int]:
        """{feature name: D}."""
        return {f.name: feature_size(f, self.backbone, self.image_size) for f in self.parsed_features}

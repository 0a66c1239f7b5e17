"""`ExtractOptions`: what a run was asked for. It checks itself, before anything is opened."""

from dataclasses import dataclass, field

from pipeline.runners.dataflow import has_gpu
from pipeline.runners.options import runner_name
from transforms import storage
from transforms.declared import AT_LEAST_ONE, SHARE, check, declared, parse_bytes, shared
from transforms.embedding.settings import EmbedOptions
from transforms.embedding.unit import Job
from transforms.engines import check_engine, choose, default_batch_size
from transforms.errors import UsageError
from transforms.machine import available_cores
from transforms.network.vgg import BACKBONES, check_feature, cut, feature_size, layers
from transforms.network.weights import Weights, load_weights
from transforms.shards import Fields
from transforms.spec import DEFAULT_FEATURE, POOLS, Feature, FeatureSpec, SpecOptions, parse_feature


@dataclass(frozen=True, kw_only=True)
class ImageOptions(EmbedOptions):
    """The options of a run over images, whatever is made of them.

    Attributes:
        inputs: Shards, folders, globs, `@list.txt`.
        fields: Names of the fields in TFRecord and Parquet, where they aren't to be detected.
    """

    inputs: tuple[str, ...]
    workers: int = declared(1, help="Worker processes on this machine", bounds=(AT_LEAST_ONE,))
    unit_bytes: int = declared(
        256 * 2**20,
        help="Split larger shards",
        bounds=(AT_LEAST_ONE,),
        metavar="SIZE",
        parse=parse_bytes,
        unset="256MiB",
    )
    fields: Fields = field(default_factory=Fields)
    max_failure_rate: float = declared(
        1.0, help="End with exit code 3 if a larger share fails, and always if all do", bounds=(SHARE,)
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.inputs or not all(given.strip() for given in self.inputs):
            raise UsageError("an input is empty; name files, folders, globs or @list.txt")


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(ImageOptions, SpecOptions):
    """The options of `extract`; `output` is made absolute.

    Attributes:
        beam_args: Beam's own options, as on its command line.
    """

    output: str = declared(
        help="Folder for the features; created, or continued", flags=("--output", "-o"), metavar="OUT"
    )
    backbone: str = declared("vgg19", help="The network", choices=BACKBONES)
    weights: str = declared(
        "imagenet",
        help="Where weights come from: imagenet (Keras's own download), a path (.h5, .weights.h5, .keras), or "
        "random:SEED (never trained)",
    )
    include_top: bool = declared(False, help="Load the dense layers too, for the taps fc1, fc2, predictions")
    features: tuple[str, ...] = declared(
        (DEFAULT_FEATURE,),
        help=f"Store a column; repeatable. POOL is one of {', '.join(POOLS)}",
        flags=("--feature",),
        metavar="NAME=TAP:POOL",
    )
    runner: str = declared("FnApiRunner", help="Beam's runner; its options follow --")
    beam_args: tuple[str, ...] = ()
    prune: bool = declared(False, help="Remove parts whose input changed or vanished")
    retry_failed: bool = declared(False, help="Do units with failures again")
    overwrite: bool = declared(False, help="Remove what OUT holds first (asks)")
    limit: int | None = declared(
        None, help="Embed only the first N images; OUT is then a sample", bounds=(AT_LEAST_ONE,), metavar="N"
    )

    def __post_init__(self) -> None:
        """Raises UsageError for what can't be, with the valid values."""
        object.__setattr__(self, "runner", runner_name(self.runner))
        super().__post_init__()
        if not self.output.strip():
            raise UsageError("the output is empty; name a folder")
        check_engine(self.engine, self.precision)
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
        options = shared(self, SpecOptions)
        return FeatureSpec(self.backbone, weights.sha256, self.parsed_features, **options)

    def job(self, weights: Weights) -> Job:
        """Returns what workers need to know of a run with these weights."""
        chosen = {"engine": self.engine_name, "batch_size": self.engine_batch_size, "threads": self.engine_threads}
        return Job(
            output=self.output,
            spec=self.spec(weights),
            sizes=self.sizes,
            weights=self.weights,
            include_top=self.include_top,
            **{**shared(self, EmbedOptions), **chosen},
        )

    @property
    def sizes(self) -> dict[str, int]:
        """{feature name: D}."""
        return {f.name: feature_size(f, self.backbone, self.image_size) for f in self.parsed_features}

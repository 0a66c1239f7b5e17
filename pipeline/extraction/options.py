"""`ExtractOptions`: what a run was asked for. It checks itself, before anything is opened."""

from dataclasses import dataclass, field
from typing import Any

from pipeline.runners.dataflow import has_gpu
from pipeline.runners.options import runner_name
from transforms import storage
from transforms.declared import AT_LEAST_ONE, SHARE, check, declared, parse_bytes, shared, undecided
from transforms.embedding.settings import EmbedOptions
from transforms.embedding.unit import Job
from transforms.engines import check_engine, choose, chosen_gpus, default_batch_size, on_gpu, parse_gpus
from transforms.errors import UsageError
from transforms.images.preprocessor import CHOICES, read_prepared
from transforms.labels.kept import parse_keep
from transforms.machine import available_cores
from transforms.network.bases import NETWORKS, base_of, cut, feature_size, file_kind, layers, open_file
from transforms.network.weights import Weights, load_weights
from transforms.shards import Fields
from transforms.spec import (
    DEFAULT_FEATURE,
    OWN_COLUMNS,
    POOLS,
    Feature,
    FeatureSpec,
    SpecOptions,
    parse_feature,
    usual_short_side,
)


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
        notes: What the plan says of a base from a file.
        beside: OUT, where `output` is the folder of a feature that is added to it.
    """

    output: str = declared(
        help="Folder for the features; created, or continued", flags=("--output", "-o"), metavar="OUT"
    )
    backbone: str = declared(
        "vgg19",
        help="The network: a name, FILE.keras, or FILE.onnx (pip install 'featuremill[onnx]'). The names, keras and "
        "onnx being the file that --weights names",
        choices=NETWORKS,
    )
    normalise: str | None = declared(
        None,
        help="How pixels become what a file's network takes: caffe, tf or torch, as Keras calls them, none (0 to 255), "
        "or that network's preprocessor_config.json or timm's config.json, which also say how images are resized",
        metavar="caffe|tf|torch|none|FILE",
        unset="as the network says; a file doesn't",
    )
    weights: str = declared(
        "imagenet",
        help="Where weights come from: imagenet (Keras's own download), a path (.h5, .weights.h5, .keras), or "
        "random:SEED (never trained)",
    )
    include_top: bool = declared(False, help="Load the dense layers too, for the taps fc1, fc2, predictions")
    features: tuple[str, ...] = declared(
        (),
        help=f"Store a column; repeatable. POOL is one of {', '.join(POOLS)}",
        flags=("--feature",),
        metavar="NAME=TAP:POOL",
        unset=f"{DEFAULT_FEATURE}; of other networks, what describe says",
    )
    image_size: int | None = undecided(SpecOptions, "image_size", "the network's own, 224; of efficientnetv2-s, 384")
    resize: str | None = undecided(
        SpecOptions, "resize", "the network's own, crop; of VGG and efficientnetv2-s, squash"
    )
    interpolation: str | None = undecided(SpecOptions, "interpolation", "the network's own, bilinear or bicubic")
    keep: tuple[str, ...] = declared(
        (),
        help="Take a Parquet column, TFRecord key, tar member or key of its .json along into OUT, where possible in "
        "its own type; repeatable",
        flags=("--keep",),
        metavar="COLUMN[:TYPE]",
        unset="those of OUT, if any",
    )
    runner: str = declared("FnApiRunner", help="Beam's runner; its options follow --")
    beam_args: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), metadata={"internal": True})
    prune: bool = declared(False, help="Remove parts whose input changed or vanished")
    retry_failed: bool = declared(False, help="Do units with failures again")
    overwrite: bool = declared(False, help="Remove what OUT holds first (asks)")
    limit: int | None = declared(
        None, help="Embed only the first N images; OUT is then a sample", bounds=(AT_LEAST_ONE,), metavar="N"
    )

    add_feature: str | None = declared(
        None,
        help="Add a column to the rows that OUT has, of OUT's network or another one, and leave them as they are",
        metavar="NAME=[BASE:]TAP:POOL",
    )
    beside: str = field(default="", metadata={"internal": True})

    def __post_init__(self) -> None:
        """Raises UsageError for what can't be, with the valid values."""
        object.__setattr__(self, "runner", runner_name(self.runner))
        if file_kind(self.backbone):
            self._take_file()
        base = base_of(self.backbone)
        known = self._file_settings() if base.is_file else {"features": (base.feature,), "normalise": base.normalise}
        if not base.is_file and self.normalise not in (None, base.normalise):
            raise UsageError(f"{self.backbone} says itself how pixels are normalised; leave --normalise out")
        for name in ("image_size", "resize", "interpolation", "features", "normalise"):
            if getattr(self, name) in (None, ()):
                object.__setattr__(self, name, known.get(name) or getattr(base, name))
        short = known.get("short_side") if self.short_side is None and self.resize == "crop" else self.short_side
        # The usual one has no other fingerprint for being named.
        object.__setattr__(self, "short_side", None if short == usual_short_side(self.image_size) else short)
        super().__post_init__()
        if not self.output.strip():
            raise UsageError("the output is empty; name a folder")
        check_engine(self.engine, self.precision, self.backbone)
        self.check_crop()
        self._check_gpus()
        if self.include_top and not base.has_top:
            raise UsageError(f"{self.backbone} is used without its top; leave --include-top out")
        if self.workers > 1 and self.runner != "FnApiRunner":
            raise UsageError(f"--workers is for this machine; tell {self.runner} by its own options after --")
        self._check_features()
        self._check_kept()
        object.__setattr__(self, "output", storage.absolute(self.output))
        for given in self.inputs:
            if f"{self.output}/".startswith(f"{storage.absolute(given)}/"):
                raise UsageError(f"the output {self.output} lies inside the input {given}; choose a folder beside it")

    def _check_kept(self) -> None:
        taken = [*OWN_COLUMNS, *(feature.name.lower() for feature in self.parsed_features)]
        for kept in map(parse_keep, self.keep):
            # SQL doesn't tell upper from lower case.
            if kept.name.lower() in taken:
                raise UsageError(f"--keep {kept.name}: OUT has a column {kept.name.lower()} already; leave it out")
            taken.append(kept.name.lower())

    def _take_file(self) -> None:
        """Puts the file of `--backbone` where other bases' weights are named: manifests and heads find it there."""
        path = storage.absolute(self.backbone)
        if self.weights not in ("imagenet", path):
            raise UsageError(f"{self.backbone} holds its own weights; leave --weights {self.weights} out")
        object.__setattr__(self, "weights", path)
        object.__setattr__(self, "backbone", file_kind(self.backbone))

    def _file_settings(self) -> dict[str, Any]:
        """Returns what is taken where nobody says otherwise; reads the files that say it."""
        if self.normalise is None:
            raise UsageError(
                f"a network from a file doesn't say how its pixels are normalised; pass --normalise {CHOICES}"
            )
        if self.backbone == "keras" and self.precision not in ("float32", "tf32"):
            raise UsageError(f"a Keras file's layers have types of their own; leave --precision {self.precision} out")
        prepared, file = read_prepared(self.normalise), open_file(self.backbone, self.weights)
        object.__setattr__(self, "normalise", prepared.normalise)
        side = file.image_size(self.image_size or prepared.image.get("image_size"))
        notes = [f"base is {file.path}, {side}×{side}×3 pixels in, normalised {prepared.normalise}", *prepared.notes]
        if not self.features:
            [tap] = file.taps(file.outputs[:1], side).values()
            features = (f"embedding={tap.name}:{tap.default_pool}",)
        else:
            features = self.features
        taps = file.taps([parse_feature(text).tap for text in features], side)
        notes += [f"{name} gives {tap.text}" for name, tap in taps.items()]
        object.__setattr__(self, "notes", self.notes or tuple(notes))
        image = {**prepared.image, "features": features, "image_size": side}
        if "short_side" in image:
            # At another size it's the same share.
            image["short_side"] = round(image["short_side"] * side / prepared.image["image_size"])
        return image

    def _check_gpus(self) -> None:
        if self.gpus is None:
            return
        if self.engine_per == "worker":
            raise UsageError("--gpus gives each GPU an engine, so --engine-per worker can't be; leave one of them out")
        if self.runner != "FnApiRunner":
            # Each worker looks at its own machine.
            parse_gpus(self.gpus)
            return
        count = len(chosen_gpus(self.engine, self.gpus))
        if self.workers < count:
            raise UsageError(f"--gpus {self.gpus} are {count}, and need a worker each at least; pass --workers {count}")

    def _check_features(self) -> None:
        parsed = self.parsed_features
        # SQL doesn't tell upper from lower case.
        names = [feature.name.lower() for feature in parsed]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"two features are called {name!r}; give each a name of its own")
        for feature in parsed:
            self._size(feature, include_top=self.include_top)

    def _size(self, feature: Feature, **more: Any) -> int:
        return feature_size(feature, self.backbone, self.image_size, weights=self.weights, **more)

    @property
    def parsed_features(self) -> tuple[Feature, ...]:
        return tuple(parse_feature(text) for text in self.features)

    @property
    def engine_name(self) -> str:
        """The engine chosen for this machine; `auto` stays on other runners, where each worker chooses for its own.

        Raises:
            FeaturemillError: The engine isn't installed, or can't run here.
        """
        return choose(self.engine, self.precision, self.backbone) if self.runner == "FnApiRunner" else self.engine

    @property
    def engine_batch_size(self) -> int | None:
        """Images per engine call; None where it is found when the engine is loaded."""
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

    @property
    def shares_engine(self) -> bool:
        """True if the workers of this machine share an engine. Elsewhere each worker finds out."""
        if self.engine_per == "auto" and self.gpus is None:
            return self.workers > 1 and on_gpu(self.engine_name)
        return self.engine_per == "machine" or self.gpus is not None

    def load_weights(self) -> Weights:
        """Loads the arrays of the layers up to the deepest tap."""
        table = ()
        if not base_of(self.backbone).is_file:
            table = cut(layers(self.backbone, include_top=self.include_top), [f.tap for f in self.parsed_features])
        return load_weights(self.weights, table, backbone=self.backbone)

    def spec(self, weights: Weights) -> FeatureSpec:
        """Returns the feature spec of a run with these weights."""
        options = shared(self, SpecOptions)
        return FeatureSpec(self.backbone, weights.sha256, self.parsed_features, normalise=self.normalise, **options)

    def job(self, weights: Weights) -> Job:
        """Returns what workers need to know of a run with these weights."""
        chosen = {"engine": self.engine_name, "batch_size": self.engine_batch_size, "threads": self.engine_threads}
        if self.runner == "FnApiRunner":
            chosen["engine_per"] = "machine" if self.shares_engine else "worker"
            if self.gpus is not None:
                # Of auto it is known only now.
                chosen_gpus(self.engine_name, self.gpus)
        return Job(
            output=self.output,
            spec=self.spec(weights),
            sizes=self.sizes,
            weights=self.weights,
            include_top=self.include_top,
            beside=self.beside,
            **{**shared(self, EmbedOptions), **chosen},
        )

    @property
    def sizes(self) -> dict[str, int]:
        """{feature name: D}."""
        return {feature.name: self._size(feature) for feature in self.parsed_features}

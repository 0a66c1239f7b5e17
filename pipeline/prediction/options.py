"""`PredictOptions`: what a prediction was asked for. It checks itself, before anything is opened."""

from dataclasses import dataclass, field

from pipeline.rendering.targets import check_beside
from transforms import storage
from transforms.engines import ENGINES
from transforms.errors import UsageError
from transforms.predictors import imagenet
from transforms.shards import Fields
from transforms.text import did_you_mean


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """What `predict` was asked for.

    Attributes:
        head: HEAD, made absolute; or `imagenet` (a folder of that name is `./imagenet`).
        inputs: Images as `extract` takes them, or features: OUT of extract, or Parquet with vectors.
        output: PRED, made absolute; None to only show the first images.
        weights: Of the network; None for those of the head.
        backbone: Of ImageNet's head; None for vgg19. A trained head has its own.
        feature_columns: Vector columns of the features; empty for those of the head.
        top: Classes to a row; all if there are fewer.
        probabilities: Whether all classes' go into the row.
        evaluate: Judge the predictions by the true labels.
        keep_features: Leave the images' features in PRED/features.
        labels: A CSV or Parquet file with true labels by key; None for the inputs' own.
        label_column, key_column: Names of the columns, in features and in `labels`.
        engine, batch_size, threads, workers, unit_bytes, fields, max_pixels, max_failure_rate: As in `ExtractOptions`.
        overwrite: Remove what PRED holds first.
    """

    head: str
    inputs: tuple[str, ...]
    output: str | None = None
    weights: str | None = None
    backbone: str | None = None
    feature_columns: tuple[str, ...] = ()
    top: int = 5
    probabilities: bool = False
    evaluate: bool = False
    keep_features: bool = False
    labels: str | None = None
    label_column: str = "label"
    key_column: str = "key"
    engine: str = "auto"
    batch_size: int | None = None
    threads: int | None = None
    workers: int = 1
    unit_bytes: int = 256 * 2**20
    fields: Fields = field(default_factory=Fields)
    max_pixels: int = 89_000_000
    max_failure_rate: float = 1.0
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for what can't be, with the cure."""
        if not self.head.strip():
            raise UsageError("the head is empty; name a folder that train wrote, or imagenet")
        if not self.inputs or not all(given.strip() for given in self.inputs):
            raise UsageError("an input is empty; name features, shards, folders, globs or @list.txt")
        if self.output is not None and not self.output.strip():
            raise UsageError("the output is empty; name a folder")
        if self.engine not in ENGINES:
            raise UsageError(f"no engine {self.engine!r}{did_you_mean(self.engine, ENGINES)}")
        for name in ("top", "batch_size", "threads", "workers", "unit_bytes", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if not 0 <= self.max_failure_rate <= 1:
            raise UsageError(f"--max-failure-rate is a share between 0 and 1, not {self.max_failure_rate}")
        if self.backbone and not self.is_imagenet:
            raise UsageError("--backbone is for ImageNet's head; a trained head has its own: leave it out")
        for name in ("evaluate", "keep_features", "overwrite"):
            if self.output is None and getattr(self, name):
                raise UsageError(f"--{name.replace('_', '-')} needs a folder; name one with --output")
        if not self.is_imagenet:
            object.__setattr__(self, "head", storage.absolute(self.head))
        if self.output is not None:
            object.__setattr__(self, "output", storage.absolute(self.output))
            self._check_apart()

    def _check_apart(self) -> None:
        for given in map(storage.absolute, self.inputs):
            check_beside(self.output, given)
            if given.startswith(f"{self.output}/"):
                raise UsageError(f"the input {given} lies inside the output {self.output}; choose a folder apart")

    @property
    def is_imagenet(self) -> bool:
        return self.head == imagenet.NAME

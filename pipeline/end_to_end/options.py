"""`FinetuneOptions`: what a fine-tuning was asked for. It checks itself, before anything is opened."""

from dataclasses import dataclass

from pipeline.rendering.targets import check_beside
from transforms import storage
from transforms.errors import UsageError
from transforms.text import did_you_mean

SOURCES = ("auto", "taps", "images")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """What a fine-tuning was asked for.

    Attributes:
        head: HEAD to start from, made absolute.
        features: OUT of extract, made absolute; with a tap below the layers to train, or with its images still there.
        output: The new HEAD, made absolute.
        unfreeze: A block such as `block5`, a number of layers from the top of the base, or `all`.
        weights: Of the network; None for those of the head.
        labels: A CSV or Parquet file with labels by key; None for what the head was trained with.
        source: `taps`, `images`, or `auto`: taps where a fitting one is stored.
        learning_rate, batch_size, epochs, patience: Of Adam and early stopping.
        seed: Of shuffling and dropout. The split is the head's.
        overwrite: Replace a head that is there.
    """

    head: str
    features: str
    output: str
    unfreeze: str = "block5"
    weights: str | None = None
    labels: str | None = None
    source: str = "auto"
    learning_rate: float = 1e-5
    batch_size: int = 16
    epochs: int = 10
    patience: int = 3
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for what can't be, with the valid values."""
        for name in ("head", "features", "output"):
            if not getattr(self, name).strip():
                raise UsageError(f"the name of the {name} is empty; name a folder")
            object.__setattr__(self, name, storage.absolute(getattr(self, name)))
        if self.output == self.head:
            raise UsageError(f"--output {self.output} is the head to start from; choose another folder")
        check_beside(self.output, self.features)
        if self.source not in SOURCES:
            raise UsageError(f"no source {self.source!r}{did_you_mean(self.source, SOURCES)}")
        for name in ("batch_size", "epochs", "patience"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        # Written so that NaN and infinity aren't fine.
        if not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"--learning-rate is a number above 0, not {self.learning_rate}")
        if not 0 <= self.seed < 2**32:
            raise UsageError(f"--seed is 0 to {2**32 - 1}, not {self.seed}")

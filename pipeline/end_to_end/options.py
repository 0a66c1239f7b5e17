"""`FinetuneOptions`: what a fine-tuning was asked for. It checks itself, before anything is opened."""

from dataclasses import dataclass

from pipeline.rendering.targets import check_beside
from transforms import storage
from transforms.declared import ABOVE_ZERO, AT_LEAST_ONE, SEED, check, declared
from transforms.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """The options of `finetune`; paths are made absolute.

    Attributes:
        head: HEAD to start from.
        features: OUT of extract; with a tap below the layers to train, or with its images still there.
    """

    head: str
    features: str
    output: str = declared(help="Folder for the new head and its weights", flags=("--output", "-o"), metavar="NEW_HEAD")
    unfreeze: str = declared(
        "block5",
        help="What is trained: a block, a layer, how many layers from the top of the base (5, 7; all count), or all",
    )
    source: str = declared(
        "auto", help="What is read, auto being taps where they are stored", choices=("auto", "taps", "images")
    )
    labels: str | None = declared(
        None, help="CSV or Parquet with labels by key", metavar="FILE", unset="those of the head"
    )
    weights: str | None = declared(None, help="Where the network's weights are now", unset="where they were")
    learning_rate: float = declared(1e-5, help="Learning rate of Adam", bounds=(ABOVE_ZERO,))
    batch_size: int = declared(16, help="Rows per step of Adam", bounds=(AT_LEAST_ONE,))
    epochs: int = declared(10, help="Most passes over the rows", bounds=(AT_LEAST_ONE,))
    patience: int = declared(3, help="Epochs without a better validation loss before it stops", bounds=(AT_LEAST_ONE,))
    seed: int = declared(0, help="Seed of shuffling and dropout; the split is the head's", bounds=(SEED,))
    mirror: bool = declared(
        False, help="Mirror each training image left-right with probability 1/2, anew each epoch; images are read"
    )
    resume: bool = declared(False, help="Go on after the last whole epoch of a training that was cut off")
    overwrite: bool = declared(False, help="Replace the head that is there, and a training that was cut off")

    def __post_init__(self) -> None:
        """Raises UsageError for what can't be, with the valid values."""
        for name in ("head", "features", "output"):
            if not getattr(self, name).strip():
                raise UsageError(f"the name of the {name} is empty; name a folder")
            object.__setattr__(self, name, storage.absolute(getattr(self, name)))
        if self.output == self.head:
            raise UsageError(f"--output {self.output} is the head to start from; choose another folder")
        if self.mirror and self.source == "taps":
            raise UsageError(
                "--mirror with --source taps: a stored tap is that of the image as it is, and mirrored it isn't "
                "that of the mirrored image; leave out one of them"
            )
        check_beside(self.output, self.features)
        check(self)

"""`TrainOptions`: what a training was asked for. It checks itself, before anything is opened."""

from dataclasses import dataclass, field

from pipeline.rendering.targets import check_beside
from transforms import storage
from transforms.errors import UsageError
from transforms.heads import KINDS, FitSettings
from transforms.text import did_you_mean


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `train` was asked for.

    Attributes:
        features: OUT of extract, or a Parquet file, folder or glob with a column of vectors.
        output: HEAD, made absolute.
        kinds: Of heads; with several, the best is kept.
        columns: Vector columns, put one behind the other; empty for the usual one.
        labels: A CSV or Parquet file with labels by key; empty for the features' own.
        label_column, key_column: Names of the columns, in the features and in `labels`.
        group_column: Rows with the same value stay on one side. From `labels` where that has it, else the features'.
        split_column: Says train, validation or test for each row. From `labels` where that has it, else the features'.
        validation, test: Shares of the rows, by chance.
        folds: K, for cross-validation; None for a single split.
        near_duplicates: Rows with at least this cosine stay on one side; None for exact copies only.
        settings: Of the fits; its seed is that of the split and of the bootstrap too.
        learning_curve: Whether 1/8, 1/4 and 1/2 of the training rows are tried too.
        overwrite: Replace a head that is there.
    """

    features: str
    output: str
    kinds: tuple[str, ...] = ("ridge",)
    columns: tuple[str, ...] = ()
    labels: str | None = None
    label_column: str = "label"
    key_column: str = "key"
    group_column: str | None = None
    split_column: str | None = None
    validation: float = 0.2
    test: float = 0.0
    folds: int | None = None
    near_duplicates: float | None = None
    settings: FitSettings = field(default_factory=FitSettings)
    learning_curve: bool = True
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for what can't be, with the valid values."""
        for name in ("features", "output"):
            if not getattr(self, name).strip():
                raise UsageError(f"the name of the {name} is empty; name a folder")
        for kind in self.kinds:
            if kind not in KINDS:
                raise UsageError(f"no head {kind!r}{did_you_mean(kind, KINDS)}")
        if len(set(self.kinds)) != len(self.kinds) or not self.kinds:
            raise UsageError(f"name each head once, not {', '.join(self.kinds) or 'none'}")
        self._check_shares()
        self._check_settings()
        for name in ("features", "output"):
            object.__setattr__(self, name, storage.absolute(getattr(self, name)))
        check_beside(self.output, self.features)

    def _check_shares(self) -> None:
        for option, share in (("--val-fraction", self.validation), ("--test-fraction", self.test)):
            if not 0 <= share < 1:
                raise UsageError(f"{option} is a share from 0 to below 1, not {share}")
        if self.validation + self.test >= 1:
            raise UsageError(f"validation {self.validation} and test {self.test} leave nothing to train on; lower one")
        if self.folds is not None and self.split_column:
            raise UsageError("--folds and --split-column both say how to split; give one of them")
        if self.folds is not None and self.test:
            raise UsageError("--folds judge every row once, a --test-fraction holds rows back; give one of them")
        if self.folds is not None and not 3 <= self.folds <= 20:
            raise UsageError(
                f"--folds is 3 to 20, not {self.folds}: each fold in turn is judged, another chooses, the rest trains"
            )
        if self.folds is None and not self.split_column and self.validation == 0:
            raise UsageError("--val-fraction 0 leaves no rows to choose penalty or epoch by; give a share, or --folds")
        if self.near_duplicates is not None and not 0 < self.near_duplicates <= 1:
            raise UsageError(f"--near-duplicates is a cosine above 0 and at most 1, not {self.near_duplicates}")

    def _check_settings(self) -> None:
        settings = self.settings
        if not 0 <= settings.seed < 2**32:
            raise UsageError(f"--seed is 0 to {2**32 - 1}, not {settings.seed}")
        if not settings.penalties or min(settings.penalties) < 0 or not all(map(_is_finite, settings.penalties)):
            raise UsageError(
                f"penalties are numbers from 0 on, not {', '.join(map(str, settings.penalties)) or 'none'}"
            )
        for name in ("neighbours", "batch_size", "epochs", "patience"):
            if getattr(settings, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(settings, name)}")
        if not (settings.learning_rate > 0 and _is_finite(settings.learning_rate)):
            raise UsageError(f"--learning-rate is a number above 0, not {settings.learning_rate}")


def _is_finite(value: float) -> bool:
    return value - value == 0

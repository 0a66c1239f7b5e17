"""`TrainOptions`: what a training was asked for. It checks itself, before anything is opened."""

from dataclasses import dataclass, field

from pipeline.rendering.targets import check_beside
from transforms import storage
from transforms.declared import COSINE, SHARE, Bound, check, declared
from transforms.errors import UsageError
from transforms.heads import KINDS, FitSettings
from transforms.rows.labels import MODES

_BELOW_ONE = Bound(lambda share: 0 <= share < 1, "{flag} is a share from 0 to below 1, not {value}")
# What kinds of heads can be chosen by.
CHOSEN_BY = ("log_loss", "accuracy", "balanced_accuracy", "macro_f1")
_FOLDS = Bound(
    lambda folds: 3 <= folds <= 20,
    "{flag} is 3 to 20, not {value}: each fold in turn is judged, another chooses, the rest trains",
)


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """The source of true labels; `labels` None is the inputs' own."""

    labels: str | None = declared(
        None,
        help="CSV, JSON lines or Parquet with true labels by key, path, file name, stem or sha256",
        metavar="FILE",
        unset="those that came with the images",
    )
    labels_mode: str = declared(
        "replace", help="Rows that --labels FILE doesn't have get no label, or keep their own (update)", choices=MODES
    )
    label_column: str | None = declared(
        None, help="Column with the label, in --labels FILE or the features", unset="label; in FILE found by its name"
    )
    key_column: str | None = declared(
        None, help="Column with the key, in --labels FILE or the features", unset="key; in FILE found by its name"
    )


@dataclass(frozen=True, kw_only=True)
class AbstainOptions:
    """The rule for rows without an answer; without either option all are answered, or those that HEAD says."""

    threshold: float | None = declared(
        None,
        help="Leave rows without an answer whose likeliest class has a lower probability",
        metavar="P",
        bounds=(SHARE,),
    )
    abstain: float | None = declared(
        None,
        help="Set the threshold so that this share of the validation rows stays without an answer",
        metavar="RATE",
        bounds=(_BELOW_ONE,),
    )

    @property
    def abstains(self) -> bool:
        """True if one of the options is given."""
        return self.threshold is not None or self.abstain is not None

    def check_abstaining(self) -> None:
        """Raises UsageError if both options are given."""
        if self.threshold is not None and self.abstain is not None:
            raise UsageError("--threshold and --abstain both say what stays without an answer; give one of them")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(LabelOptions, AbstainOptions):
    """The options of `train`; paths are made absolute.

    Attributes:
        features: OUT of extract, or a Parquet file, folder or glob with a column of vectors.
        kinds: Of heads; with several, the one that is best on the validation rows is kept.
        choose_by: The metric by which that is found; the settings decide it if it isn't given.
        near_duplicates: Rows with at least this cosine stay on one side; None for exact copies only.
        settings: Of the fits; its seed is that of the split and of the intervals too.
        errors: Whether the images of some judged rows are read, for a page.
        learning_curve: Whether 1/8, 1/4 and 1/2 of the training rows are tried too.
    """

    features: str
    output: str = declared(help="Folder for the head", flags=("--output", "-o"), metavar="HEAD")
    kinds: tuple[str, ...] = declared(
        ("ridge",),
        help="Kind of head",
        choices=KINDS,
        flags=("--head",),
        metavar="KIND",
        parse=lambda kind: (kind,),
        unset="ridge",
    )
    columns: tuple[str, ...] = declared(
        (),
        help="Column of vectors; several are put one behind the other",
        flags=("--feature", "--feature-column"),
        metavar="NAME",
        unset="embedding",
    )
    validation: float = declared(
        0.2, help="Share of the rows to choose penalty or epoch by", flags=("--val-fraction",), bounds=(_BELOW_ONE,)
    )
    test: float = declared(0.0, help="Share of the rows to judge by", flags=("--test-fraction",), bounds=(_BELOW_ONE,))
    test_of: str | None = declared(
        None,
        help="Judge by the test rows of another head, whatever was added or corrected since",
        flags=("--test-of",),
        metavar="HEAD",
    )
    folds: int | None = declared(
        None, help="Judge every row once, by a head made without its fold, one of K", metavar="K", bounds=(_FOLDS,)
    )
    split_column: str | None = declared(
        None,
        help="Column that says train, validation or test, in --labels FILE or else FEATURES; '' for a split by chance",
        unset="the sides that OUT has from its folders, without --test-fraction and --folds",
    )
    group_column: str | None = declared(
        None,
        help="Column whose equal values stay on one side, such as a patient or a flat, in --labels FILE or else "
        "FEATURES",
    )
    near_duplicates: float | None = declared(
        None, help="Keep rows on one side whose vectors have at least this cosine", metavar="COSINE", bounds=(COSINE,)
    )
    choose_by: str | None = declared(
        None,
        help="Metric of the validation rows by which one of several heads is chosen",
        choices=CHOSEN_BY,
        unset="log_loss; balanced_accuracy with --class-weights",
    )
    flag_far: float | None = declared(
        None,
        help="Keep training rows in HEAD, so that predict flags rows farther from them than all but this share of the "
        "validation rows",
        metavar="RATE",
        bounds=(_BELOW_ONE,),
    )
    settings: FitSettings = field(default_factory=FitSettings)
    learning_curve: bool = declared(True, help="Try fewer rows too")
    errors: bool = declared(True, help="Write errors.html too: the mistakes as pictures")
    overwrite: bool = declared(False, help="Replace the head that is there")

    def __post_init__(self) -> None:
        """Raises UsageError for what can't be, with the valid values."""
        for name in ("features", "output"):
            if not getattr(self, name).strip():
                raise UsageError(f"the name of the {name} is empty; name a folder")
        check(self)
        self.check_abstaining()
        if len(set(self.kinds)) != len(self.kinds) or not self.kinds:
            raise UsageError(f"name each head once, not {', '.join(self.kinds) or 'none'}")
        self._check_shares()
        if self.test_of is not None:
            if self.test or self.folds or self.split_column:
                raise UsageError(
                    "--test-of says which rows judge; leave out --test-fraction, --folds and --split-column"
                )
            object.__setattr__(self, "test_of", storage.absolute(self.test_of))
        if self.choose_by is None:
            metric = "balanced_accuracy" if self.settings.class_weights else "log_loss"
            object.__setattr__(self, "choose_by", metric)
        if not self.settings.penalties:
            raise UsageError("penalties are numbers from 0 on, not none")
        for name in ("features", "output"):
            object.__setattr__(self, name, storage.absolute(getattr(self, name)))
        check_beside(self.output, self.features)

    def _check_shares(self) -> None:
        if self.validation + self.test >= 1:
            raise UsageError(f"validation {self.validation} and test {self.test} leave nothing to train on; lower one")
        if self.folds is not None and self.split_column:
            raise UsageError("--folds and --split-column both say how to split; give one of them")
        if self.folds is not None and self.test:
            raise UsageError("--folds judge every row once, a --test-fraction holds rows back; give one of them")
        if self.folds is None and not self.split_column and self.validation == 0:
            raise UsageError("--val-fraction 0 leaves no rows to choose penalty or epoch by; give a share, or --folds")

"""`PredictOptions`: what a prediction was asked for. It checks itself, before anything is opened."""

from dataclasses import dataclass

from pipeline.extraction.options import ImageOptions
from pipeline.rendering.targets import ROWS, check_beside, check_targets
from pipeline.training.options import AbstainOptions, LabelOptions
from transforms import storage
from transforms.declared import AT_LEAST_ONE, declared
from transforms.errors import UsageError
from transforms.network.bases import TOPPED
from transforms.predictors import imagenet


@dataclass(frozen=True, kw_only=True)
class PredictOptions(LabelOptions, AbstainOptions, ImageOptions):
    """The options of `predict`; `inputs` may also be features: OUT of extract, or Parquet with vectors.

    Attributes:
        head: HEAD, made absolute; or `imagenet` (a folder of that name is `./imagenet`).
        output: PRED, made absolute; a file of rows, if its ending is that of one; None to only show the first images.
    """

    head: str
    output: str | None = declared(
        None,
        help="Folder for the predictions, or one .parquet, .csv or .jsonl file with their rows alone",
        flags=("--output", "-o"),
        metavar="PRED",
        unset="the first are shown",
    )
    top: int = declared(5, help="Classes to a row", bounds=(AT_LEAST_ONE,))
    probabilities: bool = declared(False, help="Write the probabilities of all classes, too")
    evaluate: bool = declared(False, help="Judge the predictions by the true labels")
    group_column: str | None = declared(
        None,
        help="Column whose equal values aren't independent, such as a patient, for the intervals of --evaluate; in "
        "--labels FILE or else INPUT, where that is features",
        unset="HEAD's, where these have it",
    )
    feature_columns: tuple[str, ...] = declared(
        (),
        help="Column of vectors, where INPUT is features",
        flags=("--feature", "--feature-column"),
        metavar="NAME",
        unset="those of the head",
    )
    weights: str | None = declared(None, help="Where the network's weights are now", unset="where they were")
    backbone: str | None = declared(None, help="Network of ImageNet's own head", choices=TOPPED, unset="vgg19")
    keep_features: bool = declared(True, help="Leave the images' features in PRED/features, for another head")
    overwrite: bool = declared(False, help="Replace what PRED holds; features that still fit are kept")

    def __post_init__(self) -> None:
        """Raises UsageError for what can't be, with the cure."""
        super().__post_init__()
        self.check_abstaining()
        if self.abstain is not None and self.is_imagenet:
            raise UsageError("--abstain takes validation rows, which ImageNet's head doesn't keep; give --threshold P")
        if not self.head.strip():
            raise UsageError("the head is empty; name a folder that train wrote, or imagenet")
        if self.output is not None and not self.output.strip():
            raise UsageError("the output is empty; name a folder")
        if self.backbone and not self.is_imagenet:
            raise UsageError("--backbone is for ImageNet's head; a trained head has its own: leave it out")
        for name in ("evaluate", "overwrite"):
            if self.output is None and getattr(self, name):
                raise UsageError(f"--{name.replace('_', '-')} needs a folder; name one with --output")
        if not self.is_imagenet:
            object.__setattr__(self, "head", storage.absolute(self.head))
        if self.output is not None:
            object.__setattr__(self, "output", storage.absolute(self.output))
            self._check_apart()
        if self.is_file:
            check_targets(self.inputs, rows=self.output, overwrite=self.overwrite)

    def _check_apart(self) -> None:
        for given in map(storage.absolute, self.inputs):
            check_beside(self.output, given)
            if given.startswith(f"{self.output}/"):
                raise UsageError(f"the input {given} lies inside the output {self.output}; choose a folder apart")

    @property
    def is_file(self) -> bool:
        """True if the rows go to one file instead of a folder."""
        return self.output is not None and self.output.lower().endswith(ROWS)

    @property
    def is_imagenet(self) -> bool:
        return self.head == imagenet.NAME

"""Fits on transformed rows: what is done to vectors first is chosen by the validation rows, in each fit by itself."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from transforms import heads
from transforms.evaluation.metrics import fit_temperature
from transforms.heads import TRANSFORMS, FitSettings, Fitter
from transforms.heads.cells import HeldVectors, Rows, TransformedVectors
from transforms.heads.model import Model, class_weights, log_losses
from transforms.heads.transform import Transform

# Rows that choose: so many numbers of them, or so many rows where these are longer.
_NUMBERS, _LEAST_ROWS = 2**21, 1024
_TRAIN, _VALIDATION = 0, 1


class Choosing:
    """A `Fitter` of one kind that also chooses the transform, unless the settings name it.

    The transform with the least log loss on the validation rows is taken, each head with its own temperature. Of more
    than some thousand rows a sample chooses, and then the first fit's choice serves all: the rows are read once for
    each transform that is used.
    """

    def __init__(self, kind: str, rows: Rows, settings: FitSettings):
        """Raises UsageError: no such kind, or a setting that it can't follow."""
        self._kind, self._rows, self._settings = kind, rows, settings
        used = rows.cells >= 0
        most = max(_NUMBERS // rows.dims, _LEAST_ROWS)
        self._all = int(used.sum()) <= most
        self._transforms: dict[str, Transform] = {}
        self._fitters: dict[str, Fitter] = {}
        self._chosen: str | None = settings.transform
        names = (settings.transform,) if settings.transform else TRANSFORMS
        self._sample = None
        if len(names) == 1 and len(rows.vectors.widths) == 1:
            self._transforms = {names[0]: Transform(names[0])}
        else:
            self._sample = _sample(rows, most, settings.seed)

    def fit(self, train: Collection[int], validation: Collection[int], *, like: Model | None = None) -> Model:
        """Fits on the rows of some cells; those of others choose transform, penalty or stopping epoch.

        Args:
            train, validation: Cells.
            like: Takes its transform instead of choosing one.

        Raises:
            FeaturemillError: A fit that can't be, with the cure.
        """
        if not self._transforms:
            self._transforms = self._scaled(train)
        name, model = like.transform.name if like else self._chosen, None
        if not name:
            name, model = self._choose(train, validation)
            # Each other choice would cost one more pass over all rows.
            self._chosen = None if self._all else name
        if model is None or not self._all or model.kind != self._kind:
            model = self._fitter(name).fit(train, validation)
        return self._finished(model, name)

    def refit(self, model: Model, train: Collection[int]) -> Model:
        """Returns a head with `model`'s choices fitted on more cells."""
        return self._finished(self._fitter(model.transform.name).refit(model, train), model.transform.name)

    def _finished(self, model: Model, name: str) -> Model:
        return replace(model, settings={**model.settings, "transform": name}, transform=self._transforms[name])

    def _fitter(self, name: str) -> Fitter:
        if name not in self._fitters:
            transform = self._transforms[name]
            rows = self._rows
            if not transform.is_identity:
                rows = replace(rows, vectors=TransformedVectors(rows.vectors, transform))
            self._fitters[name] = heads.fitter(self._kind, rows, self._settings)
        return self._fitters[name]

    def _scaled(self, train: Collection[int]) -> dict[str, Transform]:
        names = (self._settings.transform,) if self._settings.transform else TRANSFORMS
        _, matrix = self._sample.matrix(train)
        return {name: Transform(name, self._rows.vectors.widths).with_spread(matrix) for name in names}

    def _choose(self, train: Collection[int], validation: Collection[int]) -> tuple[str, Model | None]:
        """Returns the best transform, and the head that showed it."""
        sides = [self._sample.matrix(cells) for cells in (train, validation)]
        if not all(len(numbers) for numbers, _ in sides):
            return TRANSFORMS[0], None
        codes = [self._sample.codes[numbers] for numbers, _ in sides]
        cells = np.repeat(np.array([_TRAIN, _VALIDATION], np.int32), [len(some) for some in codes])
        best = None
        for name in self._transforms:
            loss, model = self._try(name, [matrix for _, matrix in sides], codes, cells)
            if best is None or loss < best[0]:
                best = loss, name, model
        return best[1:]

    def _try(
        self, name: str, sides: list[np.ndarray], codes: list[np.ndarray], cells: np.ndarray
    ) -> tuple[float, Model]:
        """Returns a head that some rows train as this transform gives them, and the log loss of others by it."""
        transform = self._transforms[name]
        kind = heads.kind_of(self._kind).transform_by or self._kind
        # Adam's heads weigh classes, the kind that chooses for them may not.
        weighs = self._settings.class_weights and kind == self._kind
        settings = replace(
            self._settings, class_weights=weighs, neighbours=min(self._settings.neighbours, len(codes[_TRAIN]))
        )
        matrix = np.concatenate([transform(side) for side in sides])
        rows = Rows(HeldVectors(matrix, (matrix.shape[1],)), np.concatenate(codes), cells, self._rows.classes)
        model = heads.fitter(kind, rows, settings).fit((_TRAIN,), (_VALIDATION,))
        scores = heads.logits(model, matrix[len(codes[_TRAIN]) :])
        losses = log_losses(scores / fit_temperature(scores, codes[_VALIDATION]), codes[_VALIDATION])
        if not self._settings.class_weights:
            return float(losses.mean()), model
        weights = class_weights(np.bincount(codes[_TRAIN], minlength=len(self._rows.classes)))
        return float(np.average(losses, weights=weights[codes[_VALIDATION]])), model


def _sample(rows: Rows, most: int, seed: int) -> Rows:
    """Returns at most so many of the rows that are in cells, evenly drawn, in memory."""
    used = np.flatnonzero(rows.cells >= 0)
    chosen = np.zeros(len(rows.cells), bool)
    chosen[np.random.default_rng(seed).permutation(used)[:most]] = True
    numbers, matrix = np.flatnonzero(chosen), np.empty((int(chosen.sum()), rows.dims), np.float32)
    at = 0
    for _, batch in rows.vectors.batches(chosen):
        matrix[at : at + len(batch)] = batch
        at += len(batch)
    return Rows(HeldVectors(matrix, rows.vectors.widths), rows.codes[numbers], rows.cells[numbers], rows.classes)

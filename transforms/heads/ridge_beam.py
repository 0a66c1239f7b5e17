"""`SumsFn`: ridge's sums as a Beam `CombineFn`, so that a cluster's workers add up what one process would."""

from collections.abc import Iterable

import apache_beam as beam
import numpy as np

from transforms.heads.ridge_sums import CellSums

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]


class SumsFn(beam.CombineFn):
    """(cells, vectors, codes) of any batches of rows in, the `CellSums` over all of them out.

    Workers send one D×D matrix per cell, never rows. `transforms.heads.ridge.Ridge` fits on the result.

    Args:
        offset: D float64, the same for all workers, such as the mean of some unit's rows; see `CellSums`.
        classes: C.
    """

    def __init__(self, offset: np.ndarray, classes: int):
        super().__init__()
        self._offset, self._classes = offset, classes

    def create_accumulator(self) -> CellSums:
        return CellSums(self._offset, self._classes)

    def add_input(self, accumulator: CellSums, batch: Batch) -> CellSums:
        accumulator.add(*batch)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[CellSums]) -> CellSums:
        merged = self.create_accumulator()
        for accumulator in accumulators:
            merged.merge(accumulator)
        return merged

    def extract_output(self, accumulator: CellSums) -> CellSums:
        return accumulator

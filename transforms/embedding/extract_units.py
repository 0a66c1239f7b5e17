"""`ExtractUnits`: the recipe as a Beam transform. One element is one unit: read, retried and committed by itself."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.utils.shared import Shared

from transforms import storage
from transforms.embedding.unit import Job, extract_unit
from transforms.engines.engine import Engine
from transforms.records import UnitReport
from transforms.store.layout import part_uri
from transforms.store.units import PlannedUnit


@dataclass
class ExtractUnits(beam.PTransform):
    """PlannedUnit elements in, UnitReport elements out; the rows go to OUT's parts, not through the graph.

    Why not RunInference: its batches never span bundles and would carry the pixels through the graph; a unit batches
    its own images at one fixed shape, and its part is committed the moment it is done.

    Attributes:
        job: What to do with each unit.
        load: Makes the engine, once per worker process. Tests inject one without weights.
        redo: Units that have a part are done again. Without it a runner that starts the graph anew, because a worker
            was lost, goes on where it was.
    """

    job: Job
    load: Callable[[Job], Engine] = Job.load_engine
    redo: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def expand(self, units: beam.PCollection[PlannedUnit]) -> beam.PCollection[UnitReport]:
        # The reshuffle keeps runners from fusing the plan with the work, which would leave all units on one worker.
        return units | "Spread" >> beam.Reshuffle() | "Extract" >> beam.ParDo(_ExtractUnit(self))


class _ExtractUnit(beam.DoFn):
    """Calls `extract_unit` with an engine that every thread of the process shares."""

    def __init__(self, transform: ExtractUnits):
        self._job, self._load, self._redo = transform.job, transform.load, transform.redo
        self._shared = Shared()

    def setup(self) -> None:
        self._engine = self._shared.acquire(lambda: self._job.join_engine(self._load))
        # What is there now stays: looking through it again and again for garbage took 0.015 ms an image. This and its
        # end are of the whole process.
        gc.collect()
        gc.freeze()

    def teardown(self) -> None:
        gc.unfreeze()

    def process(self, planned: PlannedUnit) -> Iterator[UnitReport]:
        # A look at one name: listing the parts would cost more with each unit that is done.
        if self._redo or storage.stat(part_uri(self._job.output, planned.unit_id)) is None:
            yield extract_unit(planned, self._job, self._engine)

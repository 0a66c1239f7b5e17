"""A sample of the input: records drawn all over it, and how many there are in all."""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

from pipeline.extraction.timing import Cost, Watch
from transforms import shards
from transforms.machine import ahead
from transforms.records import EncodedImage, Failure, Shard, Unit

# Encoded bytes of a sample, which is held in memory; one of huge images has fewer of them.
SAMPLE_BYTES = 256 * 2**20
# Shards that are read in turns, so many records a turn: a sample that is cut short still comes from several.
_OPEN_SHARDS = 8
_TURN = 8
_THREADS = 16


@dataclass(frozen=True)
class Sample:
    """The records of a sample, and what is known of the whole input.

    Attributes:
        records: In random order, so that the first ones are a sample too.
        images: How many records the whole input has.
        is_counted: False if that is an estimate, by the bytes that the records drawn take up in their shards.
        read: What reading a record costs.
    """

    records: tuple[EncodedImage | Failure, ...]
    images: int
    is_counted: bool
    read: Cost


class _Source:
    """A shard or a listing that is read from its start, and what it came to so far."""

    def __init__(self, unit: Unit):
        self.shard = unit.shard
        self.count = 0
        self.is_read = False
        # Two thousand shards aren't two thousand processes: it is started by the first record that is taken.
        self._child = shards.reading_child()
        self._records = shards.read(unit, apart=self._child)
        self._data_bytes = self._last_position = 0

    def take(self, count: int) -> list[EncodedImage | Failure]:
        taken = list(islice(self._records, count))
        self.count += len(taken)
        self.is_read = len(taken) < count
        self._data_bytes += sum(_size(record) for record in taken)
        self._last_position = taken[-1].position if taken else self._last_position
        return taken

    @property
    def partly_known(self) -> tuple[float, int]:
        """Bytes of the file, labels and headers included, and the number of records in them."""
        # Positions in a gzip shard count what is unpacked, while images stay about as large as they are.
        if self.count < 2 or (self.shard.compression and self._data_bytes):
            return self._data_bytes, self.count
        # The last one's position is where all the others end.
        return self._last_position * self.count / (self.count - 1), self.count

    def close(self) -> None:
        self._records.close()
        self._child.close()


def _size(record: EncodedImage | Failure) -> int:
    return len(record.data) if isinstance(record, EncodedImage) else 0


def draw(found: shards.Found, *, images: int, seconds: float) -> Sample:
    """Draws records from all over the input.

    Shards are drawn at random, large ones more likely, and each is read from its start: a random place in a TFRecord or
    tar is found only by passing over all before it. Files are drawn at random. Shards and files have their share of
    the sample by their bytes. The draw is always the same.

    Args:
        images: At most so many.
        seconds: No new turn of reading is begun after so long, once there is a record.

    Raises:
        FeaturemillError: A shard or folder has vanished, or its disk or store fails.
    """
    rng = random.Random(0)
    shard_bytes = sum(shard.file.size for shard in found.shards)
    file_bytes = sum(listed.file.size for listed in found.files)
    # Of clocks that ring at random, those with the higher rates tend to ring first.
    drawn = sorted(found.shards, key=lambda shard: rng.expovariate(max(1, shard.file.size)))
    share = round(images * file_bytes / max(1, shard_bytes + file_bytes))
    known = _known_counts(found.shards)
    deadline = perf_counter() + seconds
    records: list[EncodedImage | Failure] = []
    watch = Watch()
    with watch.running():
        sources = [_Source(Unit(shard, input_bytes=shard.file.size)) for shard in drawn]
        # At least a turn: without one nothing would be known of the shards.
        _take_turns(iter(sources), records, count=min(images, max(_TURN, images - share)), deadline=deadline)
        files = rng.sample(found.files, max(0, min(len(found.files), images - len(records))))
        listings = (_Source(unit) for unit in shards.slice_files(files, max(1, len(files))))
        _take_turns(listings, records, count=images, deadline=deadline)
    rng.shuffle(records)
    counted = known | {source.shard.file.uri: source.count for source in sources if source.is_read}
    return Sample(
        tuple(records),
        images=_count(sources, counted) + len(found.files),
        is_counted=len(counted) == len(sources),
        read=watch.cost(len(records)),
    )


def _take_turns(
    sources: Iterator[_Source], records: list[EncodedImage | Failure], *, count: int, deadline: float
) -> None:
    """Adds records until there are `count`; a source that is read to its end makes room for the next one."""
    turns = deque(islice(sources, _OPEN_SHARDS))
    held_bytes = sum(map(_size, records))
    while turns and len(records) < count and held_bytes < SAMPLE_BYTES and (perf_counter() < deadline or not records):
        source = turns.popleft()
        taken = source.take(min(_TURN, count - len(records)))
        records += taken
        held_bytes += sum(map(_size, taken))
        turns.extend(islice(sources, 1) if source.is_read else [source])
    for source in turns:
        source.close()


def _known_counts(found: Sequence[Shard]) -> dict[str, int]:
    """Returns {URI: records} of the shards whose own index says how many they have."""
    counts = ahead(lambda shard: shards.FORMATS[shard.format].count(shard), found, threads=_THREADS)
    return {shard.file.uri: n for shard, n in zip(found, counts, strict=True) if n is not None}


def _count(sources: Sequence[_Source], counted: dict[str, int]) -> int:
    """Returns how many records the shards have, those that weren't counted by their bytes.

    Args:
        sources: One for each shard.
        counted: {URI: records} of those that were counted.
    """
    known = [
        (source.shard.file.size, counted[source.shard.file.uri])
        if source.shard.file.uri in counted
        else source.partly_known
        for source in sources
    ]
    all_bytes, all_records = sum(size for size, _ in known), sum(count for _, count in known)
    total = 0.0
    for source, (size, count) in zip(sources, known, strict=True):
        if not size:
            # Nothing was drawn from it: it is like the others.
            size, count = all_bytes, all_records
        total += max(source.count, source.shard.file.size * count / size if size else 0)
    return round(total)

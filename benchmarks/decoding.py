"""How fast decoding alone is: encoded images that are in memory, no engine, and nothing that is written."""

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

from transforms.images.decode import decode_image
from transforms.spec import FeatureSpec

_MAX_PIXELS = 89_000_000


def decoding(encoded: Sequence[bytes], spec: FeatureSpec, images: int, *, processes: int = 1, threads: int = 1) -> dict:
    """Returns `images_per_second` of decoding and resizing, and `cpu_ms` of each image.

    Args:
        encoded: Images, which are decoded over and over.
        spec: How.
        images: How many in all, about.
        processes: With 1, it is this one.
        threads: Of each process.
    """
    share = images // processes
    if processes == 1:
        began = time.perf_counter()
        cpu = _decode(encoded, spec, threads, share)
        seconds = time.perf_counter() - began
    else:
        with ProcessPoolExecutor(processes) as pool:
            work = partial(_decode, encoded, spec, threads)
            # The processes have to be there.
            list(pool.map(work, [min(share, len(encoded))] * processes))
            began = time.perf_counter()
            cpu = sum(pool.map(work, [share] * processes))
            seconds = time.perf_counter() - began
    return {"images_per_second": share * processes / seconds, "cpu_ms": cpu / (share * processes) * 1000}


def _decode(encoded: Sequence[bytes], spec: FeatureSpec, threads: int, count: int) -> float:
    """Returns the CPU seconds that so many images take."""

    def one(number: int) -> None:
        decode_image(encoded[number % len(encoded)], spec, max_pixels=_MAX_PIXELS)

    began = time.process_time()
    if threads == 1:
        # Handing images to a thread would cost, too.
        for number in range(count):
            one(number)
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(one, range(count)):
                pass
    return time.process_time() - began

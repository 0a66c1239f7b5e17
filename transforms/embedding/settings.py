"""The settings of a worker: its options, and the record that says how images are embedded."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from transforms.declared import ABOVE_ZERO, AT_LEAST_ONE, Bound, declared, parse_bytes
from transforms.engines import ENGINES, chosen_gpus, load_engine, may_have_gpu
from transforms.engines.engine import Engine
from transforms.engines.sharing import SharedEngine
from transforms.errors import UsageError
from transforms.images.decode import PIXEL_CEILING
from transforms.spec import FeatureSpec


def _parse_batch_size(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{text!r} is neither auto nor a number of images, such as 64") from None


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """The options that a worker's speed and memory depend on, and not the numbers."""

    engine: str = declared("auto", help="What computes the network", choices=ENGINES)
    engine_per: str = declared(
        "auto",
        help="Load an engine in each worker, or one that all workers of a machine share, as auto does on a GPU",
        choices=("auto", "worker", "machine"),
    )
    gpus: str | None = declared(
        None,
        help="Load an engine on each of these GPUs, and spread the workers over them: all, or numbers such as 0,1",
        metavar="all|N,…",
        unset="one engine, on the first",
    )
    batch_size: int | None = declared(
        None,
        help="Images per engine call, or auto",
        bounds=(AT_LEAST_ONE,),
        metavar="auto|N",
        parse=_parse_batch_size,
        unset="auto: measured on a GPU, else the engine's own for this machine",
    )
    threads: int | None = declared(
        None, help="Engine threads per worker", bounds=(AT_LEAST_ONE,), unset="the cores, shared out"
    )
    max_pixels: int = declared(
        89_000_000,
        help="Count an image with more pixels as a failure",
        bounds=(
            AT_LEAST_ONE,
            Bound(
                lambda value: value <= PIXEL_CEILING,
                f"{{flag}} {{value}} is over {PIXEL_CEILING}, the decoder's own limit",
            ),
        ),
    )
    record_seconds: float = declared(
        30.0, help="Count an image that takes longer to decode as a failure", bounds=(ABOVE_ZERO,), metavar="SECONDS"
    )
    record_memory: int = declared(
        2 * 2**30,
        help="Count an image that takes more memory as a failure, where it is decoded apart, as after a crash",
        bounds=(AT_LEAST_ONE,),
        metavar="SIZE",
        parse=parse_bytes,
        unset="2GiB",
    )


@dataclass(frozen=True, kw_only=True)
class Embedding(EmbedOptions):
    """The settings by which images become features; small and picklable.

    Attributes:
        spec: What decides the numbers.
        weights: Where the weights come from, as the user named them; workers load them from there.
        include_top: Whether the dense layers may be tapped.
        apart: Whether all images are decoded in child processes, so that one that crashes its decoder costs no more
            than itself. A unit is done so only where an attempt at it ended without a word.
    """

    spec: FeatureSpec
    weights: str = "imagenet"
    include_top: bool = True
    apart: bool = False

    def join_engine(self, load: "Callable[[Any], Engine]") -> Engine:
        """Returns a worker's engine: its own, or the one that the workers of this machine share.

        Args:
            load: Makes it from these settings.

        Raises:
            FeaturemillError: As `load` does; or the process with a shared one can't be started, or there are fewer
                GPUs than it was to be loaded on.
        """
        is_shared = may_have_gpu(self.engine) if self.engine_per == "auto" else self.engine_per == "machine"
        gpus = chosen_gpus(self.engine, self.gpus) if self.gpus is not None else ()
        # One for all takes all cores.
        return SharedEngine(load, replace(self, threads=None), gpus) if is_shared or gpus else load(self)

    def load_engine(self) -> Engine:
        """Loads the engine, for this machine.

        Raises:
            FeaturemillError: As `transforms.engines.load_engine` does.
        """
        return load_engine(
            self.engine,
            self.spec,
            self.weights,
            include_top=self.include_top,
            batch_size=self.batch_size,
            threads=self.threads,
        )

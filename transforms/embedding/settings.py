"""The settings of a worker: its options, and the record that says how images are embedded."""

from dataclasses import dataclass

from transforms.declared import ABOVE_ZERO, AT_LEAST_ONE, Bound, declared, parse_bytes
from transforms.engines import ENGINES, choose, default_batch_size, load_engine
from transforms.engines.engine import Engine
from transforms.images.decode import PIXEL_CEILING
from transforms.spec import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """The options that a worker's speed and memory depend on, and not the numbers."""

    engine: str = declared("auto", help="What computes the network", choices=ENGINES)
    batch_size: int | None = declared(
        None, help="Images per engine call", bounds=(AT_LEAST_ONE,), unset="8, ncnn: 8 a thread; 64 on a GPU"
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
        help="The same of an image that takes more memory, where it is decoded apart, as after a crash",
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

    def load_engine(self) -> Engine:
        """Loads the engine, for this machine.

        Raises:
            FeaturemillError: As `transforms.engines.load_engine` does.
        """
        name = choose(self.engine, self.spec.precision)
        return load_engine(
            name,
            self.spec,
            self.weights,
            include_top=self.include_top,
            batch_size=self.batch_size or default_batch_size(name, self.threads),
            threads=self.threads,
        )

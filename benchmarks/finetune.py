"""One epoch of fine-tuning block 5 of VGG19: from the stored block4_pool against from images, on the same rows.

`python -m benchmarks.finetune` extracts photos with random weights (any others take as long), trains a ridge head,
and fine-tunes it both ways for two epochs. The first epoch compiles; the second is what an epoch takes.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.photos import SMALL, fill, source
from benchmarks.process import say
from pipeline.end_to_end.finetune import FinetuneSummary, finetune
from pipeline.end_to_end.options import FinetuneOptions
from pipeline.extraction.options import ExtractOptions
from pipeline.extraction.run import run
from pipeline.training.options import TrainOptions
from pipeline.training.run import train

FEATURES = ("embedding=block5_pool:avg", "tap=block4_pool:flatten")


def compare(photos: list[Path], count: int, *, image_size: int) -> dict:
    """Fine-tunes both ways; returns the figures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fill(root / "photos", photos, count)
        out, head = str(root / "out"), str(root / "head")
        settings = {"weights": "random:0", "image_size": image_size, "features": FEATURES}
        run(ExtractOptions(inputs=(str(root / "photos"),), output=out, **settings))
        train(TrainOptions(features=out, output=head, validation=0.3, learning_curve=False, errors=False))
        found = {}
        for start in ("taps", "images"):
            asked = {"head": head, "features": out, "source": start, "epochs": 2}
            found[start] = finetune(FinetuneOptions(output=str(root / start), **asked), say=say)
    figures = {start: _figures(summary) for start, summary in found.items()}
    taps, images = figures["taps"], figures["images"]
    return {
        "images": count,
        **figures,
        "times_faster": {name: images[name] / taps[name] for name in taps if name.endswith("seconds")},
        "first_step_loss_differs_by": abs(images["first_step_loss"] - taps["first_step_loss"]),
    }


def _figures(summary: FinetuneSummary) -> dict[str, float]:
    first, second = summary.tuning.epochs
    return {
        "first_step_loss": summary.tuning.first_loss,
        "training_seconds": second["seconds"],
        "epoch_seconds": second["seconds"] + second["validation_seconds"],
        "first_epoch_seconds": first["seconds"] + first["validation_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", metavar="FOLDER", help="default: the shared ones, else drawn images")
    parser.add_argument("--images", type=int, default=SMALL)
    parser.add_argument("--image-size", type=int, default=224)
    given = parser.parse_args()
    photos, what = source(given.photos)
    say(what)
    print(json.dumps(compare(photos, given.images, image_size=given.image_size), indent=2))


if __name__ == "__main__":
    main()

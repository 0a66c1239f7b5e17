"""The network behind a head: where its weights are, and whether they are those that it was trained on."""

from transforms import storage
from transforms.errors import FeaturemillError
from transforms.network.weights import Weights
from transforms.predictors.head import Head
from transforms.spec import source_of


def weights_source(head: Head, folder: str, given: str | None) -> str:
    """Returns what `load_weights` calls a head's weights.

    Args:
        head: A head with a spec.
        folder: HEAD; a fine-tuned head's weights lie in it.
        given: Where the user says they are now.

    Raises:
        FeaturemillError: Nobody says.
    """
    if given:
        return given
    if not head.weights:
        raise FeaturemillError(f"{folder} doesn't say where its network's weights are; pass --weights")
    source = source_of(head.weights)
    if source == "imagenet" or source.startswith(("random:", "/")) or not storage.is_local(source):
        return source
    return storage.join(folder, source)


def check_weights(weights: Weights, head: Head, folder: str) -> None:
    """Checks that these are the weights that the head was trained on.

    Raises:
        FeaturemillError: They aren't.
    """
    if weights.sha256 != head.spec.weights:
        raise FeaturemillError(
            f"the weights {weights.origin} ({weights.sha256[:12]}) aren't those that {folder} was trained on: "
            f"{head.weights} ({head.spec.weights[:12]}); pass those with --weights"
        )

"""featuremill in Python: the commands as functions, and what other people's pipelines and notebooks use.

    import featuremill

    featuremill.extract("photos/train", output="features")
    featuremill.train("features", output="head")
    featuremill.predict("head", "photos/val", output="predictions")

Keyword arguments are named as the command's options, `image_size` for `--image-size`. Nothing heavy is imported before
it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featuremill.commands import extract, predict, query, train
    from transforms.embedding.embed_images import EmbedImages
    from transforms.errors import FeaturemillError
    from transforms.network.bases import build, layers
    from transforms.spec import FeatureSpec
    from transforms.store.features import open_features

    __version__: str

__all__ = [
    "EmbedImages",
    "FeatureSpec",
    "FeaturemillError",
    "__version__",
    "build",
    "extract",
    "layers",
    "open_features",
    "predict",
    "query",
    "train",
]
_MODULES = {
    "EmbedImages": "transforms.embedding.embed_images",
    "FeatureSpec": "transforms.spec",
    "FeaturemillError": "transforms.errors",
    "build": "transforms.network.bases",
    "extract": "featuremill.commands",
    "layers": "transforms.network.bases",
    "open_features": "transforms.store.features",
    "predict": "featuremill.commands",
    "query": "featuremill.commands",
    "train": "featuremill.commands",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("featuremill")
    if name not in _MODULES:
        raise AttributeError(f"module 'featuremill' has no attribute {name!r}")
    # Not above: `python -m featuremill.own` imports this package first.
    from featuremill.own import check

    check()
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__

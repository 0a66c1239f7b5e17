"""Keras's published weights and class names: found in its cache, or fetched into it, and checked by hash."""

import hashlib
import os
import shutil
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException

from transforms.committed import committed_file
from transforms.errors import FeaturemillError
from transforms.machine import home_folder
from transforms.text import one_line

_STORE = "https://storage.googleapis.com/tensorflow/keras-applications"
# Keras's own file names and MD5s, from keras/src/applications/vgg16.py and vgg19.py; key: (backbone, with top).
_MD5S = {
    ("vgg16", False): "6d6bbae143d832006294945121d1f1fc",
    ("vgg16", True): "64373286793e3c8b2b4e3219cbf3544b",
    ("vgg19", False): "253f8cb515780f3b799900260a226db6",
    ("vgg19", True): "cbe5617147190e668d6c5d5026f83318",
}
_SILENCE_SECONDS = 15


@dataclass(frozen=True)
class Published:
    """One published file."""

    name: str
    url: str
    md5: str


# Which number is which class; name, URL and MD5 from keras/src/applications/imagenet_utils.py.
CLASS_INDEX = Published(
    "imagenet_class_index.json",
    "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json",
    "c2c37ea517e94d9795004a39431a14cb",
)


def published(backbone: str, *, with_top: bool) -> Published:
    """Returns which file holds the network's weights."""
    name = f"{backbone}_weights_tf_dim_ordering_tf_kernels{'' if with_top else '_notop'}.h5"
    return Published(name, f"{_STORE}/{backbone}/{name}", _MD5S[backbone, with_top])


def cache_folder() -> str:
    """Returns the folder in which Keras keeps what it downloads."""
    home = os.environ.get("KERAS_HOME") or os.path.join(home_folder(), ".keras")
    return os.path.join(os.path.expanduser(home), "models")


def published_file(backbone: str, *, with_top: bool) -> str:
    """Returns the local path of the published weights, downloading them if Keras's cache lacks them.

    Raises:
        FeaturemillError: Not there and not to be had, or another file than the published one; with the offline way.
    """
    file = published(backbone, with_top=with_top)
    return cached_file(file, otherwise="pass --weights PATH to use a file of your own")


def cached_file(file: Published, *, otherwise: str = "") -> str:
    """Returns the local path of a published file, downloading it if Keras's cache lacks it.

    Args:
        file: Which one.
        otherwise: What else the user can do about a file that isn't to be had; empty if nothing.

    Raises:
        FeaturemillError: Not there and not to be had, or another file than the published one; with the offline way.
    """
    otherwise = otherwise and f", or {otherwise}"
    path = os.path.join(cache_folder(), file.name)
    if not os.path.exists(path):
        _download(file, path, otherwise)
        return path
    try:
        found = _md5(path)
    except OSError as error:
        raise FeaturemillError(f"cannot read {path}: {one_line(error)}; make it readable{otherwise}") from error
    if found != file.md5:
        raise FeaturemillError(
            f"{path} is not the published file: {os.path.getsize(path):,} bytes with MD5 {found}, expected "
            f"{file.md5}; delete it to have it fetched again{otherwise}"
        )
    return path


def _md5(path: str) -> str:
    md5 = hashlib.md5(usedforsecurity=False)  # Keras publishes no other; it guards against damage, not against forgery.
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            md5.update(block)
    return md5.hexdigest()


def _download(file: Published, path: str, otherwise: str) -> None:
    """Fetches the file and puts it in place whole.

    Why not `keras.utils.get_file`: it writes straight to the final name, so a killed download leaves a stump there
    that two workers may also write at once; it waits for ever on a silent server; and it takes TensorFlow with it.
    """
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with committed_file(path) as target, urllib.request.urlopen(file.url, timeout=_SILENCE_SECONDS) as source:
            shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            found = _md5(target.name)
            if found != file.md5:
                raise OSError(f"got {target.tell():,} bytes with MD5 {found}")
    except (OSError, HTTPException) as error:
        raise FeaturemillError(
            f"cannot fetch {file.name} (MD5 {file.md5}) from {file.url}: {one_line(error)}; without network, "
            f"download it elsewhere and put it into {os.path.dirname(path)}{otherwise}"
        ) from error

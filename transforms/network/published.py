"""Keras's published weights and class names: found in its cache, or fetched into it, and checked by hash."""

import hashlib
import os
import shutil
import urllib.request
from dataclasses import dataclass, replace
from http.client import HTTPException

from transforms.committed import committed_file
from transforms.errors import FeaturemillError
from transforms.machine import home_folder
from transforms.text import one_line

_STORE = "https://storage.googleapis.com/tensorflow/keras-applications"
_SHA256_DIGITS = 64
_SILENCE_SECONDS = 15


@dataclass(frozen=True)
class Published:
    """One published file.

    Attributes:
        name: In Keras's cache.
        url: Where it is.
        digest: Its hash in hex, as Keras has it: MD5, of some files SHA-256.
    """

    name: str
    url: str
    digest: str

    @property
    def algorithm(self) -> str:
        return "sha256" if len(self.digest) == _SHA256_DIGITS else "md5"

    @property
    def hash(self) -> str:
        """The digest, and what it is, for people."""
        return f"{'SHA-256' if self.algorithm == 'sha256' else 'MD5'} {self.digest}"


# Which number is which class; name, URL and MD5 from keras/src/applications/imagenet_utils.py.
CLASS_INDEX = Published(
    "imagenet_class_index.json",
    "https://storage.googleapis.com/download.tensorflow.org/data/imagenet_class_index.json",
    "c2c37ea517e94d9795004a39431a14cb",
)


def application_file(path: str, digest: str) -> Published:
    """Returns a file of weights by its path in the store of `keras.applications`."""
    return Published(path.split("/")[-1], f"{_STORE}/{path}", digest)


def cache_folder() -> str:
    """Returns the folder in which Keras keeps what it downloads."""
    home = os.environ.get("KERAS_HOME") or os.path.join(home_folder(), ".keras")
    return os.path.join(os.path.expanduser(home), "models")


def cached_file(file: Published, *, otherwise: str = "") -> str:
    """Returns the local path of a published file, downloading it if Keras's cache lacks it.

    Args:
        file: Its name, address and hash.
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
        found = _hash(file, path)
    except OSError as error:
        raise FeaturemillError(f"cannot read {path}: {one_line(error)}; make it readable{otherwise}") from error
    if found != file:
        raise FeaturemillError(
            f"{path} is not the published file: {os.path.getsize(path):,} bytes with {found.hash}, expected "
            f"{file.digest}; delete it to have it fetched again{otherwise}"
        )
    return path


def _hash(file: Published, path: str) -> Published:
    """Returns the published file with the digest of what is at a path."""
    # Of most files Keras publishes no better than MD5, which guards against damage, not against forgery.
    digest = hashlib.new(file.algorithm, usedforsecurity=False)
    with open(path, "rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return replace(file, digest=digest.hexdigest())


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
            found = _hash(file, target.name)
            if found != file:
                raise OSError(f"got {target.tell():,} bytes with {found.hash}")
    except (OSError, HTTPException) as error:
        raise FeaturemillError(
            f"cannot fetch {file.name} ({file.hash}) from {file.url}: {one_line(error)}; without network, "
            f"download it elsewhere and put it into {os.path.dirname(path)}{otherwise}"
        ) from error

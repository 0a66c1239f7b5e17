"""An object store in memory, `mem://`, for Beam's FileSystems: no folders, strict deletion, requests counted."""

import collections
import io

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem

OBJECTS: dict[str, tuple[bytes, int]] = {}
REQUESTS: collections.Counter[str] = collections.Counter()


class _Upload(io.BytesIO):
    """Publishes its content when it is closed, as object stores do."""

    def __init__(self, path: str):
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            OBJECTS[self._path] = self.getvalue(), len(REQUESTS) + sum(REQUESTS.values())
        super().close()


class MemoryStore(FileSystem):
    @classmethod
    def scheme(cls):
        return "mem"

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def mkdirs(self, path):
        raise AssertionError("an object store has no folders")

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        REQUESTS["list"] += 1
        for path in sorted(OBJECTS):
            if path.startswith(dir_or_prefix):
                yield self.metadata(path)

    def create(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        REQUESTS["create"] += 1
        return _Upload(path)

    def open(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        REQUESTS["open"] += 1
        if path not in OBJECTS:
            raise BeamIOError(f"not found: {path}")
        return io.BytesIO(OBJECTS[path][0])

    def copy(self, source_file_names, destination_file_names):
        raise NotImplementedError

    def rename(self, source_file_names, destination_file_names):
        REQUESTS["rename"] += 1
        for old, new in zip(source_file_names, destination_file_names, strict=True):
            OBJECTS[new] = OBJECTS.pop(old)

    def exists(self, path):
        return path in OBJECTS

    def size(self, path):
        return len(OBJECTS[path][0])

    def last_updated(self, path):
        return OBJECTS[path][1]

    def metadata(self, path):
        return FileMetadata(path, self.size(path), self.last_updated(path))

    def checksum(self, path):
        raise NotImplementedError

    def delete(self, paths):
        REQUESTS["delete"] += 1
        missing = {path: KeyError(path) for path in paths if OBJECTS.pop(path, None) is None}
        if missing:
            raise BeamIOError("Delete operation failed", missing)

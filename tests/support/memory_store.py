"""An object store in memory, `mem://`, among our stores: no folders, strict deletion, requests counted."""

import collections
import io

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystemHandler, FileType, PyFileSystem

from transforms import object_stores

OBJECTS: dict[str, tuple[bytes, int]] = {}
REQUESTS: collections.Counter[str] = collections.Counter()


class _Upload(io.BytesIO):
    """Publishes its content when it is closed, as object stores do."""

    def __init__(self, uri: str):
        super().__init__()
        self._uri = uri

    def close(self) -> None:
        if not self.closed:
            OBJECTS[self._uri] = self.getvalue(), len(REQUESTS) + sum(REQUESTS.values())
        super().close()


def _info(uri: str) -> FileInfo:
    data, updated = OBJECTS[uri]
    return FileInfo(uri.removeprefix("mem://"), FileType.File, size=len(data), mtime_ns=updated * 10**9)


def _is_refused(*_: object) -> None:
    raise AssertionError("an object store has no folders, and nothing is moved there")


class MemoryStore(FileSystemHandler):
    """What pyarrow asks of a file system."""

    def get_type_name(self) -> str:
        return "mem"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        REQUESTS["info"] += len(paths)
        return [self._look(path) for path in paths]

    def _look(self, path: str) -> FileInfo:
        if f"mem://{path}" in OBJECTS:
            return _info(f"mem://{path}")
        # Its buckets are always there.
        is_folder = "/" not in path or any(uri.startswith(f"mem://{path}/") for uri in OBJECTS)
        return FileInfo(path, FileType.Directory if is_folder else FileType.NotFound)

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        REQUESTS["list"] += 1
        start = f"mem://{selector.base_dir}/"
        found = [uri for uri in sorted(OBJECTS) if uri.startswith(start)]
        return [_info(uri) for uri in found if selector.recursive or "/" not in uri.removeprefix(start)]

    def open_input_file(self, path: str) -> pa.NativeFile:
        REQUESTS["open"] += 1
        if f"mem://{path}" not in OBJECTS:
            raise FileNotFoundError(path)
        return pa.BufferReader(OBJECTS[f"mem://{path}"][0])

    def open_output_stream(self, path: str, metadata: object) -> pa.NativeFile:
        REQUESTS["create"] += 1
        return pa.PythonFile(_Upload(f"mem://{path}"), mode="w")

    def delete_file(self, path: str) -> None:
        REQUESTS["delete"] += 1
        if OBJECTS.pop(f"mem://{path}", None) is None:
            raise FileNotFoundError(path)

    def delete_dir(self, path: str) -> None:
        REQUESTS["delete"] += 1
        for uri in [uri for uri in OBJECTS if uri.startswith(f"mem://{path}/")]:
            del OBJECTS[uri]

    create_dir = delete_dir_contents = delete_root_dir_contents = move = copy_file = _is_refused
    open_input_stream = open_append_stream = _is_refused


object_stores.FILE_SYSTEMS["mem"] = lambda server, is_short: PyFileSystem(MemoryStore())

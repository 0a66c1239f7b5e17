"""One engine for all workers of a machine: a GPU has one memory and one queue, so one process owns it.

That process is started by the first worker that needs it, and ends soon after the last. Workers hand it batches through
memory that both have mapped: pixels are copied into it once, and only a few words and the features go through a socket.
Each worker has two slots, so that one batch can be on its way while another is computed.

Why not Beam's `MultiProcessShared`: it pickles arguments and results. A Unix socket can also pass the descriptor of
memory without a name, which takes no room in /dev/shm and can't be left behind.
"""

import fcntl
import hashlib
import mmap
import os
import pickle
import queue
import re
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np

from transforms.engines.engine import Engine, OutOfMemory
from transforms.errors import FeaturemillError
from transforms.isolated import portable
from transforms.machine import ended_as, own_command
from transforms.text import one_line, size_text

_MODULE = "transforms.engines.sharing"
_SLOTS = 2
# How long the process waits for another worker when it has none: those of a run come and go together.
_GRACE_SECONDS = 2.0
# ... and for the first one, which may be on a busy machine.
_FIRST_SECONDS = 60.0
_LOOK_SECONDS = 0.25
# A process that ends just as a worker comes is started anew.
_ATTEMPTS = 3
_MEMORY, _BATCH, _RESIZE = "memory", "batch", "resize"
_READY, _DONE, _SMALLER, _NO_MEMORY, _FAILED = "ready", "done", "smaller", "no memory", "failed"
# Beside the sockets: who joins or starts a process locks the one, workers that took turns share the other.
_OURS = re.compile(r"([0-9a-f]{16})\.(lock|turn)")
_HUNG_UP = (EOFError, BrokenPipeError, ConnectionResetError)


class SharedEngine:
    """See `transforms.engines.engine.Engine`. Its batches are computed in the process that all workers share.

    Safe to share between threads. When a batch doesn't fit into memory, batches get smaller for all workers.
    """

    def __init__(self, load: Callable[[Any], Engine], settings: Any, gpus: Sequence[str] = ()):
        """Joins the process with this engine, or starts it; where there are several, the next one in turn.

        Args:
            load: Makes the engine there, from the settings; both can be pickled.
            settings: Those of all workers of a run, and of nobody else.
            gpus: A process for each, which sees no other; as `CUDA_VISIBLE_DEVICES` takes them. Empty: one process,
                which sees all.

        Raises:
            FeaturemillError: The engine can't be loaded, or no process can be started or reached.
        """
        self._process: subprocess.Popen | None = None
        address = os.path.join(_folder(), _name(load, settings))
        gpu = None
        if gpus:
            gpu = gpus[self._turn(address) % len(gpus)]
            address = os.path.join(_folder(), _name(load, (settings, gpu)))
        self._slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for _ in range(_SLOTS):
            pipe, (self.description, self.batch_size, self.on_cpu) = self._join(address, load, settings, gpu)
            self._slots.put(_Slot(pipe))

    def embed(self, pixels: "np.ndarray | Sequence[np.ndarray]") -> dict[str, np.ndarray]:
        """Computes the features of N images, N at most the batch size.

        Raises:
            FeaturemillError: The process with the engine is gone, or there is no room for a batch.
        """
        with self._slot() as slot:
            return self._embed(slot, pixels)

    def _embed(self, slot: "_Slot", pixels: "np.ndarray | Sequence[np.ndarray]") -> dict[str, np.ndarray]:
        kind, reply = slot.embed(pixels, self.batch_size)
        if kind == _DONE:
            return reply
        if kind == _NO_MEMORY:
            raise OutOfMemory(reply)
        if kind == _FAILED:
            error, cause = reply
            raise error from cause
        # Since this batch was gathered, another worker ran out of memory.
        self.batch_size = reply
        pieces = [self._embed(slot, pixels[start : start + reply]) for start in range(0, len(pixels), reply)]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def resize(self, batch_size: int) -> None:
        """Has batches of at most this size computed from now on, for all workers."""
        with self._slot() as slot:
            slot.pipe.send((_RESIZE, batch_size))
            self.batch_size = slot.pipe.recv()

    @contextmanager
    def _slot(self) -> Iterator["_Slot"]:
        slot = self._slots.get()
        try:
            yield slot
        except _HUNG_UP as error:
            raise FeaturemillError(
                f"the process with the engine ended{self._how()}; what was committed is kept: run the same command "
                "again to go on"
            ) from error
        finally:
            self._slots.put(slot)

    def _join(
        self, address: str, load: Callable[[Any], Engine], settings: Any, gpu: str | None
    ) -> tuple[Connection, tuple]:
        for _ in range(_ATTEMPTS):
            with _locked(f"{address}.lock"):
                pipe = _connected(address)
                if pipe is None:
                    self._process = _started(address, load, settings, gpu)
                    pipe = _connected(address)
            with suppress(*_HUNG_UP):
                if pipe is not None:
                    kind, reply = pipe.recv()
                    if kind == _READY:
                        return pipe, reply
                    error, cause = reply
                    raise error from cause
        raise FeaturemillError(f"the process with the engine ended before it was there{self._how()}; run again")

    def _turn(self, address: str) -> int:
        """Returns how many workers came before, so that each GPU gets equally many."""
        handle = _held(f"{address}.turn", fcntl.LOCK_SH)
        # The file is kept as long as one of these workers lives.
        weakref.finalize(self, os.close, handle)
        # One byte for each worker.
        os.write(handle, b".")
        return os.lseek(handle, 0, os.SEEK_CUR) - 1

    def _how(self) -> str:
        """Returns how it ended, where this worker has started it, and can tell."""
        if self._process is None:
            return ""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_LOOK_SECONDS)
            return f" ({ended_as(code)}{', perhaps for lack of memory' if code < 0 else ''})"
        return ""


class _Slot:
    """A connection with memory for one batch; for one thread at a time."""

    def __init__(self, pipe: Connection):
        self.pipe = pipe
        self._memory: mmap.mmap | None = None

    def embed(self, pixels: "np.ndarray | Sequence[np.ndarray]", batch_size: int) -> tuple[str, Any]:
        """Returns `done` and the features, or what else came of it."""
        count, shape = len(pixels), pixels[0].shape
        if self._memory is None:
            self._memory = self._share(max(count, batch_size) * pixels[0].nbytes)
        batch = np.frombuffer(self._memory, np.uint8, count * pixels[0].size).reshape(count, *shape)
        for place, image in zip(batch, pixels, strict=True):
            place[:] = image
        self.pipe.send((_BATCH, batch.shape))
        kind, reply = self.pipe.recv()
        if kind == _DONE:
            arrays = {name: np.frombuffer(self.pipe.recv_bytes(), dtype).reshape(shape) for name, dtype, shape in reply}
            return _DONE, arrays
        return kind, reply

    def _share(self, size: int) -> mmap.mmap:
        try:
            handle = os.memfd_create("featuremill batch")
            try:
                # Where there is no room, it is reported here, and doesn't end the process later.
                os.posix_fallocate(handle, 0, size)
                memory = mmap.mmap(handle, size)
            except BaseException:
                os.close(handle)
                raise
        except OSError as error:
            # Not the fault of an image: each other batch would fail like this one.
            raise FeaturemillError(
                f"a worker has no room for the {size_text(size)} of a batch that it shares with the engine "
                f"({one_line(error)}); free memory, or lower --workers or --batch-size, and run again"
            ) from error
        try:
            self.pipe.send((_MEMORY, size))
            # The process is on this machine, whatever its number.
            send_handle(self.pipe, handle, 0)
        finally:
            os.close(handle)
        return memory


def _name(load: Callable[[Any], Engine], settings: Any) -> str:
    # Not its pickle, which differs between processes.
    text = repr((load.__module__, load.__qualname__, settings))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _folder() -> str:
    """Returns a folder for sockets that nobody else can write to.

    Raises:
        FeaturemillError: There is one already, and others can.
    """
    folder = os.path.join(tempfile.gettempdir(), f"featuremill-{os.getuid()}")
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise FeaturemillError(
            f"{folder} isn't a folder of this user alone, and whoever writes to it could take the engine's place; "
            "remove it, or set TMPDIR"
        )
    return folder


@contextmanager
def _locked(path: str, *, wait: bool = True) -> Iterator[None]:
    handle = _held(path, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield
    finally:
        os.close(handle)


def _held(path: str, lock: int) -> int:
    """Returns a descriptor that holds this lock on a file, which is made if it isn't there.

    Raises:
        BlockingIOError: It was to be had at once, and another has it.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(handle, lock)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(handle)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        # It was swept away between our two steps.
        os.close(handle)


def _sweep(folder: str) -> None:
    """Removes what belongs to no process: one that was killed removes nothing."""
    for name in os.listdir(folder):
        if not (found := _OURS.fullmatch(name)):
            continue
        path, address = os.path.join(folder, name), os.path.join(folder, found[1])
        # Whoever has the lock is at work with it.
        with suppress(OSError), _locked(path, wait=False):
            if not _is_served(address):
                with suppress(FileNotFoundError):
                    os.unlink(address)
                os.unlink(path)


def _is_served(address: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        # A process with too many that wait would let this one wait, too.
        client.setblocking(False)
        try:
            client.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            pass
        return True


def _connected(address: str) -> Connection | None:
    """Returns a connection to the process with the engine, None if there is none."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise FeaturemillError(
                f"{address} can't be used: {one_line(error)}; set TMPDIR to a shorter path"
            ) from error
        return Connection(client.detach())


def _started(address: str, load: Callable[[Any], Engine], settings: Any, gpu: str | None) -> subprocess.Popen:
    """Starts the process with the engine, and waits until it listens.

    In a session of its own: the worker that starts it may be killed, and what Ctrl-C ends are the workers.
    """
    if not hasattr(os, "memfd_create"):
        raise FeaturemillError("workers can't share an engine on this system; pass --engine-per worker")
    request = pickle.dumps((load, settings))
    # AMD's libraries obey it, too.
    environment = os.environ if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
    process = subprocess.Popen(
        [*own_command(_MODULE), address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=environment,
    )
    # It says why it ends before it has read this.
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(request)
    process.stdout.read(1)
    process.stdout.close()
    return process


class _Server:
    """Computes what workers ask for, until none is left."""

    def __init__(self, address: str):
        self._address = address
        with suppress(FileNotFoundError):
            # Of one that was killed: who starts another holds the lock.
            os.unlink(address)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen()
        self._engine: Engine | None = None
        self._error: tuple[BaseException, BaseException | None] | None = None
        self._is_loaded = threading.Event()
        self._lock = threading.Lock()
        self._workers = 0
        self._ends = time.monotonic() + _FIRST_SECONDS

    def run(self, load: Callable[[Any], Engine], settings: Any) -> None:
        threading.Thread(target=self._accept, name="accept", daemon=True).start()
        try:
            self._engine = load(settings)
        except BaseException as error:
            self._error = portable(error)
        self._is_loaded.set()
        while True:
            time.sleep(_LOOK_SECONDS)
            with self._lock:
                if not self._workers and time.monotonic() > self._ends:
                    # Who comes now finds nobody, and starts another.
                    os.unlink(self._address)
                    return

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with self._lock:
                self._workers += 1
            threading.Thread(target=self._serve, args=(Connection(connection.detach()),), daemon=True).start()

    def _serve(self, pipe: Connection) -> None:
        try:
            self._is_loaded.wait()
            if self._engine is None:
                pipe.send((_FAILED, self._error))
                return
            pipe.send((_READY, (self._engine.description, self._engine.batch_size, self._engine.on_cpu)))
            memory = None
            while True:
                kind, asked = pipe.recv()
                if kind == _MEMORY:
                    handle = recv_handle(pipe)
                    memory = mmap.mmap(handle, asked)
                    os.close(handle)
                elif kind == _RESIZE:
                    pipe.send(self._shrink(asked))
                else:
                    self._embed(pipe, np.frombuffer(memory, np.uint8, int(np.prod(asked))).reshape(asked))
        except (*_HUNG_UP, OSError):
            # The worker is gone.
            return
        finally:
            with self._lock:
                self._workers -= 1
                self._ends = time.monotonic() + _GRACE_SECONDS

    def _embed(self, pipe: Connection, pixels: np.ndarray) -> None:
        try:
            features = self._engine.embed(pixels)
        except Exception as error:
            if len(pixels) > self._engine.batch_size:
                pipe.send((_SMALLER, self._engine.batch_size))
            elif isinstance(error, OutOfMemory):
                pipe.send((_NO_MEMORY, str(error)))
            else:
                pipe.send((_FAILED, portable(error)))
            return
        pipe.send((_DONE, [(name, array.dtype.str, array.shape) for name, array in features.items()]))
        for array in features.values():
            pipe.send_bytes(np.ascontiguousarray(array))

    def _shrink(self, batch_size: int) -> int:
        """Returns the size of batches from now on: two workers that ran out of memory at once halve it once."""
        with self._lock:
            if batch_size < self._engine.batch_size:
                self._engine.resize(batch_size)
            return self._engine.batch_size


def main() -> None:
    """Is the process with the engine."""
    address = sys.argv[1]
    server = _Server(address)
    load, settings = pickle.loads(sys.stdin.buffer.read())
    # From here on it can be reached. Its standard output was for this alone.
    os.write(1, b"!")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _sweep(os.path.dirname(address))
    server.run(load, settings)
    _sweep(os.path.dirname(address))
    # Its threads wait for workers that won't come, and the backend's for work.
    os._exit(0)


if __name__ == "__main__":
    main()

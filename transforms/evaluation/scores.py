"""Scores of many rows and classes: in memory up to a size, beyond it in a temporary file."""

import tempfile

import numpy as np

# A million rows of 1,000 classes are 4 GB.
_MEMORY_BYTES = 64 * 2**20


class Scores:
    """N×C float32, gathered batch by batch; slices of rows come as arrays.

    Attributes:
        shape: (N, C), as far as they are gathered.
    """

    def __init__(self, classes: int):
        self.shape = (0, classes)
        # It goes with the object, and has no name.
        self._file = tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115

    def __len__(self) -> int:
        return self.shape[0]

    def add(self, batch: np.ndarray) -> None:
        """Adds rows, n×C."""
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(batch, np.float32).tobytes())
        self.shape = (len(self) + len(batch), self.shape[1])

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Returns n×C float32 for a slice of rows without a step."""
        start, stop, _ = rows.indices(len(self))
        row_bytes = 4 * self.shape[1]
        self._file.seek(start * row_bytes)
        return np.frombuffer(self._file.read(max(0, stop - start) * row_bytes), np.float32).reshape(-1, self.shape[1])

"""Large files read piece by piece, with retries."""

from __future__ import annotations

from realcustom import storage
from realcustom.preprocessing.errors import retry


class ChunkedFile:
    """Ranges of a file, fetched in chunks; each fetch is tried again if it fails for a passing reason."""

    def __init__(self, uri: str, attempts: int, backoff: float, chunk: int = 8 * 2**20):
        self._attempts, self._backoff, self._chunk = attempts, backoff, chunk
        filesystem, path = storage.open_filesystem(uri)
        self._file = retry(lambda: filesystem.open_input_file(path), attempts, backoff)
        self.size: int = self._file.size()
        self._start, self._data = 0, b""

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on; fewer at the end of the file."""
        end = min(offset + count, self.size)
        if offset < self._start or end > self._start + len(self._data):
            size = max(self._chunk, end - offset)
            self._data = retry(lambda: self._file.read_at(size, offset), self._attempts, self._backoff)
            self._start = offset
        return self._data[offset - self._start : max(offset, end) - self._start]

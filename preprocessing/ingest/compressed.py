"""Files that are read piece by piece, also where they are compressed: these are unpacked to a temporary file first."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import os
import tempfile
import threading
import weakref
import zlib
from collections.abc import Callable
from typing import IO, Any, Protocol

import pyarrow as pa

from realcustom.retry import RetrySettings
from realcustom.store import Store

_PIECE = 2**20  # bytes that are unpacked at a time
_UNPACKING = threading.Lock()  # of a worker's threads, which want the same file, one unpacks it
_SHORT = {".tgz": ".tar.gz", ".tbz": ".tar.bz2", ".tbz2": ".tar.bz2", ".txz": ".tar.xz", ".tzst": ".tar.zst"}


class File(Protocol):
    """A file of known size whose bytes can be read from any place."""

    size: int

    def read(self, offset: int, count: int) -> bytes:
        """At most `count` bytes from `offset` on; fewer at the end."""
        ...


class Bytes(io.RawIOBase):
    """Some of a file's bytes as Python's stream of them."""

    def __init__(self, file: File, start: int, end: int):
        self._file = file
        self.position, self._end = start, end

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """As io.RawIOBase has it."""
        data = self._file.read(self.position, min(len(buffer), self._end - self.position))
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


class Unpacked:
    """The content of a compressed file. Several threads may read it at once."""

    def __init__(self, file: File, codec: str):
        self._temporary = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object
        weakref.finalize(self, self._temporary.close)
        self.damage = ""  # why it ends early; empty: it does not
        packed = _CODECS[codec](io.BufferedReader(Bytes(file, 0, file.size), _PIECE))
        try:
            while piece := packed.read(_PIECE):
                self._temporary.write(piece)
        except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowInvalid) as error:
            self.damage = f"the compressed data are damaged ({error})"
        except OSError as error:  # of the data; one of the disk or the store has a number or names it
            if error.errno is not None or "AWS Error" in str(error):
                raise
            self.damage = f"the compressed data are damaged ({error})"
        self.size = self._temporary.tell()
        self._temporary.flush()

    def read(self, offset: int, count: int) -> bytes:
        """As File has it."""
        return os.pread(self._temporary.fileno(), count, offset)  # at no position that threads would share


_CODECS: dict[str, Callable[[io.BufferedReader], IO[bytes] | Any]] = {
    ".gz": lambda packed: gzip.GzipFile(fileobj=packed),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda packed: pa.CompressedInputStream(pa.PythonFile(packed, "r"), "zstd"),
}


def plain_name(name: str) -> str:
    """The name in lower case and without the extension of its compression: `a.csv` of `A.CSV.gz`, `b.tar` of `b.tgz`."""
    lower = _long_name(name)
    return lower.removesuffix(_codec(name))


def unpack(uri: str, store: Store) -> Unpacked:
    """A compressed file's content. Damaged data end it early, as `damage` says."""
    return Unpacked(store.open(uri), _codec(uri))


def is_compressed(name: str) -> bool:
    """Whether the name is that of a compressed file."""
    return bool(_codec(name))


def open_plain(uri: str, store: Store, chunk: int) -> File:
    """A file, of a compressed one its content, which a worker keeps for the units after this one."""
    if not is_compressed(uri):
        return store.open(uri, chunk)
    with _UNPACKING:
        return _kept(uri, store.size(uri), store.retries)


@functools.lru_cache(maxsize=2)
def _kept(uri: str, size: int, retries: RetrySettings) -> Unpacked:
    return unpack(uri, Store(retries))


def _codec(name: str) -> str:
    return next((codec for codec in _CODECS if _long_name(name).endswith(codec)), "")


def _long_name(name: str) -> str:
    lower = name.lower()
    short = next((short for short in _SHORT if lower.endswith(short)), None)
    return lower if short is None else lower.removesuffix(short) + _SHORT[short]

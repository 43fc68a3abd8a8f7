"""Tar archives read member by member with byte offsets, so that a torn archive is not taken for a complete one.

Python's `tarfile` takes a cut or broken header for the end of the archive; here the end is the end marker (a block of
zeros) and nothing else. Of several archives concatenated in one file all are read.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from realcustom.preprocessing.ingest.compressed import File

_BLOCK = tarfile.BLOCKSIZE  # 512 bytes
_MAX_EXTENDED_HEADER = 2**20  # bytes of a long name or a pax header


class TornTar(Exception):
    """The archive cannot be read from byte `offset` (the header of the member concerned) on.

    `name` is the member's name where its header could be read but its data end early.
    """

    def __init__(self, offset: int, reason: str, name: str | None = None):
        super().__init__(offset, reason, name)
        self.offset, self.reason, self.name = offset, reason, name


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file in an archive, or a link."""

    name: str
    offset: int  # of its header, bytes
    size: int  # bytes
    data: bytes | None  # null: larger than the limit, not read; or a link
    link: str | None = None  # what it points to
    is_left: bool = False  # its data are not null, but were not read: `with_data` reads them

    def with_data(self, file: File) -> Member:
        """The member with the data that were left."""
        return replace(self, data=file.read(self.offset + _BLOCK, self.size), is_left=False) if self.is_left else self


def read_members(file: File, max_bytes: int, most: int | None = None) -> Iterator[Member]:
    """The files and links of an archive in order; the data of one above `max_bytes` are left out.

    Args:
        most: bytes of all members together, in their order; the data of further ones are left. None: no limit.
    Raises:
        TornTar: at a cut or broken header, at data that end early, or where the end marker is missing.
    """
    offset, ended, next_name, held = 0, False, None, 0
    while True:
        block = file.read(offset, _BLOCK)
        if not block:
            if ended:
                return
            raise TornTar(min(offset, file.size), "the file ends without an end-of-archive marker")
        if len(block) < _BLOCK and not (ended and not block.strip(b"\0")):
            raise TornTar(offset, f"a header of {len(block)} bytes, expected {_BLOCK}")
        if not block.strip(b"\0"):
            ended = True
            offset += len(block)
            continue
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise TornTar(offset, f"a broken header ({error})") from error
        ended = False
        extended = header.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
        name = None if extended else _readable(next_name if next_name is not None else header.name)
        stored = header.isreg() or extended or header.type not in tarfile.SUPPORTED_TYPES
        size = header.size if stored else 0  # a link or folder has no data, also if its header gives a size
        if size < 0:
            raise TornTar(offset, f"a member of {size} bytes")
        if file.size < offset + _BLOCK + size:
            left = max(0, file.size - offset - _BLOCK)
            raise TornTar(offset, f"a member of {size} bytes of which {left} are there", name)
        is_left = not extended and most is not None and size <= max_bytes and held + size > most
        limit = _MAX_EXTENDED_HEADER if extended else max_bytes
        data = None if is_left else _payload(file, offset, size, limit, extended)
        if header.type == tarfile.GNUTYPE_LONGNAME and data is not None:
            next_name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif header.type == tarfile.XHDTYPE and data is not None:
            next_name = _pax_path(data, offset) or next_name
        elif name is not None:
            if header.isreg():
                held += 0 if data is None else size
                yield Member(name=name, offset=offset, size=header.size, data=data, is_left=is_left)
            elif header.issym() or header.islnk():
                yield Member(name=name, offset=offset, size=0, data=None, link=_readable(header.linkname))
            next_name = None
        offset += _BLOCK + -(-size // _BLOCK) * _BLOCK


def write_archive(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A tar of `members` in their order: equal members give equal bytes, on any machine and at any time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)  # no owner, mode 0644, time 0
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _payload(file: File, offset: int, size: int, limit: int, extended: bool) -> bytes | None:
    if size > limit:
        if extended:
            raise TornTar(offset, f"an extended header of {size} bytes")
        return None
    return file.read(offset + _BLOCK, size)


def _readable(name: str) -> str:
    return name.encode("utf-8", "replace").decode().removeprefix("./")  # names end up in tables: valid text only


def _pax_path(data: bytes, offset: int) -> str | None:
    """The `path` of a pax header: records of the form `LENGTH KEY=VALUE\\n`."""
    path, position = None, 0
    while position < len(data):
        digits, space, _ = data[position:].partition(b" ")
        # of few digits: Python refuses to read a number of thousands
        is_length = space and digits.isdigit() and len(digits) <= len(str(_MAX_EXTENDED_HEADER))
        if not is_length or int(digits) <= len(digits):
            raise TornTar(offset, "a broken pax header")
        key, _, value = data[position + len(digits) + 1 : position + int(digits) - 1].partition(b"=")
        if key == b"path":
            path = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            raise TornTar(offset, "a member above 8 GiB")  # no picture is so large; the header does not give its size
        position += int(digits)
    return path

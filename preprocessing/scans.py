"""What libjpeg only warns of: a JPEG whose coded data end before its last pixel, or go on after it.

libjpeg fills a scan that ends early with flat grey and reports success, as long as an end marker stands behind it. With
the marker taken away it must ask for more data where some are lacking, and Pillow then finds that the file is truncated.

A picture of several scans is decoded after its last marker, so there each scan is asked otherwise. Its last bytes are given to the
decoder one at a time: within a scan it keeps some until it has the 8 bytes that it looks ahead, and between scans it takes each at
once, as what it has to skip. Then bytes of ones are given before the marker. Between scans it takes all of them too. Within a scan
they are part of a code that is none, and it keeps them until it has the 17 bits after which it gives up. Flipped bits that leave a
scan as long as it was are not found.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

from PIL import Image, ImageFile

# After a complete scan the decoder looks ahead by up to 8 bytes. These are read as data where some are lacking, so a scan
# that lacks less than them is taken for complete.
_AHEAD = b"\0" * 16
_ONES = b"\xff\0"  # eight bits of a scan, and nothing between scans
_GIVEN = 16  # pairs of bytes that are given at the end of a scan
_TAKEN = 4  # the last ones of them that must be taken
_TAIL = 32  # bytes before the end that a sound picture cannot be decoded without
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # of a segment: no stuffed byte, no restart
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_WHOLE = re.compile(
    rb"\xff+[^\xff]?|[^\xff]", re.DOTALL
)  # a byte with what belongs to it: what is skipped is taken at once
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2  # Huffman-coded; frames of other kinds are rare and not looked at
_SOS, _EOI = 0xDA, 0xD9
_AFTER_SCAN = (0xC4, *range(0xD9, 0xDE), *range(0xE0, 0xF0), 0xFE)  # markers that may follow a scan


class Stream(io.BytesIO):
    """A picture's bytes for a decoder, a JPEG's without its end marker. Notes whether all of them were needed."""

    def __init__(self, data: bytes):
        end, self._is_odd = _end_of_only_scan(data)
        super().__init__(data if end is None else data[:end] + _AHEAD)
        self._tail = None if end is None else end - _TAIL
        self._asked = False

    def read(self, size: int | None = -1) -> bytes:
        """As io.BytesIO; the last bytes are given when they are asked for on their own."""
        if self._tail is not None:
            here = self.tell()
            if here >= self._tail:
                self._asked = True
            elif size is not None and size >= 0:
                size = min(size, self._tail - here)
        return super().read(size)

    @property
    def is_damaged(self) -> bool:
        """After decoding: the last pixel came before the last bytes, or these hold a marker of nothing, as after flipped
        bits. Pixels may be wrong."""
        return self._is_odd or (self._tail is not None and not self._asked)


@dataclass(frozen=True, kw_only=True)
class Scans:
    """How the scans of a picture end."""

    is_short: bool  # one lacks data: pixels are missing
    is_long: bool  # one has data left over, as after flipped bits: pixels may be wrong


def load_scans(image: ImageFile.ImageFile, data: bytes) -> Scans | None:
    """Decode a JPEG of several scans, opened from `data`, and say where its scans end.

    None: it is another picture, or broken, and is not decoded. A scan that lacks less than some 20 bytes is taken for
    complete, one with less than some 40 too many for one that ends where it should.
    """
    scans = _several_scans(data)
    if not scans or len(image.tile) != 1 or image.tile[0].offset:
        return None
    name, extents, _, arguments = image.tile[0]
    image.load_prepare()
    decoder = Image._getdecoder(image.mode, name, arguments, image.decoderconfig)
    decoder.setimage(image.im, extents)
    left, taken, error = b"", 0, 0

    def kept(piece: bytes) -> int:
        nonlocal left, taken, error
        if taken >= 0:
            left += piece
            taken, error = decoder.decode(left)
            left = left[max(taken, 0) :]
        return len(left)

    position, is_short, is_long = 0, False, False
    for begin, end in scans:
        tail = max(begin, end - _TAIL)
        kept(data[position:tail])
        last = [kept(piece) for piece in _WHOLE.findall(data, tail, end)]
        is_long |= bool(last) and not any(last)
        restart = b"\xff" + bytes([0xD0 + len(_RESTART.findall(data, begin, end)) % 8])
        for start in (b"", restart):  # a scan that waits for its next restart marker skips what is before it
            kept(start)
            is_short |= any([kept(_ONES) for _ in range(_GIVEN)][-_TAKEN:])
        position = end
    ended = taken < 0
    kept(data[position:])
    decoder.cleanup()
    if taken >= 0 or error < 0 or ended:  # it does not end, or not with its last marker
        return None
    image.tile = []
    return Scans(is_short=is_short, is_long=is_long)


def lacks_scans(data: bytes) -> bool:
    """Whether a JPEG of several scans ends before all coefficients of all components were sent in full."""
    frame, components, missing = 0, b"", dict[tuple[int, int], int]()
    for marker, start, length in _segments(data):
        body = data[start : start + length]
        if marker in (*_SEQUENTIAL, _PROGRESSIVE) and len(body) >= 6:
            frame, components = marker, body[6::3]
        elif marker == _SOS and frame and len(body) >= 6:
            first, last, precision = body[-3], body[-2], body[-1] & 15
            for component in body[1 : 1 + 2 * body[0] : 2]:
                for coefficient in range(first, last + 1) if frame == _PROGRESSIVE else (0,):
                    missing[component, coefficient] = precision if frame == _PROGRESSIVE else 0
    wanted = range(64) if frame == _PROGRESSIVE else range(1)
    return any(missing.get((component, coefficient), 1) for component in components for coefficient in wanted)


def _end_of_only_scan(data: bytes) -> tuple[int | None, bool]:
    """Where the end marker of a sequential JPEG of one scan stands, None for other pictures; and whether a marker stands in
    the scan that stands in none."""
    sequential = False
    for marker, start, length in _segments(data):
        if marker in _SEQUENTIAL:
            sequential = True
        elif marker == _SOS:
            begin = start + length
            found = _MARKER.search(data, begin)
            if found is None or not sequential:
                break
            after = data[found.start() + 1]
            is_long = found.start() - begin > 8 * _TAIL
            return found.start() if after == _EOI and is_long else None, after not in _AFTER_SCAN
    return None, False


def _several_scans(data: bytes) -> list[tuple[int, int]]:
    """Where the coded data of each of several scans begin and end; empty for other pictures."""
    segments = _segments(data)
    begins = [start + length for marker, start, length in segments if marker == _SOS]
    if len(begins) < 2 or not any(marker in (*_SEQUENTIAL, _PROGRESSIVE) for marker, _, _ in segments):
        return []
    found = [_MARKER.search(data, begin) for begin in begins]
    ends = [match.start() for match in found if match is not None and data[match.start() + 1] in _AFTER_SCAN]
    return list(zip(begins, ends, strict=True)) if len(ends) == len(begins) else []


def _segments(data: bytes) -> list[tuple[int, int, int]]:
    """Marker, start of the content and its length of each segment of a JPEG, as far as they can be read."""
    found = []
    position = 2
    while data[:2] == b"\xff\xd8" and position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == _EOI:
            break
        length = int.from_bytes(data[position + 2 : position + 4], "big") - 2
        if length < 0:
            break
        found.append((marker, position + 4, length))
        position += 4 + length
        if marker == _SOS:
            following = _MARKER.search(data, position)
            if following is None:
                break
            position = following.start()
    return found

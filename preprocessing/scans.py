"""What libjpeg only warns of: a JPEG whose coded data end before its last pixel, or go on after it.

libjpeg fills a scan that ends early with flat grey and reports success, as long as an end marker stands behind it. With
the marker taken away it must ask for more data where some are lacking, and Pillow then finds that the file is truncated.

A picture of several scans is decoded after its last marker, so there it is asked otherwise: bytes of ones are given to the
decoder two at a time before that marker. Between scans it takes all of them, as what it has to skip. Within a scan they are
part of a code that is none, and it keeps them until it has the 17 bits after which it gives up. Flipped bits in such a picture are
found only where they make a scan longer: what is left of a shorter one is skipped, which Pillow does not say.
"""

from __future__ import annotations

import io
import re

from PIL import Image, ImageFile

# After a complete scan the decoder looks ahead by up to 8 bytes. These are read as data where some are lacking, so a scan
# that lacks less than them is taken for complete.
_AHEAD = b"\0" * 16
_ONES = b"\xff\0"  # eight bits of a scan, and nothing between scans
_GIVEN = 16  # pairs of bytes that are given at the end of a last scan
_TAKEN = 4  # the last ones of them that must be taken
_TAIL = 32  # bytes before the end that a sound picture cannot be decoded without
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # of a segment: no stuffed byte, no restart
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


def load_scans(image: ImageFile.ImageFile, data: bytes) -> bool | None:
    """Decode a JPEG of several scans, opened from `data`; whether its last one is complete.

    None: it is another picture, or broken, and is not decoded. A scan that lacks less than some 20 bytes is taken for complete.
    """
    end = _end_of_last_scan(data)
    if end is None or len(image.tile) != 1 or image.tile[0].offset:
        return None
    name, extents, _, arguments = image.tile[0]
    image.load_prepare()
    decoder = Image._getdecoder(image.mode, name, arguments, image.decoderconfig)
    decoder.setimage(image.im, extents)
    left, kept = b"", []
    for piece in (data[:end], *[_ONES] * _GIVEN, data[end:]):
        left += piece
        taken, error = decoder.decode(left)
        if taken < 0:
            break
        left = left[taken:]
        kept.append(len(left))
    decoder.cleanup()
    if taken >= 0 or error < 0 or len(kept) <= _GIVEN:  # it does not end, or not with its last marker
        return None
    image.tile = []
    return not any(kept[-_TAKEN:])


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


def _end_of_last_scan(data: bytes) -> int | None:
    """Where the marker after the last of several scans stands; None for other pictures."""
    segments = _segments(data)
    scans = [start + length for marker, start, length in segments if marker == _SOS]
    if len(scans) < 2 or not any(marker in (*_SEQUENTIAL, _PROGRESSIVE) for marker, _, _ in segments):
        return None
    found = _MARKER.search(data, scans[-1])
    return found.start() if found is not None and data[found.start() + 1] in _AFTER_SCAN else None


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

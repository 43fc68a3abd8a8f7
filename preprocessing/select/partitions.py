"""How the search for copies is cut into units, so that each holds a small part of the corpus at a time.

    signatures   a block of the input's units -> its pictures that pass the thresholds, with priorities, twins collapsed
    pairs        two partitions -> the pairs of copies among them

Up to `select.exact_search_rows` every partition is compared with every other. Beyond that, two pictures are compared
only if a view of one agrees with the whole of the other in all bits of one of several tables (disjoint bits of the
64-bit hash): linear work, and the few copies that differ in every table are missed. Before `pairs`:

    shuffle      some blocks and a table -> the hashes of their pictures by the bits that the table uses
    links        a table's hashes with the same bits -> which pictures are connected by hashes that are alike
    gather       a block and what is connected -> the signatures of its connected pictures by their groups
    pairs        a group -> the pairs of copies in it
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from realcustom.preprocessing.engine.unit import InputFile, Unit, UnitKind, identity_of
from realcustom.preprocessing.settings import SelectSettings

UNITS_PER_BLOCK = 64
_TABLES = 8  # at most; 64 bits hold no more of 8 bits each
_BITS_APART, _MISSED = 8, 0.005  # as few tables as miss at most this share of the pairs so many bits apart
HASHED_ROWS = 4  # rows of hashes alone take as much memory as one of a signature
_MOST_PARTS = 20_000_000  # parts that the driver keeps track of, half a kilobyte each


@dataclass(frozen=True, kw_only=True)
class Part:
    """A row group of a file of signatures."""

    uri: str
    content: str  # identity of the file
    group: int
    rows: int

    def as_file(self, right: bool = False) -> InputFile:
        """As one of a unit's inputs, on the left or on the right side of a comparison."""
        return InputFile(name="", uri=self.uri, size=0, group=self.group, rows=self.rows, right=right)


@dataclass(frozen=True, kw_only=True)
class BitTable:
    """Pictures by `width` bits of their 64-bit hashes, from bit `shift` on."""

    shift: int
    width: int

    @classmethod
    def of(cls, unit: Unit) -> BitTable:
        """The table that a unit of step `shuffle` sorts by."""
        assert unit.bits is not None, unit.name
        return cls(shift=unit.bits[0], width=unit.bits[1])

    def keys(self, hashes: np.ndarray) -> np.ndarray:
        """The table's bits of each hash, uint64 -> int64 of the same shape."""
        mask = np.uint64((1 << self.width) - 1)
        return ((hashes >> np.uint64(self.shift)) & mask).astype(np.int64)


def parts_of(unit: Unit, right: bool) -> list[Part]:
    """The parts on one side of a unit of step `pairs`."""
    parts = []
    for file in unit.files:
        assert file.group is not None and file.rows is not None, unit.name
        if file.right is right:
            parts.append(Part(uri=file.uri, content="", group=file.group, rows=file.rows))
    return parts


def block_units(units: Sequence[Unit]) -> list[Unit]:
    """The input's units, `UNITS_PER_BLOCK` at a time, each one's file with the unit's number."""
    blocks = []
    for number, start in enumerate(range(0, len(units), UNITS_PER_BLOCK)):
        members = units[start : start + UNITS_PER_BLOCK]
        identity = identity_of([[unit.name, unit.identity] for unit in members])
        files = tuple(replace(unit.files[0], number=start + index) for index, unit in enumerate(members))
        blocks.append(Unit(name=f"block-{number:05d}", identity=identity, kind=UnitKind.PART, files=files))
    return blocks


def pair_units(parts: Sequence[Part], settings: SelectSettings) -> list[Unit]:
    """Every partition with itself and with every later one: an exact search."""
    partitions = list(pack(parts, settings.partition_rows))
    units = []
    for i, j in itertools.combinations_with_replacement(range(len(partitions)), 2):
        right = partitions[j] if i != j else []
        units.append(_unit(f"pair-{i:05d}-{j:05d}", partitions[i], right))
    return units


def fitted(blocks: Sequence[Part], settings: SelectSettings) -> SelectSettings:
    """The settings with partitions doubled until the driver can keep track of every pattern's parts."""
    total = sum(block.rows for block in blocks)
    while True:
        patterns = sum(2**table.width for table in bit_tables(total, settings))
        if patterns * sum(1 for _ in pack(blocks, settings.partition_rows)) <= _MOST_PARTS:
            return settings
        settings = replace(settings, partition_rows=2 * settings.partition_rows)


def shuffle_units(blocks: Sequence[Part], tables: Sequence[BitTable], rows: int) -> list[Unit]:
    """About `rows` rows of whole blocks with each table."""
    units = []
    for number, packed in enumerate(pack(blocks, rows)):
        files = tuple(part.as_file() for part in packed)
        identity = identity_of([part.content for part in packed])
        for table in tables:
            name, bits = f"blocks-{number:05d}-{table.shift}.{table.width}", (table.shift, table.width)
            units.append(Unit(name=name, identity=identity, kind=UnitKind.PART, files=files, bits=bits))
    return units


def bucket_units(parts: dict[tuple[int, int], list[Part]], rows: int) -> list[Unit]:
    """The bit patterns of each table, or the groups, put together to units of about `rows` rows (a larger one is not cut).

    Args:
        parts: (table, pattern), or (0, group) -> where its pictures are.
    """
    units = []
    for table, patterns in itertools.groupby(sorted(parts.items()), key=lambda item: item[0][0]):
        packed: list[Part] = []
        first = 0
        for (_, bits), found in patterns:
            if packed and sum(part.rows for part in packed + found) > rows:
                units.append(_unit(f"bucket-{table}-{first:06x}", packed, []))
                packed = []
            first = first if packed else bits
            packed = packed + found
        units.append(_unit(f"bucket-{table}-{first:06x}", packed, []))
    return units


def pack(parts: Iterable[Part], rows: int) -> Iterator[list[Part]]:
    """Groups of consecutive parts, about `rows` rows each (a part is never cut)."""
    packed: list[Part] = []
    for part in parts:
        if packed and sum(other.rows for other in packed) + part.rows > rows:
            yield packed
            packed = []
        packed.append(part)
    if packed:
        yield packed


def bit_tables(rows: int, settings: SelectSettings) -> list[BitTable]:
    """Tables of disjoint bits. A pattern holds the hashes of `HASHED_ROWS` partitions, or a few times as many where it is frequent.

    A picture is written once for each pattern that one of its views has: of few bits these are few, and fewer tables suffice.
    For a larger corpus there is no room for enough of them.
    """
    width = max(1, math.ceil(math.log2(max(1.0, rows / (HASHED_ROWS * settings.partition_rows)))))
    room = max(8, width + 1)
    most = min(_TABLES, 64 // room)
    number = next((few for few in range(1, most) if _missed(few, width, _BITS_APART) <= _MISSED), most)
    # the highest of its room: in a byte of a hash those of the lowest frequencies, in which views of a picture differ least.
    # The first room comes last: its highest bit, of the mean, is set in all pictures
    rooms = [*range(1, most), 0][:number]
    return [BitTable(shift=(place + 1) * room - width, width=width) for place in sorted(rooms)]


def _missed(tables: int, width: int, distance: int) -> float:
    """The share of pairs of hashes so many bits apart that differ in each of some tables of that width."""
    differ: float = sum(
        (-1) ** some * math.comb(tables, some) * math.comb(64 - some * width, distance) for some in range(tables + 1)
    )
    return differ / math.comb(64, distance)


def gather_units(blocks: Sequence[Unit], groups: Sequence[Unit]) -> list[Unit]:
    """Each block with the groups of its pictures."""
    return [
        replace(block, identity=identity_of(block.identity, of.identity), files=(block.files[0], of.files[0]))
        for block, of in zip(blocks, groups, strict=True)
    ]


def _unit(name: str, left: Sequence[Part], right: Sequence[Part]) -> Unit:
    sides = (("left", left), ("right", right))
    files = tuple(part.as_file(right=side == "right") for side, parts in sides for part in parts)
    identity = identity_of([[side, part.content, part.group] for side, parts in sides for part in parts])
    return Unit(name=name, identity=identity, kind=UnitKind.PART, files=files)

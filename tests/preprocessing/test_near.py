"""The search for near duplicates: what it finds is what a full comparison finds, at any size of its pieces."""

from __future__ import annotations

import numpy as np
import pytest

from realcustom.preprocessing.hashes import COLOR_SIDE, VIEWS
from realcustom.preprocessing.select import near
from realcustom.preprocessing.select.near import BandIndex, Limits, Signatures, choose_bands, near_pairs
from realcustom.preprocessing.select.partitions import bit_tables
from realcustom.preprocessing.settings import SelectSettings


def clusters(count: int, seed: int, flips: int = 12) -> np.ndarray:
    """uint64 (count,): hashes of which many are within a few bits of another one."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, count, dtype=np.uint64)
    for index in range(count // 3, count):
        value = hashes[rng.integers(0, index)]
        for bit in rng.choice(64, rng.integers(0, flips + 1), replace=False):
            value ^= np.uint64(1) << np.uint64(bit)
        hashes[index] = value
    return hashes


def signatures(count: int, seed: int) -> Signatures:
    rng = np.random.default_rng(seed)
    long = rng.integers(0, 2**64, (count, VIEWS, 4), dtype=np.uint64)
    long[:, :, 1:] = 0  # two rows differ in some 32 of 256 bits, on average
    color = np.full((count, 3 * COLOR_SIDE**2), 100, np.uint8)
    color[rng.random(count) < 0.3, ::3] = 200  # two colours
    return Signatures(short=clusters(count * VIEWS, seed).reshape(count, VIEWS), long=long, color=color)


def compare_all(left: Signatures, right: Signatures, limits: Limits) -> set[tuple[int, int]]:
    found = set()
    for i in range(len(left)):
        for j in range(len(right)):
            for a, x, b, y in ((left, i, right, j), (right, j, left, i)):
                short = np.bitwise_count(a.short[x] ^ b.short[y, 0]) <= limits.radius
                for view in np.flatnonzero(short):
                    differ, ours, theirs = (
                        sum(int(word).bit_count() for word in words)
                        for words in (a.long[x, view] ^ b.long[y, 0], a.long[x, view], b.long[y, 0])
                    )
                    alike = a.color[x, 0] == b.color[y, 0] and differ / (ours + theirs) <= limits.long_radius / 256
                    found |= {(i, j)} if alike else set()
    return found


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 5, 8, 13, 16])
def test_bands_find_what_a_full_comparison_finds(radius: int) -> None:
    values, queries = clusters(400, radius), clusters(400, radius)[::-1].copy()
    pieces = [np.stack(pair, axis=1) for pair in BandIndex(values, radius).search(queries)]
    found = sorted(pair for piece in pieces for pair in piece.tolist())
    distances = np.bitwise_count(queries[:, None] ^ values[None])
    assert found == np.argwhere(distances <= radius).tolist()  # each once


@pytest.mark.parametrize("rows", [10, 10_000, 300_000, 10_000_000])
def test_bands_cover_all_bits_and_share_the_radius(rows: int) -> None:
    for radius in range(17):
        bands = choose_bands(rows, radius)
        covered = sorted(bit for shift, width, _ in bands for bit in range(shift, shift + width))
        assert covered == list(range(64))
        # pigeonhole: if every band differed in more than its share, more than `radius` bits would differ
        assert sum(share + 1 for *_, share in bands) > radius and all(share >= 0 for *_, share in bands)


@pytest.mark.parametrize("pieces", [None, (7, 5, 3)])
def test_pairs_are_those_of_a_full_comparison(
    pieces: tuple[int, int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pieces:
        for name, value in zip(("_CHUNK", "_BUDGET", "_PIECE"), pieces, strict=True):
            monkeypatch.setattr(near, name, value)
    limits = Limits(radius=8, long_radius=127, color=0.15)
    rows = signatures(90, 1)
    expected = compare_all(rows, rows, limits)
    assert 20 < len(expected) < 4000
    inside = {tuple(pair) for pair in near_pairs(rows, None, limits).tolist()}
    assert inside == {(i, j) for i, j in expected if i < j}
    cut = 37
    left, right = (
        Signatures(short=rows.short[piece], long=rows.long[piece], color=rows.color[piece])
        for piece in (slice(0, cut), slice(cut, None))
    )
    across = {(i, j + cut) for i, j in near_pairs(left, right, limits).tolist()}
    assert across == {(i, j) for i, j in expected if i < cut <= j}
    assert {(j, i + cut) for i, j in near_pairs(right, left, limits).tolist()} == across


def test_no_rows_are_no_pairs() -> None:
    empty = Signatures(
        short=np.empty((0, VIEWS), np.uint64),
        long=np.empty((0, VIEWS, 4), np.uint64),
        color=np.empty((0, 432), np.uint8),
    )
    limits = Limits(radius=8, long_radius=40, color=0.14)
    assert near_pairs(empty, None, limits).shape == near_pairs(empty, signatures(3, 0), limits).shape == (0, 2)


def test_tables_of_bits_find_what_they_promise() -> None:
    tables = bit_tables(5_000_000, SelectSettings())
    assert [(table.shift, table.width) for table in tables] == [(8 * number + 5, 3) for number in range(1, 6)]
    larger = bit_tables(100_000_000, SelectSettings())
    assert [(table.shift, table.width) for table in larger] == [(8 * number + 1, 7) for number in range(8)]
    rng = np.random.default_rng(0)
    for found, distance, least in ((tables, 6, 0.9995), (tables, 8, 0.9975), (larger, 7, 1.0), (larger, 8, 0.9975)):
        values = rng.integers(0, 2**64, 20_000, dtype=np.uint64)
        bits = np.argsort(rng.random((20_000, 64)), axis=1)[:, :distance].astype(np.uint64)
        copies = values ^ np.bitwise_or.reduce(np.uint64(1) << bits, axis=1)
        met = np.any([table.keys(values) == table.keys(copies) for table in found], axis=0)
        assert met.mean() >= least
    huge = bit_tables(10**9, SelectSettings())
    assert [(table.shift, table.width) for table in huge] == [(12 * number + 1, 11) for number in range(5)]


def test_a_pair_at_the_limit_of_both_is_none() -> None:
    limits = Limits(radius=0, long_radius=64, color=0.2)
    one = signatures(1, 0)
    one.long[:] = np.uint64(0xFFFFFFFF)  # 128 of 256 bits
    one.color[:] = 100

    def near_copy(bits: int, red: int) -> bool:
        other = Signatures(short=one.short, long=one.long ^ np.uint64((1 << bits) - 1), color=one.color.copy())
        other.color[:, ::3] += np.uint8(red)
        return len(near_pairs(one, other, limits)) == 1

    assert near_copy(0, 0) and near_copy(12, 0) and near_copy(0, 25)  # 48 of 64 bits, 0.17 of 0.2
    assert not near_copy(12, 25) and not near_copy(17, 0) and not near_copy(0, 45)

"""The order of data: each record once per epoch, whatever the workers do; no sample's randomness is a process's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from realcustom.record import SCHEMA, picture_uid, record_uid
from realcustom.store import Store
from realcustom.training import data, indexing
from realcustom.training.data import DataOrder, Views, split
from realcustom.training.draws import draw_sample, training_influence_quantity, uniform
from realcustom.training.index import RecordIndex
from realcustom.training.indexing import open_index


def write_records(
    folder: Path, sizes: list[int], views: dict[int, list[int]] | None = None, group: int = 100
) -> list[str]:
    """Files of `sizes` records, two to a picture, `group` records to a row group; returns their uids."""
    uids = [record_uid(picture_uid(f"picture-{number // 2}"), "cat", number % 2) for number in range(sum(sizes))]
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for file, size in enumerate(sizes):
        rows = [
            {
                "uid": uids[number],
                "parent_uid": picture_uid(f"picture-{number // 2}"),
                "sha256": bytes(32),
                "width": 8,
                "height": 8,
                "caption": "a cat",
                "caption_source": "alt_text",
                "target_word": "cat",
                "target_start": 2,
                "target_end": 5,
                "view_uids": [uids[view] for view in (views or {}).get(number, [])],
            }
            for number in range(start, start + size)
        ]
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        pq.write_table(table, folder / f"part-{file:03d}.parquet", row_group_size=group)
        start += size
    return uids


@pytest.fixture
def index(tmp_path: Path) -> RecordIndex:
    write_records(tmp_path, [7, 5, 9, 4, 6], views={0: [30, 2, 3], 4: []}, group=4)
    return open_index(str(tmp_path))


def pictures(index: RecordIndex) -> list[str]:
    """The picture of each record."""
    return [uid for file in index.files for uid in pq.read_table(file)["parent_uid"].to_pylist()]


def test_index_finds_every_record(index: RecordIndex, tmp_path: Path) -> None:
    assert len(index) == 31 and len(index.group_file) == 2 + 2 + 3 + 1 + 2
    for number in range(31):
        group, row = index.group_of(number)
        file, within = index.file_of(group)
        table = pq.ParquetFile(index.files[file]).read_row_group(within, ["uid"])
        assert table["uid"][row].as_py() == index.uid(number)
    assert index.rank.tolist() == [uniform("validation", picture) for picture in pictures(index)]
    single = open_index(str(tmp_path / "part-002.parquet"))
    assert len(single) == 9 and single.uid(0) == index.uid(12)
    assert single.identity != index.identity == open_index(str(tmp_path)).identity


def test_bad_records_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_index(str(tmp_path / "absent"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.parquet file"):
        open_index(str(tmp_path / "empty"))
    write_records(tmp_path / "rowless", [0])
    with pytest.raises(ValueError, match="no training record"):
        open_index(str(tmp_path / "rowless"))
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"uid": ["a"]}), tmp_path / "other" / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet.*'parent_uid' is missing"):
        open_index(str(tmp_path / "other"))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        open_index(str(tmp_path / "torn"))
    write_records(tmp_path / "twice", [3])
    (tmp_path / "twice" / "copy.parquet").write_bytes((tmp_path / "twice" / "part-000.parquet").read_bytes())
    with pytest.raises(ValueError, match="occurs more than once"):
        open_index(str(tmp_path / "twice"))
    write_records(tmp_path / "few", [2])
    with pytest.raises(ValueError, match="too few"):
        split(open_index(str(tmp_path / "few")), 0.5, 8)


@pytest.mark.parametrize(("fraction", "at_most"), [(0.3, 64), (1e-9, 64), (0.99, 4), (0.99, 1), (0.6, 30)])
def test_split_keeps_a_picture_on_one_side(index: RecordIndex, fraction: float, at_most: int) -> None:
    """Against the rule in plain Python: pictures in order of their hash until the share or the number is reached."""
    parents = pictures(index)
    expected: list[int] = []
    for parent in sorted(set(parents), key=lambda parent: uniform("validation", parent)):
        records = [number for number, other in enumerate(parents) if other == parent]
        if expected and (uniform("validation", parent) >= fraction or len(expected) + len(records) > at_most):
            break
        expected += records
    held_out, validation = split(index, fraction, at_most)
    assert held_out.tolist() == sorted(expected) and validation.tolist() == sorted(expected[:at_most])


def test_uids_are_sorted_as_bytes() -> None:
    random = np.random.default_rng(0)
    for letters in (2, 200):  # first bytes that many share, and that few do
        for width in (5, 8, 32):
            uids = random.integers(1, letters + 1, (3000, width), np.uint8).view(f"S{width}")[:, 0]
            assert np.array_equal(indexing._argsort(uids), np.argsort(uids, kind="stable"))
    uids = np.array([b"record-9", b"record-10", b"record-1", b"record-10", b"r"])
    assert indexing._argsort(uids).tolist() == [4, 2, 1, 3, 0]


def test_uids_of_any_length_are_joined(tmp_path: Path) -> None:
    """A user's own table: uids are any text, and some views are not there."""
    uids = ["a", "bb", "ünïcode-größer", "0123", ""]
    views = [["0123", "absent", "bb"], None, ["a"], [], ["ünïcode-größer", "x" * 40]]
    rows = [
        {"uid": uid, "parent_uid": uid, "sha256": bytes(32), "width": 8, "height": 8, "caption": "", "target_word": ""}
        | {"caption_source": "alt_text", "target_start": 0, "target_end": 0, "view_uids": others}
        for uid, others in zip(uids, views, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "own.parquet")
    index = open_index(str(tmp_path))
    assert [index.uid(number) for number in range(5)] == uids
    assert [index.views_of(number).tolist() for number in range(5)] == [[1, 3], [], [0], [], [2]]


def test_a_large_table_s_index_is_kept_beside_it(
    index: RecordIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "KEPT_FROM", 26)
    assert not list(tmp_path.glob("index-*"))
    open_index(str(tmp_path))
    (kept,) = tmp_path.glob("index-*.arrow")
    with monkeypatch.context() as patch:
        patch.setattr(indexing, "build_index", lambda *_: pytest.fail("made anew"))
        mapped = open_index(str(tmp_path))
    for name, value in vars(index).items():
        other = getattr(mapped, name)
        assert np.array_equal(value, other) if isinstance(value, np.ndarray) else value == other, name
    (tmp_path / "part-001.parquet").unlink()  # the old index is not of these files
    changed = open_index(str(tmp_path))
    (other_file,) = tmp_path.glob("index-*.arrow")
    assert len(changed) == 31 - 5 and other_file.name != kept.name
    assert changed.identity != index.identity


def test_an_index_on_an_object_store_is_copied_once(
    bucket: str, index: RecordIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "KEPT_FROM", 31)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for path in tmp_path.glob("*.parquet"):
        Store().write(f"{bucket}/records/{path.name}", path.read_bytes())
    monkeypatch.setattr(indexing, "PIECE", 1000)
    copies = []
    for number, last in ((31, 30), (26, 25)):
        assert len(open_index(f"{bucket}/records")) == number
        with monkeypatch.context() as patch, ThreadPoolExecutor(4) as workers:
            patch.setattr(indexing, "build_index", lambda *_: pytest.fail("made anew"))
            mapped = list(workers.map(open_index, [f"{bucket}/records"] * 4))
        assert {each.uid(last) for each in mapped} == {index.uid(30)} and len(mapped[0]) == number
        copies.append(list((tmp_path / "cache").rglob("index-*")))
        Store().delete(f"{bucket}/records/part-001.parquet")
        monkeypatch.setattr(indexing, "KEPT_FROM", 26)
    assert [len(each) for each in copies] == [1, 1] and copies[0] != copies[1], "an earlier listing's copy stays"


def epoch_order(index: RecordIndex, seed: int, epoch: int, open_parts: int) -> list[int]:
    """All records of an epoch but the first, one a step."""
    order = DataOrder(index, np.array([0]), 1, seed, open_parts)
    return [int(order.share(30 * epoch + step, 0, 1).numbers[0]) for step in range(30)]


def test_an_epoch_mixes_the_rows_of_its_open_parts(index: RecordIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "PART_BYTES", 1)  # a part is a row group
    parts = len(index.group_file)
    orders = [epoch_order(index, 3, epoch, open_parts=3) for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[2]) == list(range(1, 31))
    assert orders[0] != epoch_order(index, 4, 0, open_parts=3)
    groups = np.array([index.group_of(number)[0] for number in orders[0]])
    spans = [np.flatnonzero(groups == group)[[0, -1]] for group in range(parts)]
    open_at_once = [sum(first <= step <= last for first, last in spans) for step in range(30)]
    assert max(open_at_once) <= 4 and sum(count >= 2 for count in open_at_once) > 20  # at an exchange, one part more
    everything = epoch_order(index, 3, 0, open_parts=parts)
    assert np.abs(np.diff([index.group_of(number)[0] for number in everything])).mean() > parts / 5


def test_parts_are_whole_row_groups_of_one_file(index: RecordIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data._part_starts(index).tolist() == [0, 7, 12, 21, 25, 31]
    monkeypatch.setattr(data, "PART_BYTES", 1)
    assert data._part_starts(index).tolist() == index.group_row.tolist()


@pytest.mark.parametrize("workers", [2, 3])
def test_a_worker_stays_with_its_row_groups(tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the row groups that a batch is of, a worker's share is of its own ones; few change the worker."""
    write_records(tmp_path, [240] * 12, group=20)
    index = open_index(str(tmp_path))
    monkeypatch.setattr(data, "PART_BYTES", int(index.group_bytes[0]) * 3)
    order = DataOrder(index, np.arange(2), 48, seed=0, open_parts=6)
    read: list[set[int]] = [set() for _ in range(workers)]
    for step in range(order.steps_per_epoch):
        for rank, groups in enumerate(read):
            share = order.share(step, rank, workers)
            groups |= {index.group_of(int(number))[0] for number in share.numbers[share.weights > 0]}
    assert sum(map(len, read)) < 1.5 * len(index.group_file)


@pytest.mark.parametrize("batch_size", [4, 7, 31, 40])
def test_each_record_once_per_epoch_across_crash_and_workers(index: RecordIndex, batch_size: int) -> None:
    def batch(step: int, workers: int) -> list[tuple[int, int]]:
        """The real rows of a step, by fresh processes: nothing but (step, rank) tells them where they are."""
        rows = []
        for rank in range(workers):
            share = DataOrder(index, np.array([4]), batch_size, seed=5, open_parts=3).share(step, rank, workers)
            assert len(share.numbers) == -(-batch_size // workers)
            kept = share.numbers[share.weights > 0]
            rows += [(share.epoch, int(number)) for number in kept]
            weight = share.total_weight
        assert len(rows) == weight
        return rows

    steps = -(-30 // batch_size)
    seen = []
    for step in range(2 * steps):  # the number of workers changes at every step
        workers = 1 + step % 3
        rows = batch(step, workers)
        assert rows == batch(step, 1)
        seen += rows
    assert sorted(seen) == [(epoch, number) for epoch in (0, 1) for number in range(31) if number != 4]


def test_views_are_those_that_are_trained_on(index: RecordIndex) -> None:
    assert Views(index, np.array([1])).of(0).tolist() == [2, 3, 30]
    assert Views(index, np.array([2, 30])).of(0).tolist() == [3]
    assert len(Views(index, np.array([1])).of(4)) == 0


def test_draws_belong_to_seed_epoch_and_uid() -> None:
    first = draw_sample(1, 2, "uid", (12, 4, 4))
    torch.manual_seed(9)
    torch.rand(3)
    again = draw_sample(1, 2, "uid", (12, 4, 4))
    assert torch.equal(first.noise, again.noise) and first.time == again.time
    for key in ((2, 2, "uid"), (1, 3, "uid"), (1, 2, "other")):
        other = draw_sample(*key, (12, 4, 4))
        assert other.time != first.time and not torch.equal(other.noise, first.noise)
    noise = torch.stack([draw_sample(0, 0, str(number), (12, 16, 16)).noise for number in range(64)])
    assert abs(float(noise.mean())) < 0.01 and abs(float(noise.std()) - 1) < 0.01
    times = np.array([draw_sample(0, 0, str(number), (1, 1, 1)).time for number in range(2000)])
    assert 0 <= times.min() < 0.01 and 0.99 < times.max() < 1 and abs(times.mean() - 0.5) < 0.02


def test_influence_quantity_covers_its_range() -> None:  # inv. 32
    values = [training_influence_quantity((0.3, 1.0), 0, step) for step in range(2000)]
    assert 0.3 <= min(values) < 0.301 and 0.999 < max(values) <= 1.0
    assert values[:5] == [training_influence_quantity((0.3, 1.0), 0, step) for step in range(5)]
    assert values[0] != training_influence_quantity((0.3, 1.0), 1, 0)

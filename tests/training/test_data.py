"""The order of data: each record once per epoch, whatever the workers do; no sample's randomness is a process's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from realcustom.record import SCHEMA, picture_uid, record_uid
from realcustom.training.data import DataOrder, RecordIndex, Views, epoch_order, open_index, split
from realcustom.training.draws import draw_sample, training_influence_quantity


def write_records(folder: Path, sizes: list[int], views: dict[int, list[int]] | None = None) -> list[str]:
    """Files of `sizes` records, two to a picture; returns their uids."""
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
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / f"part-{file:03d}.parquet")
        start += size
    return uids


@pytest.fixture
def index(tmp_path: Path) -> RecordIndex:
    write_records(tmp_path, [7, 5, 9, 4, 6], views={0: [2, 3, 30], 4: []})
    return open_index(str(tmp_path))


def test_index_finds_every_record(index: RecordIndex, tmp_path: Path) -> None:
    assert len(index) == 31
    for number in (0, 6, 7, 30):
        table = pq.read_table(index.files[index.file[number]])
        assert table["uid"][int(index.row[number])].as_py() == index.uid(number)
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


def test_split_keeps_a_picture_on_one_side(index: RecordIndex) -> None:
    training, validation = split(index, 0.3, 64)
    assert sorted([*training, *validation]) == list(range(31))
    sides = [{index.parent_uids[int(number)].as_py() for number in side} for side in (training, validation)]
    assert not sides[0] & sides[1] and 0 < len(validation) < 20
    assert len(split(index, 1e-9, 64)[1]) in (1, 2)  # one picture always
    assert len(split(index, 0.99, 4)[1]) <= 4


def test_epoch_order_mixes_only_open_files(index: RecordIndex) -> None:
    numbers = np.arange(1, 31)
    orders = [epoch_order(index, numbers, 3, epoch, open_files=2) for epoch in (0, 0, 1)]
    assert np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[0], orders[2])
    assert sorted(orders[2]) == list(numbers)
    assert not np.array_equal(orders[0], epoch_order(index, numbers, 4, 0, open_files=2))
    seen: list[int] = []
    for file in index.file[orders[0]]:
        if file not in seen:
            seen.append(int(file))
    for pair in (seen[:2], seen[2:4], seen[4:]):  # a file is finished before the group after it begins
        positions = np.flatnonzero(np.isin(index.file[orders[0]], pair))
        assert positions[-1] - positions[0] == len(positions) - 1


@pytest.mark.parametrize("batch_size", [4, 7, 31, 40])
def test_each_record_once_per_epoch_across_crash_and_workers(index: RecordIndex, batch_size: int) -> None:
    numbers = np.arange(31)

    def batch(step: int, workers: int) -> list[tuple[int, int]]:
        """The real rows of a step, by fresh processes: nothing but (step, rank) tells them where they are."""
        rows = []
        for rank in range(workers):
            share = DataOrder(index, numbers, batch_size, seed=5, open_files=3).share(step, rank, workers)
            assert len(share.numbers) == -(-batch_size // workers)
            kept = share.numbers[share.weights > 0]
            rows += [(share.epoch, int(number)) for number in kept]
            weight = share.total_weight
        assert len(rows) == weight
        return rows

    steps = -(-31 // batch_size)
    seen = []
    for step in range(2 * steps):  # the number of workers changes at every step
        workers = 1 + step % 3
        rows = batch(step, workers)
        assert rows == batch(step, 1)
        seen += rows
    assert sorted(seen) == [(epoch, number) for epoch in (0, 1) for number in range(31)]


def test_views_are_those_allowed(index: RecordIndex) -> None:
    assert Views(index, np.arange(31)).of(0) == [2, 3, 30]
    assert Views(index, np.arange(30)).of(0) == [2, 3]
    assert Views(index, np.arange(30)).of(4) == []


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

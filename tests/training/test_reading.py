"""Cells come from row groups, each read once while there is memory; batches are made ahead, within a limit."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from realcustom.cells import encode_tensor
from realcustom.dtype import Dtype
from realcustom.errors import UsageError
from realcustom.parquet import ParquetFile
from realcustom.preprocessing import tables
from realcustom.record import SCHEMA
from realcustom.settings import MethodSettings
from realcustom.store import Store
from realcustom.training import data, reading
from realcustom.training.ahead import DeviceCopies, ReadAhead
from realcustom.training.batch import Batch
from realcustom.training.batches import BatchMaker
from realcustom.training.data import DataOrder, Views, split
from realcustom.training.features import BadRecord, FeatureStore, Kind, Picture
from realcustom.training.index import RecordIndex
from realcustom.training.indexing import open_index
from realcustom.training.reading import RecordsChanged
from realcustom.training.settings import TrainSettings
from realcustom.training.stopping import Stopped
from realcustom.training.world import World

RECORDS, GROUP = 160, 5  # 4 files


class NoEncoders:
    """Every feature is cached."""

    latent_pixels = 8
    shapes: Mapping[Kind, tuple[int | None, ...]] = {}

    def latents(self, picture: Picture) -> torch.Tensor:
        raise AssertionError(picture)

    def text_features(self, caption: str) -> torch.Tensor:
        raise AssertionError(caption)

    def pooled_text(self, caption: str) -> torch.Tensor:
        raise AssertionError(caption)

    def augmented_features(self, picture: Picture, *key: object) -> torch.Tensor:
        raise AssertionError(picture, key)

    def black_features(self) -> torch.Tensor:
        raise AssertionError

    def give_up(self) -> None:
        raise AssertionError

    image_features = latents


def feature(number: int) -> torch.Tensor:
    return torch.full((4, 16), float(number), dtype=torch.bfloat16)


def records(file: int) -> pa.Table:
    """Those of one of the files."""
    rows = [
        {"uid": f"{number:03d}", "parent_uid": str(number), "sha256": bytes(32), "width": 8, "height": 8, "caption": ""}
        | {"caption_source": "alt_text", "target_word": "", "target_start": 0, "target_end": 0}
        | {"latents": encode_tensor(feature(number), Dtype.BFLOAT16)}
        for number in range(file * 40, (file + 1) * 40)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@pytest.fixture
def index(tmp_path: Path) -> RecordIndex:
    for file in range(4):
        pq.write_table(records(file), tmp_path / f"{file}.parquet", row_group_size=GROUP)
    return open_index(str(tmp_path))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int]]:
    """How often each row group was read."""
    counted: Counter[tuple[str, int]] = Counter()
    read_group = ParquetFile.read_group

    def counting(file: ParquetFile, group: int, columns: list[str]) -> pa.Table:
        counted[file.uri, group] += 1
        return read_group(file, group, columns)

    monkeypatch.setattr(ParquetFile, "read_group", counting)
    return counted


def test_an_epoch_reads_each_row_group_once_within_the_memory_of_the_open_parts(
    index: RecordIndex, reads: Counter[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "PART_BYTES", 2 * int(index.group_bytes[0]))
    order = DataOrder(index, np.array([7]), 6, seed=1, open_parts=4)
    memory = (
        9 * GROUP * 200
    )  # of 32 groups: 8 are open, and one takes the place of another; a cell is 128 bytes and more
    store = FeatureStore(index, NoEncoders(), memory)
    seen = []
    for step in range(order.steps_per_epoch):
        share = order.share(step, 0, 1)
        for number in share.numbers[share.weights > 0].tolist():
            assert torch.equal(store.get(Kind.LATENTS, number), feature(number))
            seen.append(number)
        assert store._rows.held <= memory
    assert sorted(seen) == [number for number in range(RECORDS) if number != 7]
    assert len(reads) == RECORDS // GROUP and sum(reads.values()) <= 1.2 * len(reads)


def test_held_out_features_are_read_once(index: RecordIndex, reads: Counter[tuple[str, int]]) -> None:
    held_out = np.array([3, 50, 99])
    store = FeatureStore(index, NoEncoders(), 3000, held_out)
    for _ in range(3):
        for number in (3, 50, 99):
            assert torch.equal(store.get(Kind.LATENTS, number), feature(number))
        for number in range(100, RECORDS, GROUP):
            store.get(Kind.LATENTS, number)
    assert {reads[index.files[number // 40], number % 40 // GROUP] for number in (3, 50, 99)} == {1}
    assert max(reads.values()) == 3


def test_what_is_held_out_lies_alone_in_files_of_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "HELD_OUT", 20)
    for file in range(4):
        (tmp_path / f"{file}.parquet").write_bytes(tables.to_record_file(records(file)))
    index = open_index(str(tmp_path))
    held_out, validation = split(index, 0.5, 30)
    sizes = np.diff(index.group_row)
    assert 20 < len(held_out) == len(validation) and sizes.tolist() == 4 * [*(16 * [1]), 24]
    assert {int(sizes[index.group_of(number)[0]]) for number in validation} == {1}
    for file in range(4):
        uids = [index.uid(number) for number in range(40 * file, 40 * file + 40)]
        assert sorted(uids[:20] + uids[20:]) == records(file)["uid"].to_pylist() and uids[20:] == sorted(uids[20:])
        ranks = index.rank[40 * file : 40 * file + 40]
        assert np.all(np.diff(ranks[:20]) > 0) and ranks[20:].min() > ranks[19]


def write_long(folder: Path, file: int, value: torch.Tensor) -> Path:
    """A file that is not read whole with its footer."""
    random, rows = np.random.default_rng(0), records(file).to_pylist()
    for row in rows:
        row |= {"caption": random.bytes(2000).hex(), "latents": encode_tensor(value, Dtype.FLOAT32)}
    place = folder / f"{file}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), place, row_group_size=GROUP)
    return place


@pytest.mark.parametrize("opened", [False, True], ids=["to be opened", "open"])
def test_a_file_that_is_written_over_under_a_run_is_named(tmp_path: Path, opened: bool) -> None:
    """Also where its old footer was read; no record is bad, and dropped, for it."""
    for file in (0, 1):
        write_long(tmp_path, file, torch.ones(4, 16))
    store = FeatureStore(open_index(str(tmp_path)), NoEncoders(), 3000)
    if opened:
        store.get(Kind.LATENTS, 40)
    write_long(tmp_path, 1, torch.ones(9, 16))
    assert store.get(Kind.LATENTS, 0).shape == (4, 16)
    with pytest.raises(RecordsChanged, match=r"1\.parquet was written over after this run began: .* another --output"):
        store.get(Kind.LATENTS, 75)


@pytest.mark.parametrize("opened", [False, True], ids=["to be opened", "open"])
def test_a_file_that_is_removed_or_torn_under_a_run_is_named(tmp_path: Path, opened: bool) -> None:
    """The torn one as its record's, which may be dropped; whoever removed the other one has changed the records."""
    torn, removed = (write_long(tmp_path, file, torch.ones(4, 16)) for file in (0, 1))
    store, whole = FeatureStore(open_index(str(tmp_path)), NoEncoders(), 3000), torn.read_bytes()
    if opened:
        store.get(Kind.LATENTS, 0)
    torn.write_bytes(whole[: len(whole) // 2])
    said = r"record 035 in \S+0\.parquet: .* not a readable Parquet file.*bad_records=drop"
    with pytest.raises(BadRecord, match=said):
        store.get(Kind.LATENTS, 35)
    removed.unlink()
    with pytest.raises(RecordsChanged, match=r"1\.parquet was removed after this run began; put .* another --output"):
        store.get(Kind.LATENTS, 75)
    torn.write_bytes(whole)
    assert store.get(Kind.LATENTS, 35).shape == (4, 16)


WIDE = {Kind.LATENTS: (4, 2, 2), Kind.TEXT: (3, 8), Kind.IMAGE: (2, 1024)}  # image features of the least bytes, 4096


def with_views(file: int) -> pa.Table:
    """Those of one of the files with all caches; the views of record n are n + 40 and n + 80: in the next two files."""
    table = records(file)
    numbers = range(file * 40, (file + 1) * 40)
    views = [[f"{(number + other) % RECORDS:03d}" for other in (40, 80)] for number in numbers]
    table = tables.with_column(table, SCHEMA.field("view_uids"), views)
    for kind, shape in WIDE.items():
        field = tables.made_by(SCHEMA.field(kind.value), "random", dtype=Dtype.BFLOAT16.value)
        values = (torch.randn(shape, generator=torch.Generator().manual_seed(number)) for number in numbers)
        table = tables.with_column(table, field, [encode_tensor(value, Dtype.BFLOAT16) for value in values])
    return table


def batches(folder: Path) -> list[Batch]:
    """Some training batches whose references mostly are other views."""
    index = open_index(str(folder))
    settings = TrainSettings(batch_size=8, num_workers=1, p_multiview=0.9, validation_records=1)
    held_out, _ = split(index, settings.validation_fraction, settings.validation_records)
    order = DataOrder(index, held_out, settings.batch_size, settings.seed, settings.open_parts)
    store = FeatureStore(index, NoEncoders(), 10**6)
    store.get(Kind.IMAGE, int(held_out[0]))  # as a worker: the shape is known before the first batch
    maker = BatchMaker(store, Views(index, held_out), settings, MethodSettings(), 1000, World())
    return [maker.training(order.share(step, 0, 1)) for step in range(6)]


def test_views_in_other_files_are_read_without_their_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of files that encode makes, not of others; the batches are the same."""
    ours, others = tmp_path / "ours", tmp_path / "others"
    for folder in (ours, others):
        folder.mkdir()
    for file in range(4):
        (ours / f"{file}.parquet").write_bytes(tables.to_record_file(with_views(file)))
        table = pq.read_table(ours / f"{file}.parquet")  # the same rows, compressed
        (others / f"{file}.parquet").write_bytes(tables.to_parquet(table, tables.RECORD_GROUP_BYTES, alone=16))
    groups: list[str] = []
    read_group, ranges = ParquetFile.read_group, Counter[str]()

    def counting(file: ParquetFile, group: int, columns: list[str]) -> pa.Table:
        groups.extend(columns)
        return read_group(file, group, columns)

    monkeypatch.setattr(ParquetFile, "read_group", counting)
    image = reading.RowGroups._image

    def counting_ranges(rows: reading.RowGroups, number: int, place: int, size: int) -> bytes | None:
        found = image(rows, number, place, size)
        ranges["found" if found is not None else "not found"] += 1
        return found

    monkeypatch.setattr(reading.RowGroups, "_image", counting_ranges)
    assert np.all(open_index(str(ours)).image_start > 0) and np.all(open_index(str(others)).image_end == 0)
    first = batches(ours)
    alone, read = ranges.copy(), Counter(groups)
    assert alone["found"] > 20 and alone["not found"] == 0
    groups.clear()
    for one, other in zip(first, batches(others), strict=True):
        assert one.numbers == other.numbers and one.tensors().keys() == other.tensors().keys()
        assert all(torch.equal(value, other.tensors()[name]) for name, value in one.tensors().items())
    assert ranges == alone  # none more
    assert read["image_features"] < Counter(groups)["image_features"]


def test_a_view_is_read_with_its_row_group_where_its_place_cannot_be_told(tmp_path: Path) -> None:
    """Beside a record without image features, and of a file that was written over."""
    table = with_views(0)
    cells = table["image_features"].to_pylist()
    field = table.schema.field("image_features")
    rows = tables.with_column(table, field, [None if row == 30 else cell for row, cell in enumerate(cells)])
    place = tmp_path / "0.parquet"
    place.write_bytes(tables.to_parquet(rows, plain=("image_features.data",)))
    store = FeatureStore(open_index(str(tmp_path)), NoEncoders(), 10**6)
    expected = store.get(Kind.IMAGE, 7)
    store = FeatureStore(store.index, NoEncoders(), 10**6)
    store.shapes[Kind.IMAGE] = expected.shape
    store.read_views([7])
    assert torch.equal(store.get(Kind.IMAGE, 7), expected)
    place.write_bytes(tables.to_parquet(table, plain=("image_features.data",)))
    store = FeatureStore(open_index(str(tmp_path)), NoEncoders(), 10**6)
    store.shapes[Kind.IMAGE] = expected.shape
    place.write_bytes(tables.to_parquet(pa.concat_tables([table, table]), plain=("image_features.data",)))
    store.read_views([7])
    with pytest.raises(RecordsChanged, match="was written over"):
        store.get(Kind.IMAGE, 7)


def test_a_value_that_is_not_finite_is_named(index: RecordIndex, tmp_path: Path) -> None:
    rows = pq.read_table(tmp_path / "2.parquet").to_pylist()
    rows[1]["latents"] = encode_tensor(torch.tensor([1.0, torch.nan]).expand(4, 2), Dtype.FLOAT16)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / "2.parquet")
    store = FeatureStore(open_index(str(tmp_path)), NoEncoders(), 3000)
    with pytest.raises(UsageError, match=r"record 081 in \S+2\.parquet: its latents hold a value that is not finite"):
        store.get(Kind.LATENTS, 81)


def batch(step: int, rows: int = 1) -> Batch:
    one = torch.zeros(1)
    return Batch(
        latents=torch.full((rows,), step, dtype=torch.float16),
        noise=one,
        timesteps=torch.tensor([step]),
        encoder_hidden_states=one,
        image_embeds=one,
        weights=one,
        total_weight=1.0,
    )


@pytest.mark.parametrize(("limit", "ahead"), [(0, 1), (28 * 3, 3)])
def test_batches_are_made_ahead_in_order_within_the_limit(limit: int, ahead: int) -> None:
    made: list[int] = []
    full = threading.Event()

    def make(step: int) -> Batch:
        made.append(step)
        if len(made) == ahead:
            full.set()
        return batch(step)

    with ReadAhead(make, range(4, 12), limit) as batches:
        assert full.wait(10)
        assert int(batches.take().timesteps) == 4
        assert [int(batches.take().timesteps) for _ in range(5, 12)] == list(range(5, 12))
        assert made == list(range(4, 12))
    with ReadAhead(make, range(4, 12), limit) as batches:  # closed in the middle: the thread ends
        batches.take()
    assert len(made) <= 8 + 2 + ahead


def test_an_error_comes_at_its_step_and_keeps_its_trace() -> None:
    def make(step: int) -> Batch:
        if step == 2:
            raise KeyError(step)
        return batch(step)

    with pytest.raises(KeyError) as caught, ReadAhead(make, range(9), 1000) as batches:
        assert [int(batches.take().timesteps) for _ in range(2)] == [0, 1]
        batches.take()
    assert "make" in [entry.name for entry in caught.traceback]


def wait_until_made(ahead: ReadAhead) -> None:
    deadline = time.monotonic() + 10
    while not ahead.ready:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_next_batch_is_on_the_device_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One, in its order, with its bytes; an error comes at its step all the same."""
    copied: list[int] = []
    copy = Batch.to

    def counted(self: Batch, device: torch.device) -> Batch:
        copied.append(int(self.timesteps))
        return copy(self, device)

    def make(step: int) -> Batch:
        if step == 3:
            raise KeyError(step)
        return batch(step, rows=1000)

    monkeypatch.setattr(Batch, "to", counted)
    with pytest.raises(KeyError), ReadAhead(make, range(9), limit=2**20) as ahead:
        copies = DeviceCopies(ahead, torch.device("cpu"))
        copies.copy_next()  # nothing may be made yet: it does not wait
        for step in range(3):
            taken = copies.take()
            assert taken.latents.equal(torch.full((1000,), float(step)))
            if step < 2:
                wait_until_made(ahead)
            copies.copy_next()
            copies.copy_next()
            assert copied == list(range(min(step + 2, 3)))
        copies.take()


@pytest.mark.gpu
def test_a_batch_is_copied_while_the_device_computes() -> None:
    with ReadAhead(lambda step: batch(step, rows=10**6).pinned(), range(3), limit=2**30) as ahead:
        copies = DeviceCopies(ahead, torch.device("cuda"))
        for step in range(3):
            taken = copies.take()
            assert taken.latents.is_cuda and bool((taken.latents == step).all())
            if step == 2:
                break
            wait_until_made(ahead)
            computed = torch.cuda.Event()
            torch.cuda._sleep(10**9)  # cycles: some half of a second
            computed.record()
            copies.copy_next()
            assert copies._stream is not None
            copies._stream.synchronize()
            assert not computed.query()


def test_no_batch_is_in_the_making_after_the_training_ended_with_an_error() -> None:
    """A thread that is in native code while Python ends aborts the process."""
    begun, ended = threading.Event(), threading.Event()

    def make(step: int) -> Batch:
        if step == 1:
            begun.set()
            time.sleep(0.3)
            ended.set()
        return batch(step)

    with pytest.raises(Stopped), ReadAhead(make, range(9), 1000):
        assert begun.wait(10)
        raise Stopped(0)
    assert ended.is_set()


def test_only_what_is_missing_is_fetched(index: RecordIndex) -> None:
    """A column of a row group is a small part of its file."""
    file = ParquetFile(index.files[0], Store())
    assert file.groups == [(GROUP, int(size)) for size in index.group_bytes[:8]]
    assert file.read_group(2, ["uid"])["uid"].to_pylist() == [f"{number:03d}" for number in range(10, 15)]

"""Records of several shapes: a batch has one, each record comes once an epoch, and what is computed is what it was alone."""

from __future__ import annotations

import logging
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.multiprocessing.spawn import spawn

from realcustom.base_loading import load_base
from realcustom.buckets import Buckets
from realcustom.cells import decode_mask, encode_tensor
from realcustom.dtype import Dtype
from realcustom.encoded import encode_subject
from realcustom.errors import UsageError
from realcustom.record import SCHEMA
from realcustom.settings import Fit, ImageEncoderSettings, MethodSettings, Reference
from realcustom.store import Store
from realcustom.training import data, indexing, trial
from realcustom.training.batch import Batch
from realcustom.training.data import BucketOrder, DataOrder, Share, split
from realcustom.training.encoders import FrozenEncoders, decode_picture
from realcustom.training.features import FeatureStore, Kind
from realcustom.training.index import RecordIndex
from realcustom.training.indexing import open_index
from realcustom.training.job import TrainingJob
from realcustom.training.metrics_file import read_rows
from realcustom.training.run import make_job
from realcustom.training.settings import TrainSettings
from realcustom.training.worker import Worker
from realcustom.training.world import World
from tests.support.loopback import free_port
from tests.support.training_corpus import encode_pictures, write_pictures
from tests.support.training_runs import METHOD, SETTINGS, curve, fit, fit_killed

RULE = Buckets(areas=(32, 48), step=16)  # 32 x 32, 64 x 32, 32 x 64, 48 x 48 pixels; a cell of the tiny VAE has 2
SIZES = ((80, 40), (40, 72), (50, 50), (40, 40), (80, 40))
PLAIN = replace(SETTINGS, p_drop_text=0.0, p_drop_image=0.0)


def encoded(world: SimpleNamespace, root: Path, method: MethodSettings = METHOD, count: int = 23) -> str:
    """The directory of records of several sizes, encoded one by one."""
    write_pictures(root / "pictures", count, sizes=SIZES)
    return encode_pictures(root / "pictures", root / "out", world.base, world.image_encoder, method, RULE)


@pytest.fixture(scope="module")
def records(world: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> str:
    return encoded(world, tmp_path_factory.mktemp("bucketed"))


def make_worker(world: SimpleNamespace, records: str, output: Path, settings: TrainSettings = PLAIN) -> Worker:
    return Worker(make_job(records, str(output), world.base, world.image_encoder, METHOD, settings), World())


def errors_and_gradients(worker: Worker, batch: Batch, quantity: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Each row's error, and the gradients of their weighted sum."""
    worker.trainer.optimizer.zero_grad(set_to_none=True)
    errors = worker.trainer.errors(worker.model, batch, quantity)
    (errors * batch.weights).sum().backward()
    found = {name: value.grad for name, value in worker.trainer.parameters.items() if value.grad is not None}
    return errors.detach(), {name: value.clone() for name, value in found.items()}


def with_encoder(world: SimpleNamespace) -> MethodSettings:
    return replace(METHOD, image_encoder=replace(METHOD.image_encoder, model=world.image_encoder))


def rewritten(records: str, target: Path, change: dict[str, Any] | None = None, rule: str | None = "") -> str:
    """The records in one file, the first one changed, and the rule in their metadata replaced or (None) removed."""
    table = pa.concat_tables(pq.read_table(path) for path in sorted(Path(records).glob("*.parquet")))
    rows = table.to_pylist()
    rows[0] |= change or {}
    said = dict(table.schema.field("latents").metadata)
    if rule is None:
        del said[b"buckets"]
    elif rule:
        said[b"buckets"] = rule.encode()
    place = table.schema.get_field_index("latents")
    schema = table.schema.set(place, table.schema.field(place).with_metadata(said))
    target.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), target / f"{len(list(target.iterdir()))}.parquet")
    return str(target)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> RecordIndex:
    """600 records in row groups of 10, of four buckets; one of these has few."""
    folder = tmp_path_factory.mktemp("index")
    random = np.random.default_rng(0)
    field = SCHEMA.field("latents").with_metadata({"buckets": RULE.to_metadata()})
    schema = SCHEMA.set(SCHEMA.get_field_index("latents"), field)
    for file in range(3):
        rows = []
        for number in range(200 * file, 200 * file + 200):
            width, height = SIZES[random.choice(4, p=(0.5, 0.28, 0.2, 0.02))]
            rows.append(
                {
                    "uid": f"{number:03d}",
                    "parent_uid": str(number),
                    "sha256": bytes(32),
                    "width": width,
                    "height": height,
                }
                | {"caption": "", "caption_source": "alt_text", "target_word": "", "target_start": 0, "target_end": 0}
            )
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{file}.parquet", row_group_size=10)
    return open_index(str(folder))


def test_the_index_knows_each_record_s_bucket(
    index: RecordIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert index.bucket is not None and set(index.bucket_sizes) == {(32, 32), (64, 32), (32, 64), (48, 48)}
    for file in index.files:
        for row in pq.read_table(file).to_pylist():
            number = int(row["uid"])
            assert index.bucket_of(number) == RULE.of((row["width"], row["height"]))
    monkeypatch.setattr(indexing, "KEPT_FROM", 1)
    folder = str(Path(index.files[0]).parent)
    open_index(folder)
    monkeypatch.setattr(indexing, "build_index", lambda *_: pytest.fail("made anew"))
    mapped = open_index(folder)
    assert mapped.bucket is not None and np.array_equal(mapped.bucket, index.bucket)
    assert mapped.identity == index.identity and mapped.bucket_of(7) == index.bucket_of(7)


@pytest.mark.parametrize("batch_size", [4, 7, 64])
def test_each_record_once_an_epoch_in_batches_of_one_bucket(
    index: RecordIndex, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By fresh processes whose number changes at every step: nothing but (step, rank) tells them where they are."""
    monkeypatch.setattr(data, "PART_BYTES", 1)  # a part is a row group
    assert index.bucket is not None
    held_out = np.array([3, 5, 400])
    trained = np.setdiff1d(np.arange(len(index)), held_out)
    whole = DataOrder(index, held_out, batch_size, seed=5, open_parts=6)
    counts = np.bincount(index.bucket[trained])
    assert whole.steps_per_epoch == sum(-(-count // batch_size) for count in counts)
    seen, sequences = list[tuple[int, int]](), dict[int, list[int]]({0: [], 1: []})
    for step in range(2 * whole.steps_per_epoch):
        workers = 1 + step % 3
        order = DataOrder(index, held_out, batch_size, seed=5, open_parts=6) if step % 17 == 0 else whole
        rows = []
        for rank in range(workers):
            share = order.share(step, rank, workers)
            assert len(share.numbers) == len(share.weights) == -(-batch_size // workers)
            assert set(index.bucket[share.numbers]) == {index.bucket[share.numbers[0]]}
            rows += share.numbers[share.weights > 0].tolist()
        assert len(rows) == share.total_weight and len(set(index.bucket[rows])) == 1
        sequences[share.epoch].append(int(index.bucket[rows[0]]))
        seen += [(share.epoch, number) for number in rows]
    assert sorted(seen) == [(epoch, number) for epoch in (0, 1) for number in trained]
    assert sequences[0] != sequences[1] and sorted(sequences[0]) == sorted(sequences[1])
    assert np.count_nonzero(np.diff(sequences[0])) > len(sequences[0]) / 3  # mixed


def test_files_without_rows_change_no_bucket(index: RecordIndex) -> None:
    """Between others, and the last one."""
    held_out, starts = np.array([3, 5, 400]), np.arange(0, 601, 60)
    assert index.bucket is not None and len(index) == 600
    for bucket in range(2):
        order = BucketOrder(index, np.sort(np.append(starts, [180, 180, 600])), held_out, 5, 6, bucket)
        trained = np.setdiff1d(np.flatnonzero(index.bucket == bucket), held_out)
        assert order.records == len(trained)
        assert sorted(order.batch(0, 0, order.records)) == trained.tolist()


@pytest.mark.parametrize("layout", ["mixed", "by bucket"])  # `encode` writes the latter
def test_all_buckets_are_at_the_same_parts(index: RecordIndex, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row group is in use for little longer than its part is open."""
    monkeypatch.setattr(data, "PART_BYTES", 1)
    assert index.bucket is not None
    if layout == "by bucket":
        index = replace(index, bucket=np.sort(index.bucket.reshape(3, 200)).ravel())
    order = DataOrder(index, np.array([3]), 4, seed=1, open_parts=6)
    spans: dict[int, list[int]] = {}
    for step in range(order.steps_per_epoch):
        share = order.share(step, 0, 1)
        for number in share.numbers[share.weights > 0].tolist():
            spans.setdefault(index.group_of(number)[0], []).append(step)
    lengths = np.array([max(steps) - min(steps) for steps in spans.values()])
    assert len(spans) == 60 and lengths.mean() < 0.13 * order.steps_per_epoch  # 6 of 60 parts are open at a time


def test_a_batch_equals_its_samples_one_by_one(world: SimpleNamespace, records: str, tmp_path: Path) -> None:
    settings = replace(PLAIN, subject_loss_weight=2.0)
    worker = make_worker(world, records, tmp_path, settings)
    quantity, shapes = 0.7, set[tuple[int, ...]]()
    for step in range(worker.order.steps_per_epoch):
        share = worker.order.share(step, 0, 1)
        batch = worker.batches.training(share)
        if tuple(batch.latents.shape[1:]) in shapes:
            continue
        shapes.add(tuple(batch.latents.shape[1:]))
        assert batch.noise.shape == batch.latents.shape and batch.error_weights is not None
        assert batch.error_weights.shape[2:] == batch.latents.shape[2:]
        errors, gradients = errors_and_gradients(worker, batch, quantity)
        summed = {name: torch.zeros_like(value) for name, value in gradients.items()}
        for row, number in enumerate(share.numbers):
            alone = Share(
                step=step,
                epoch=share.epoch,
                numbers=np.array([number]),
                weights=np.ones(1, np.float32),
                total_weight=1.0,
            )
            one = worker.batches.training(alone)
            for name, tensor in one.tensors().items():
                assert name == "weights" or torch.equal(tensor[0], batch.tensors()[name][row]), name
            error, gradient = errors_and_gradients(worker, one, quantity)
            torch.testing.assert_close(error[0], errors[row], rtol=1e-5, atol=1e-6)
            for name, value in gradient.items():
                summed[name] += value * float(share.weights[row])
        for name, value in gradients.items():
            assert float((summed[name] - value).norm()) <= 1e-5 * float(value.norm()) + 1e-9, name
    assert shapes == {(4, 16, 32), (4, 32, 16), (4, 24, 24), (4, 16, 16)}


def test_each_uid_once_an_epoch_over_two_ranks(world: SimpleNamespace, records: str, tmp_path: Path) -> None:
    worker = make_worker(world, records, tmp_path)
    order, index = worker.order, worker.features.index
    logged: Counter[str] = Counter()
    for step in range(2 * order.steps_per_epoch):
        batches = [worker.batches.training(order.share(step, rank, 2)) for rank in range(2)]
        assert batches[0].latents.shape == batches[1].latents.shape
        for batch in batches:
            logged.update(uid for uid in worker._uids(batch.counted).split(", ") if uid)
    assert logged == {index.uid(number): 2 for number in range(len(index)) if number not in worker.held_out}


def test_a_run_falls_draws_its_sheets_logs_each_uid_once_and_is_continued_to_the_same_bytes(
    world: SimpleNamespace,
    records: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = replace(SETTINGS, steps=9, val_every=0, checkpoint_every=4, subject_loss_weight=2.0)
    with caplog.at_level(logging.DEBUG, "realcustom.training.worker"):
        whole = fit(world, tmp_path / "whole", replace(settings, sample_records=2, sample_steps=1), records)
    assert whole.loss_after < whole.loss_before
    with Image.open(tmp_path / "whole/samples/step-00000009.png") as sheet:
        assert sheet.size == (3 * 128, 2 * 128)
    told = [record.getMessage() for record in caplog.records if record.name.endswith("training.worker")]
    steps = [line.partition(": ")[2].split(", ") for line in told if line.startswith("step ")]
    index = open_index(records)
    (held_out, _) = split(index, settings.validation_fraction, settings.validation_records)
    epoch = DataOrder(index, held_out, settings.batch_size, settings.seed, settings.open_parts).steps_per_epoch
    uids = Counter(uid for step in steps[:epoch] for uid in step)
    assert epoch < len(steps) == 9
    assert uids == {index.uid(number): 1 for number in range(len(index)) if number not in held_out}
    fit_killed(6, world, tmp_path / "killed", settings, records)
    resumed = fit(world, tmp_path / "killed", settings, records)
    assert resumed.sha256 == whole.sha256 and curve(resumed) == curve(whole)


def train_rank(rank: int, address: str, job: TrainingJob, logs: str) -> None:
    """Runs in each of two processes; tells the uids of its steps in a log of its own."""
    torch.set_num_threads(1)
    told = logging.getLogger("realcustom.training.worker")
    told.setLevel(logging.DEBUG)
    told.addHandler(logging.FileHandler(f"{logs}/{rank}.log"))
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    Worker(job, World(rank=rank, size=2)).run()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_on_each_uid_once_an_epoch_and_end_as_one(
    world: SimpleNamespace, records: str, tmp_path: Path
) -> None:
    """Some batches have fewer records than there are workers."""
    index = open_index(records)
    (held_out, _) = split(index, PLAIN.validation_fraction, PLAIN.validation_records)
    order = DataOrder(index, held_out, 3, PLAIN.seed, PLAIN.open_parts)
    epoch = order.steps_per_epoch
    assert min(order.share(step, 0, 2).total_weight for step in range(epoch)) == 1
    settings = replace(PLAIN, steps=2 * epoch, batch_size=3, num_workers=2, log_every=1, lr=1e-3)
    job = make_job(records, str(tmp_path / "two"), world.base, world.image_encoder, METHOD, settings)
    spawn(train_rank, (f"tcp://127.0.0.1:{free_port()}", job, str(tmp_path)), nprocs=2)
    logged: Counter[tuple[int, str]] = Counter()
    for rank in range(2):
        for line in (tmp_path / f"{rank}.log").read_text().splitlines():
            if line.startswith("step "):
                step, _, uids = line.removeprefix("step ").partition(": ")
                logged.update(((int(step) - 1) // epoch, uid) for uid in uids.split(", ") if uid)
    trained = [index.uid(number) for number in range(len(index)) if number not in held_out]
    assert logged == {(number, uid): 1 for number in range(2) for uid in trained}
    one = fit(world, tmp_path / "one", settings, records)
    rows = [row for row in read_rows(str(tmp_path / "two"), Store()) if "loss" in row]
    losses = [row["loss"] for row in one.curve if "loss" in row]
    assert [row["loss"] for row in rows] == pytest.approx(losses, abs=1e-5) and len(losses) == 2 * epoch


def test_a_dry_run_counts_the_buckets_and_measures_the_largest(
    world: SimpleNamespace, records: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[int, ...]] = []

    def measure(worker: Worker, batch: Batch) -> list[str]:
        measured.append(tuple(batch.latents.shape[1:]))
        return []

    monkeypatch.setattr(trial, "_memory", measure)
    monkeypatch.setattr(trial, "_time", lambda worker, steps, price: [])
    said = "\n".join(trial.estimate(records, world.base, with_encoder(world), PLAIN))
    counts = re.search(r"buckets, the records of each \(and its batches an epoch\): (.*)", said)
    assert counts is not None and measured == [(4, 24, 24)]
    found = re.findall(r"(\d+) x (\d+) (\d+) \((\d+)\)", counts[1])
    assert len(found) == 4 and sum(int(records) for _, _, records, _ in found) == int(said.split(" = ")[1].split()[0])
    assert sum(int(batches) for *_, batches in found) == int(said.split("steps: ")[1].split()[0])


def test_validation_is_the_mean_of_the_records_alone(world: SimpleNamespace, records: str, tmp_path: Path) -> None:
    worker = make_worker(world, records, tmp_path, replace(PLAIN, validation_timesteps=1))
    assert len({worker.features.index.bucket_of(number) for number in worker.validation.tolist()}) > 1
    quantity = METHOD.tokens.influence_quantity
    losses = worker.trainer.validate(worker.batches.validation(worker.validation), 1, quantity)
    alone = [
        worker.trainer.validate(worker.batches.validation(np.array([number])), 1, quantity) or []
        for number in worker.validation
    ]
    assert losses == pytest.approx(np.mean(alone, 0).tolist(), rel=1e-5)


@pytest.mark.parametrize("reference", list(Reference))
@pytest.mark.parametrize("fit_to", list(Fit))
def test_training_encode_and_serving_prepare_a_picture_alike(
    world: SimpleNamespace, tmp_path: Path, reference: Reference, fit_to: Fit
) -> None:
    method = replace(METHOD, image_encoder=ImageEncoderSettings(reference=reference, fit=fit_to))
    index = open_index(encoded(world, tmp_path, method, count=8))
    encoders = FrozenEncoders(load_base(world.base), world.image_encoder, method, torch.device("cpu"))
    store = FeatureStore(index, encoders, 2**24)
    for number in range(len(index)):
        picture = store.picture(number)
        assert picture.bucket is not None and picture.subject_mask is not None
        latents, image = store.get(Kind.LATENTS, number), store.get(Kind.IMAGE, number)
        assert latents.shape[1:] == (picture.bucket[1] // 2, picture.bucket[0] // 2)
        assert torch.equal(latents, encoders.latents(picture)) and torch.equal(image, encoders.image_features(picture))
        mask = Image.fromarray(decode_mask(picture.subject_mask))
        served = encode_subject(decode_picture(picture.image), mask, encoders.image_encoder, method.image_encoder)
        assert torch.equal(image, served.features)
    assert len({index.bucket_of(number) for number in range(len(index))}) == 4


def test_mistakes_are_one_line_each(world: SimpleNamespace, records: str, tmp_path: Path) -> None:
    def refused(folder: str, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            fit(world, Path(folder) / "run", PLAIN, folder)

    mixed = rewritten(records, tmp_path / "mixed", rule=None)
    refused(
        mixed,
        r"have shape \(4, .*, those of the records before .*say nothing of buckets; run the encode stage over them",
    )
    short = {"latents": encode_tensor(torch.zeros(4, 8, 8), Dtype.FLOAT32)}
    first = pq.read_table(sorted(Path(records).glob("*.parquet"))[0])["uid"][0].as_py()
    wrong = rewritten(records, tmp_path / "wrong", short)
    refused(
        wrong, rf"record {first} in .*its latents have shape \(4, 8, 8\), those of its bucket, \d+ x \d+ pixels, \(4, "
    )
    small = rewritten(records, tmp_path / "small", {"width": 30, "height": 20})
    refused(small, rf"record {first} is 30 x 20 pixels, and by the rule .* no bucket is for it")
    rewritten(records, tmp_path / "two")
    two = rewritten(records, tmp_path / "two", {}, Buckets(areas=(32,), step=16).to_metadata())
    refused(two, r"1\.parquet: its cached latents were made with another buckets than those of the first file")
    with pytest.raises(UsageError, match="num_workers=3 exceeds batch_size=2: a worker is idle"):
        replace(PLAIN, num_workers=3, batch_size=2)


def test_a_bucket_that_is_held_out_altogether_is_said(
    world: SimpleNamespace, records: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And a batch of fewer records than workers is padded."""
    index = open_index(records)
    (held_out, _) = split(index, PLAIN.validation_fraction, PLAIN.validation_records)
    assert index.bucket is not None
    order = DataOrder(index, np.union1d(held_out, np.flatnonzero(index.bucket == 0)), 5, 0, 8)
    assert order.not_trained == [index.bucket_sizes[0]]
    last = [order.share(step, 1, 2) for step in range(order.steps_per_epoch)]
    assert min(share.total_weight for share in last) < 5 and any(not share.weights.all() for share in last)
    caplog.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataOrder, "not_trained", [(48, 48)])
        make_worker(world, records, tmp_path)
    assert "bucket 48 x 48 has no record to train on: all of its records are held out" in caplog.text

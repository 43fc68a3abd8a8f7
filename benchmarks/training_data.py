"""Records of Stable Diffusion 1.5's sizes with random caches, and the data part of one training worker without a model.

python benchmarks/training_data.py read FOLDER STEPS MEMORY_GIB SEED     # prints one line of JSON
python benchmarks/training_data.py index FOLDER
python benchmarks/training_data.py near FOLDER FILES         # makes them; a folder that is there already is an error
python benchmarks/training_data.py scattered FOLDER FILES    # the same, the views of a subject in different files
python benchmarks/training_data.py rows FOLDER RECORDS
"""

from __future__ import annotations

import functools
import json
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import torch

from realcustom.cells import encode_tensor
from realcustom.dtype import Dtype
from realcustom.preprocessing.tables import (
    HELD_OUT_ALONE,
    RECORD_GROUP_BYTES,
    made_by,
    to_parquet,
    to_record_file,
    with_column,
)
from realcustom.record import SCHEMA, record_uid
from realcustom.settings import MethodSettings
from realcustom.training.ahead import ReadAhead
from realcustom.training.batch import Batch
from realcustom.training.batches import BatchMaker
from realcustom.training.data import DataOrder, Views, split
from realcustom.training.features import FeatureStore, Kind, Memory, Picture
from realcustom.training.indexing import open_index
from realcustom.training.settings import TrainSettings
from realcustom.training.world import World

SHAPES = {Kind.LATENTS: (4, 64, 64), Kind.TEXT: (77, 768), Kind.IMAGE: (257, 1024)}  # 0.66 MiB in bf16
PER_FILE, VIEWS = 1000, 4  # records of a file; of a subject
STEP_SECONDS = 0.1  # stands in for the UNet
BATCH = 16
SETTINGS = TrainSettings(batch_size=BATCH, num_workers=1, p_multiview=0.5, validation_records=32)


def write_caches(folder: Path, file: int, scattered_over: int = 0) -> None:
    """A file of `PER_FILE` records with all three caches, as the encode stage writes it.

    `scattered_over` is the number of records of all files, over which the views of a subject lie; 0: one after the other.
    """
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(file)
    first = file * PER_FILE
    table = small_columns(first, PER_FILE)
    if scattered_over:
        apart = scattered_over // VIEWS
        others = [
            [uid_of((number + turn * apart) % scattered_over) for turn in range(1, VIEWS)]
            for number in range(first, first + PER_FILE)
        ]
        table = with_column(table, SCHEMA.field("view_uids"), others)
    for kind, shape in SHAPES.items():
        values = (torch.randn(shape, generator=generator) for _ in range(PER_FILE))
        field = made_by(SCHEMA.field(kind.value), "random", dtype=Dtype.BFLOAT16.value)
        table = with_column(table, field, [encode_tensor(value, Dtype.BFLOAT16) for value in values])
    (folder / f"part-{file:05d}.parquet").write_bytes(to_record_file(table))


def write_rows(folder: Path, file: int) -> None:
    """The same file without the caches, in as many row groups."""
    size = sum(2 * int(np.prod(shape)) for shape in SHAPES.values())
    table = small_columns(file * PER_FILE, PER_FILE)
    data = to_parquet(table, RECORD_GROUP_BYTES * table.nbytes // (size * PER_FILE), alone=HELD_OUT_ALONE)
    (folder / f"part-{file:05d}.parquet").write_bytes(data)


def write_all(write: Callable[[Path, int], None], place: str, files: int) -> None:
    """Make a folder of that many files, with two processes; it has its name when it is whole."""
    part = Path(f"{place}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with ProcessPoolExecutor(2) as writers:
        for _ in writers.map(functools.partial(write, part), range(files), chunksize=max(1, files // 100)):
            pass
    part.rename(place)


def small_columns(first: int, count: int) -> pa.Table:
    """Records `first` to `first + count`: a subject's records are each other's views."""
    uids = np.array([uid_of(number) for number in range(first, first + count)])
    others = [[uids[j] for j in range(i - i % VIEWS, i - i % VIEWS + VIEWS) if j != i] for i in range(count)]
    text, zero = pa.array(["a toy in the jungle"] * count), pa.array(np.zeros(count, np.int32))
    given = {
        "uid": pa.array(uids),
        "parent_uid": pa.array(uids),
        "sha256": pa.array([bytes(32)] * count, pa.binary(32)),
        "width": zero,
        "height": zero,
        "caption": text,
        "caption_source": pa.array(["synthetic"] * count, SCHEMA.field("caption_source").type),
        "target_word": pa.array(["toy"] * count),
        "target_start": zero,
        "target_end": zero,
        "view_uids": pa.array(others, SCHEMA.field("view_uids").type),
    }
    columns = [given.get(field.name, pa.nulls(count, field.type)) for field in SCHEMA]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def uid_of(number: int) -> str:
    """Of a record by its number."""
    return record_uid("picture", "toy", number)


class NoEncoders:
    """Every feature is cached."""

    latent_pixels = 8
    shapes: Mapping[Kind, tuple[int | None, ...]] = {}

    def latents(self, picture: Picture) -> torch.Tensor:
        """Not called."""
        raise AssertionError(picture.uid)

    def text_features(self, caption: str) -> torch.Tensor:
        """Not called."""
        raise AssertionError(caption)

    def pooled_text(self, caption: str) -> torch.Tensor:
        """Not called."""
        raise AssertionError(caption)

    def augmented_features(self, picture: Picture, *key: object) -> torch.Tensor:
        """Not called."""
        raise AssertionError(picture.uid, key)

    def black_features(self) -> torch.Tensor:
        """Not called."""
        raise AssertionError

    def give_up(self) -> None:
        """Not called."""
        raise AssertionError

    image_features = latents


def read(records: str, steps: int, memory_gib: float, seed: int) -> dict[str, float]:
    """The data part of a worker for some steps: share of waiting, bytes read and used, memory above what it began with."""
    torch.set_num_threads(1)
    peak = Peak()
    memory, settings = Memory.of(memory_gib), replace(SETTINGS, seed=seed)
    index = open_index(records)
    held_out, validation = split(index, settings.validation_fraction, settings.validation_records)
    order = DataOrder(index, held_out, BATCH, settings.seed, settings.open_parts)

    def reader() -> BatchMaker:
        features = FeatureStore(index, NoEncoders(), memory.features, validation)
        return BatchMaker(features, Views(index, held_out), settings, MethodSettings(), 1000, World())

    maker, before = reader(), bytes_read()
    used = sum(feature_bytes(batch) for batch, _ in maker.validation(validation)) / settings.validation_timesteps
    first = bytes_read() - before
    for _ in maker.validation(validation):
        pass
    again = bytes_read() - before - first
    maker, before, waits, trained, cpu = reader(), bytes_read(), list[float](), 0, time.process_time()
    # as in a worker: the first batches are made while it validates
    with ReadAhead(lambda step: maker.training(order.share(step, 0, 1)), range(steps), memory.batches) as batches:
        for _ in maker.validation(validation):
            time.sleep(STEP_SECONDS / 3)  # a forward
        start = time.monotonic()
        for _ in range(steps):
            begun = time.monotonic()
            batch = batches.take()
            waits.append(time.monotonic() - begun)
            trained += feature_bytes(batch)
            time.sleep(STEP_SECONDS)
    return {
        "wait": sum(waits) / (time.monotonic() - start),
        "first_wait_seconds": waits[0],
        "cpu_seconds_per_step": (time.process_time() - cpu) / steps,
        "read": (bytes_read() - before - first) / trained,
        "validation": first / used,
        "validation_again": again / used,
        "pss": peak.stop(),
        "epoch": order.steps_per_epoch,
    }


def feature_bytes(batch: Batch) -> int:
    """Bytes of the features in a batch, as they are in the caches, without padding."""
    rows = int(torch.count_nonzero(batch.weights))
    return rows * sum(2 * int(np.prod(shape)) for shape in SHAPES.values())


def bytes_read() -> int:
    """By this process, in all of its system calls."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


class Peak:
    """The most memory (PSS, GiB) above what there is at the start, sampled twice a second."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._start = self._peak = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _now(self) -> float:
        return float(self._process.memory_full_info().pss) / 2**30

    def _sample(self) -> None:
        while not self._done.wait(0.5):
            self._peak = max(self._peak, self._now())

    def stop(self) -> float:
        """End the sampling."""
        self._done.set()
        self._thread.join()
        return max(self._peak, self._now()) - self._start


def index_seconds(records: str) -> dict[str, float]:
    """Seconds, and peak memory in GiB of the process above what it began with, of opening an index."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    index = open_index(records)
    split(index, SETTINGS.validation_fraction, SETTINGS.validation_records)
    seconds = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "gib": (after - before) / 2**20, "records": len(index)}


def main(what: str, place: str, *numbers: str) -> dict[str, float]:
    """One of the five."""
    if what == "index":
        return index_seconds(place)
    if what == "read":
        return read(place, int(numbers[0]), float(numbers[1]), int(numbers[2]))
    if what == "near":
        write_all(write_caches, place, int(numbers[0]))
    elif what == "scattered":
        files = int(numbers[0])
        write_all(functools.partial(write_caches, scattered_over=files * PER_FILE), place, files)
    else:
        write_all(write_rows, place, int(numbers[0]) // PER_FILE)
    return {}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))

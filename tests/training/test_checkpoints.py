"""Checkpoints are copied at once and written beside the training, in the order of what was given to write."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from realcustom import storage
from realcustom.checkpoint import load_adapter
from realcustom.errors import UsageError
from realcustom.store import Store
from realcustom.training import metrics
from realcustom.training.background import Background
from realcustom.training.checkpoints import (
    Checkpoint,
    Snapshot,
    file_name,
    list_checkpoints,
    load_checkpoint,
    prune,
)
from realcustom.training.metrics_file import MetricsFile, read_rows
from realcustom.training.run import TrainResult
from tests.support.training_runs import SETTINGS, curve, fit, fit_killed


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return Checkpoint(
        tensors={
            "b": torch.randn(3, 5, generator=generator),
            "a": torch.randn(7, generator=generator).bfloat16(),
            "c": torch.randint(255, (3,), generator=generator, dtype=torch.uint8),
            "one": torch.tensor(step),
            "turned": torch.randn(4, 6, generator=generator).T,
        },
        counters={"step": step},
        progress={"loss_sum": 0.5},
        identity="0123",
        losses={"500": 0.25},
    )


def test_a_checkpoint_is_a_safetensors_file_of_the_moment_it_was_taken(tmp_path: Path) -> None:
    snapshot = Snapshot()
    for step in (1, 12, 3):  # the second header is longer
        taken, expected = checkpoint(step), checkpoint(step)
        snapshot.take(taken)
        for tensor in taken.tensors.values():
            tensor.zero_()  # training goes on
        snapshot.write(str(tmp_path), Store())
        path = tmp_path / f"step-{step:08d}.safetensors"
        read = load_checkpoint(str(path), Store())
        assert read.counters == {"step": step} and read.progress == {"loss_sum": 0.5} and read.identity == "0123"
        assert read.losses == {"500": 0.25}
        for tensors in (read.tensors, load_file(path)):
            assert tensors.keys() == expected.tensors.keys()
            for name, tensor in expected.tensors.items():
                assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor), name


def test_a_checkpoint_of_a_later_version_or_without_a_part_is_said(tmp_path: Path) -> None:
    note: dict[str, object] = {"counters": {"step": 1}, "progress": {}, "identity": "0123", "losses": {}}
    path = str(tmp_path / file_name(1))

    def written(note: dict[str, object]) -> Checkpoint:
        save_file({"a": torch.zeros(1)}, path, {"training": json.dumps(note)})
        return load_checkpoint(path, Store())

    assert written(note).identity == "0123"  # before there were numbers
    with pytest.raises(
        UsageError, match=rf"{path} is a training checkpoint of version 9, this realcustom reads up to 1: go"
    ):
        written({"version": 9, "counters": {}})
    (tmp_path / file_name(2)).write_bytes(Path(path).read_bytes()[:-2])
    with pytest.raises(
        UsageError, match=r"\S+2\.safetensors is not a training checkpoint, or not a whole one: remove it, and"
    ):
        load_checkpoint(str(tmp_path / file_name(2)), Store())
    del note["progress"], note["losses"]
    with pytest.raises(UsageError, match=rf"{path} is a training checkpoint without its progress, losses: remove it"):
        written(note)


@pytest.mark.parametrize(
    ("latest", "best", "left"), [(2, 0, [4, 5]), (1, 2, [1, 3, 5]), (1, 1, [3, 5]), (9, 0, [1, 2, 3, 4, 5])]
)
def test_the_latest_and_the_best_are_kept(tmp_path: Path, latest: int, best: int, left: list[int]) -> None:
    for step in range(1, 6):
        (tmp_path / file_name(step)).write_bytes(b"")
    prune(str(tmp_path), latest, best, {"1": 0.3, "2": 0.4, "3": 0.2, "4": 0.3}, Store())
    assert [int(uri[-20:-12]) for uri in list_checkpoints(str(tmp_path), Store())] == left


def test_a_checkpoint_has_an_adapter_and_the_best_one_stays(world: SimpleNamespace, tmp_path: Path) -> None:
    """Also over a kill: the losses are in the checkpoints."""
    settings = replace(SETTINGS, steps=12, checkpoint_every=2, val_every=2, keep_checkpoints=1)
    best, add = 4, metrics.Metrics.add_validation
    with pytest.MonkeyPatch.context() as losses:
        losses.setattr(
            metrics.Metrics, "add_validation", lambda self, step, _: add(self, step, [1.0 + abs(step - best)])
        )
        fit_killed(9, world, tmp_path, settings)
        result = fit(world, tmp_path, settings)
    for folder in ("checkpoints", "adapters"):
        assert {path.name for path in (tmp_path / folder).iterdir()} == {file_name(best), file_name(12)}
    assert load_adapter(str(tmp_path / "adapters" / file_name(best))).settings == load_adapter(result.adapter).settings
    assert (tmp_path / "adapters" / file_name(12)).read_bytes() == (tmp_path / "adapter.safetensors").read_bytes()


def test_steps_are_taken_while_a_checkpoint_is_written(
    world: SimpleNamespace, undisturbed: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that takes longer than all steps: the run is the same, and waits for it only at the next checkpoint."""
    write, begun = Snapshot.write, list[int]()
    steps_done = threading.Event()

    def slow(snapshot: Snapshot, folder: str, store: Store) -> None:
        if not begun:
            assert steps_done.wait(60)  # of step 9: step 10 is the next checkpoint
        begun.append(snapshot._step)
        write(snapshot, folder, store)

    add_step, counted = metrics.Metrics.add_step, list[object]()

    def counting(*arguments: object) -> None:
        add_step(*arguments)  # type: ignore[arg-type]
        counted.append(arguments)
        if len(counted) == 9:
            steps_done.set()

    monkeypatch.setattr(Snapshot, "write", slow)
    monkeypatch.setattr(metrics.Metrics, "add_step", counting)
    result = fit(world, tmp_path)
    assert begun == [5, 10, 12]
    assert result.sha256 == undisturbed.sha256 and curve(result) == curve(undisturbed)


def test_writes_keep_their_order_and_their_errors_are_raised() -> None:
    done: list[int] = []

    def write(number: int) -> None:
        time.sleep(0.02 * (3 - number))
        done.append(number)

    with Background() as background:
        for number in range(3):
            background.put(lambda number=number: write(number))  # type: ignore[misc]
        background.wait()
        assert done == [0, 1, 2]

    def refuse() -> None:
        raise UsageError("the disk is full")

    with pytest.raises(UsageError, match="the disk is full"), Background() as background:
        background.put(refuse)
    with pytest.raises(UsageError, match="the disk is full"), Background() as background:
        background.put(refuse)
        while True:
            background.check()
    with pytest.raises(KeyError), Background() as background:  # the first error is the one that ended the training
        background.put(refuse)
        raise KeyError


@pytest.mark.parametrize("remote", [False, True], ids=["disk", "store"])
def test_rows_are_added_and_cut(remote: bool, bucket: str, tmp_path: Path) -> None:
    output, store = f"{bucket}/run" if remote else str(tmp_path), Store()
    assert read_rows(output, store) == []
    first = MetricsFile(output, store)
    first.cut(0)
    first.add([{"step": 0, "val_loss": 1.0}, {"step": 2, "loss": 0.5}])
    first.add([{"step": 4, "loss": 0.4}, {"step": 4, "val_loss": 0.9}])
    if remote:
        assert len(store.list_names(f"{output}/metrics")) == 2
        store.write(f"{output}/metrics/00000002.jsonl", b'{"step": 6, "loss": 0.3}\n')
    else:
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"step": 6, "loss": 0.3}\n{"step": 7, "lo')  # killed in the middle of a line
    assert [row["step"] for row in read_rows(output, store)] == [0, 2, 4, 4, 6]
    again = MetricsFile(output, store)
    again.cut(4)
    again.add([{"step": 6, "loss": 0.2}])
    assert [row.get("loss", row.get("val_loss")) for row in read_rows(output, store)] == [1.0, 0.5, 0.4, 0.9, 0.2]
    again.cut(6)
    assert storage.read_bytes(f"{output}/metrics.jsonl").count(b"\n") == 5
    assert not remote or not store.list_names(f"{output}/metrics")


def test_a_full_disk_names_the_file(world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "write_bytes", lambda place, data: full() if "adapters" in str(place) else None)
    with pytest.raises(UsageError, match=r"cannot write \S+/adapters/step-00000005\.safetensors: the disk is full"):
        fit(world, tmp_path, replace(SETTINGS, steps=7))

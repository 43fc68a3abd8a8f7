"""One Ctrl-C ends a command: in native code, in a clean-up that hangs, and while Ray waits. Real signals."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realcustom.record import SCHEMA
from tests.support.programs import StartProgram
from tests.support.tiny import TinyModels

PATIENCE = 60.0  # seconds, on a busy machine, of what takes a few
WATCHED = """
import sys, time
from realcustom.pipeline.cli import interrupt
interrupt.UNNOTICED_SECONDS = interrupt.CLEANUP_SECONDS = 0.5
interrupt.watch()
"""
NATIVE = """
import torch
torch.set_num_threads(1)
matrix = torch.rand(4000, 4000)
print("ready", flush=True)
torch.linalg.svd(matrix)
"""
HANGING = """
try:
    print("ready", flush=True)
    time.sleep(600)
finally:
    time.sleep(600)
"""


@pytest.mark.parametrize("code", [NATIVE, HANGING], ids=["native code", "a clean-up that hangs"])
def test_a_command_ends_soon(start: StartProgram, code: str) -> None:
    process = start("-c", WATCHED + code)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(2)  # into the call, which takes half a minute, and the sleep
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert process.stdout.read() == "interrupted\n"
    assert time.monotonic() - begun < 20  # of ten minutes


STOPPING = """
import threading
from realcustom.training.stopping import stop_at_signals
stop = threading.Event()
with stop_at_signals(stop):
    print("ready", flush=True)
    stop.wait()
    time.sleep(1.5)  # for longer than a clean-up may take here
    print("goes on", flush=True)
    time.sleep(600)
"""


def test_the_first_one_asks_a_training_to_end_and_the_second_one_ends_it(start: StartProgram) -> None:
    process = start("-c", WATCHED + STOPPING)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "goes on\n"
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == -signal.SIGINT and time.monotonic() - begun < 20  # of ten minutes


def test_a_command_that_was_started_to_ignore_it_goes_on(start: StartProgram) -> None:
    code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + WATCHED
    process = start("-c", code + "print('ready', flush=True)\ntime.sleep(2)\nprint('done')\n")
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 0 and process.stdout.read() == "done\n"


def test_waiting_for_a_machine_is_said_and_ends_at_once(
    start: StartProgram, ray_cluster: str, tiny_models: TinyModels, tmp_path: Path
) -> None:
    """What no node of a named cluster has may come, so both wait: training in Ray Train, a stage in Ray Data."""
    (tmp_path / "records").mkdir()
    uids = [f"{number:032x}" for number in range(3)]
    rows = [{**dict.fromkeys(SCHEMA.names), "uid": uid, "parent_uid": uid, "sha256": b"0" * 32} for uid in uids]
    rows = [{**row, "width": 9, "height": 9, "caption": "a", "target_word": "a"} for row in rows]
    rows = [{**row, "caption_source": "word", "target_start": 0, "target_end": 1} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), tmp_path / "records" / "a.parquet")
    common = ("--input", "records", "--base", tiny_models.base, "--image-encoder", tiny_models.image_encoder)
    verbs = {
        "train": ("--output", "run", "--set", "train.num_workers=64", "--set", "train.batch_size=64"),
        "preprocess encode": ("--output", "out", "--set", "preprocess.compute.threads=64"),
    }
    waiting = {
        "train": "waiting for 64 workers with a CPU each",
        "preprocess encode": "no node of the cluster has 64 CPU",
    }
    logs = {verb: tmp_path / f"{verb}.log" for verb in verbs}
    processes = {}
    for verb, options in verbs.items():
        with logs[verb].open("w") as log:
            arguments = ("-m", "realcustom", *verb.split(), *common, *options)
            processes[verb] = start(*arguments, output=log)
    for verb, process in processes.items():
        deadline = time.monotonic() + 2 * PATIENCE
        while waiting[verb] not in logs[verb].read_text():
            assert process.poll() is None and time.monotonic() < deadline, logs[verb].read_text()
            time.sleep(0.2)
    time.sleep(2)  # into the wait itself
    for process in processes.values():
        process.send_signal(signal.SIGINT)
    for verb, process in processes.items():
        assert process.wait(PATIENCE) == 130, verb
        said = logs[verb].read_text()
        assert said.count(waiting[verb]) == 1 and "Traceback" not in said
        last = "stopped before the first step; the same command goes on: " if verb == "train" else "interrupted"
        assert said.splitlines()[-1].startswith(last)


def test_an_embedded_cluster_that_cannot_grow_is_not_waited_for(
    start: StartProgram, tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "records").mkdir()
    pq.write_table(SCHEMA.empty_table(), tmp_path / "records" / "a.parquet")
    common = ("--input", "records", "--base", tiny_models.base, "--image-encoder", tiny_models.image_encoder)
    train = start(
        *("-m", "realcustom", "train", "--output", "run", *common),
        *("--set", "train.num_workers=64", "--set", "train.batch_size=64"),
    )
    encode = start(
        *("-m", "realcustom", "preprocess", "encode", "--output", "out", *common),
        *("--set", "preprocess.compute.threads=64"),
    )
    serve = start("-m", "realcustom", "serve", "--set", "serve.num_cpus=64")
    for process, setting in ((train, "num_workers=64"), (encode, "compute.threads=64"), (serve, "num_cpus=64")):
        out, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 2 and out.startswith("error: ") and out.count("\n") == 1, out
        assert f"{setting} asks for 64 CPUs, and the Ray that this command starts has" in out

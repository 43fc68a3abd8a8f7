"""An object store that goes away in the middle of a run is waited for; one that is not there at the start is said at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from realcustom import storage
from realcustom.pipeline.cli.main import run
from realcustom.retry import RetrySettings
from realcustom.store import StorageRefused, Store
from realcustom.training.batches import BatchMaker
from realcustom.training.run import TrainResult
from realcustom.training.worker import Worker
from tests.support.object_store import ObjectStore
from tests.support.training_runs import SETTINGS, curve, fit, write_settings

FROM_STORAGE = replace(SETTINGS, memory_gib=0, open_parts=1)  # a file is read anew whenever another one was read


@pytest.fixture
def records(bucket: str, world: SimpleNamespace) -> str:
    for path in Path(world.caches).iterdir():
        storage.write_bytes(f"{bucket}/records/{path.name}", path.read_bytes())
    return f"{bucket}/records"


@pytest.fixture
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names an address where nothing answers."""
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:9", "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that this process slept between two tries."""
    sleep, seconds = time.sleep, []

    def counted(wait: float) -> None:
        seconds.append(wait)
        sleep(wait)

    monkeypatch.setattr("realcustom.retry.time.sleep", counted)
    return seconds


def at_step(step: int, kind: type, method: str, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """`action` once, before the call of a method that belongs to optimizer step `step`."""
    original, calls = getattr(kind, method), []

    def wrapped(self: object, *arguments: object) -> object:
        calls.append(method)
        if len(calls) == step:
            action()
        return original(self, *arguments)

    monkeypatch.setattr(kind, method, wrapped)


@pytest.mark.parametrize(
    ("kind", "method"),
    [pytest.param(BatchMaker, "training", marks=pytest.mark.slow), (Worker, "_after_step")],
    ids=["reading", "writing"],
)
@pytest.mark.parametrize(
    ("seconds", "retries"),
    [(7.0, RetrySettings(backoff=0.1)), pytest.param(60.0, RetrySettings(), marks=pytest.mark.slow)],
    ids=["seconds", "a minute"],
)
def test_an_outage_in_the_middle_of_a_run_changes_no_byte(
    kind: type,
    method: str,
    seconds: float,
    retries: RetrySettings,
    world: SimpleNamespace,
    object_store: ObjectStore,
    records: str,
    waits: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store is away before the batch of step 5 is read, or before the checkpoint after it is written."""
    expected = fit(world, tmp_path / "run", FROM_STORAGE)
    at_step(5, kind, method, lambda: object_store.away(seconds), monkeypatch)
    start = time.monotonic()
    result = fit(world, records.replace("records", "run"), replace(FROM_STORAGE, retries=retries), records=records)
    assert time.monotonic() - start > seconds and waits  # longer than the storage's own client waits
    assert result.sha256 == expected.sha256 and curve(result) == curve(expected)
    assert Store().read(result.adapter) == Path(expected.adapter).read_bytes()


@pytest.mark.slow
def test_a_run_on_ray_waits_for_a_minute_too(
    world: SimpleNamespace, object_store: ObjectStore, records: str, undisturbed: TrainResult, tmp_path: Path
) -> None:
    """A command with a cluster of its own, whose processes all read the store's address from their environment."""
    write_settings(tmp_path / "settings.yaml", world.base, world.image_encoder, SETTINGS)
    arguments = [
        "train",
        "--input",
        records,
        "--output",
        "s3://corpus/run",
        "--config",
        str(tmp_path / "settings.yaml"),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = subprocess.Popen(
        [sys.executable, "-c", "from realcustom.pipeline.cli.main import main; main()", *arguments], env=environment
    )
    try:
        while command.poll() is None and not Store().exists("s3://corpus/run/settings.yaml"):
            time.sleep(0.05)
        object_store.away(60.0)
        start = time.monotonic()
        assert command.wait(timeout=400) == 0
        assert time.monotonic() - start > 60.0
    finally:
        command.kill()
    assert Store().read("s3://corpus/run/adapter.safetensors") == Path(undisturbed.adapter).read_bytes()


@pytest.mark.slow
def test_a_store_that_stays_away_ends_the_run_in_words_and_it_can_be_continued(
    world: SimpleNamespace, object_store: ObjectStore, bucket: str, undisturbed: TrainResult
) -> None:
    settings = replace(SETTINGS, retries=RetrySettings(attempts=1))
    with pytest.MonkeyPatch.context() as patch:
        at_step(7, Worker, "_after_step", lambda: object_store.away(60.0), patch)
        patch.setattr("realcustom.training.metrics.WRITE_SECONDS", 0.0)
        with pytest.raises(StorageRefused, match=r"cannot (read|write) s3://corpus/run/\S+: nothing answers") as caught:
            fit(world, f"{bucket}/run", settings)
    assert "\n" not in str(caught.value)
    object_store.come_back()
    assert fit(world, f"{bucket}/run", settings).sha256 == undisturbed.sha256


@pytest.mark.parametrize("argument", ["records", "output", "initial_adapter"])
def test_a_store_that_is_not_there_at_the_start_is_said_within_seconds(
    argument: str, world: SimpleNamespace, tmp_path: Path, no_store: None
) -> None:
    start = time.monotonic()
    with pytest.raises(StorageRefused, match="nothing answers at the store's address"):
        fit(world, **{"output": str(tmp_path), argument: f"s3://bucket/{argument}"})  # type: ignore[arg-type]
    assert time.monotonic() - start < 15


def test_the_command_line_says_so_in_one_line(
    world: SimpleNamespace, tmp_path: Path, no_store: None, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--base", world.base, "--image-encoder", world.image_encoder, "--local"]
    start = time.monotonic()
    for records, output in (("s3://bucket/records", str(tmp_path)), (world.caches, "s3://bucket/run")):
        assert run(["train", "--input", records, "--output", output, *models]) == 2
        assert "nothing answers at the store's address" in capsys.readouterr().err.splitlines()[-1]
    assert time.monotonic() - start < 15


def test_a_bucket_that_does_not_exist_is_said_at_once(world: SimpleNamespace, bucket: str, tmp_path: Path) -> None:
    for arguments in ({"records": "s3://other/records", "output": tmp_path}, {"output": "s3://other/run"}):
        with pytest.raises(StorageRefused, match=r"s3://other/r.*the bucket does not exist"):
            fit(world, **arguments)

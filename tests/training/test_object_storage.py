"""A run whose records and output are on object storage, killed and continued."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import boto3  # type: ignore[import-untyped]
import pytest
from moto.server import ThreadedMotoServer

from realcustom import storage
from tests.training.runs import Killed, curve, fit, kill_at
from training.checkpoints import list_checkpoints
from training.run import TrainResult


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
    for name, value in {**variables, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    try:
        boto3.client("s3").create_bucket(Bucket="training")
        yield "s3://training"
    finally:
        server.stop()


def test_run_on_object_storage_resumes_to_the_same_bytes(
    bucket: str, world: SimpleNamespace, undisturbed: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in Path(world.caches).iterdir():
        storage.write_bytes(f"{bucket}/records/{path.name}", path.read_bytes())
    with monkeypatch.context() as patch:
        kill_at(7, patch)
        with pytest.raises(Killed):
            fit(world, f"{bucket}/run", records=f"{bucket}/records")
    assert [uri.rpartition("/")[2] for uri in list_checkpoints(f"{bucket}/run/checkpoints")] == [
        "step-00000005.safetensors"
    ]
    result = fit(world, f"{bucket}/run", records=f"{bucket}/records")
    assert result.adapter == f"{bucket}/run/adapter.safetensors"
    assert result.sha256 == undisturbed.sha256 and curve(result) == curve(undisturbed)
    assert fit(world, f"{bucket}/run", records=f"{bucket}/records") == result
    assert len(list_checkpoints(f"{bucket}/run/checkpoints")) == 2

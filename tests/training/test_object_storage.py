"""A run whose records and output are on object storage, killed and continued."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from realcustom import storage
from realcustom.store import Store
from realcustom.training.checkpoints import list_checkpoints
from realcustom.training.run import TrainResult
from tests.support.training_runs import curve, fit, fit_killed


def test_run_on_object_storage_resumes_to_the_same_bytes(
    bucket: str, world: SimpleNamespace, undisturbed: TrainResult
) -> None:
    for path in Path(world.caches).iterdir():
        storage.write_bytes(f"{bucket}/records/{path.name}", path.read_bytes())
    fit_killed(7, world, f"{bucket}/run", records=f"{bucket}/records")
    assert [uri.rpartition("/")[2] for uri in list_checkpoints(f"{bucket}/run/checkpoints", Store())] == [
        "step-00000005.safetensors"
    ]
    assert b"validation loss" in storage.read_bytes(f"{bucket}/run/report.html")  # also while it is under way
    result = fit(world, f"{bucket}/run", records=f"{bucket}/records")
    assert result.adapter == f"{bucket}/run/adapter.safetensors"
    assert result.sha256 == undisturbed.sha256 and curve(result) == curve(undisturbed)
    assert fit(world, f"{bucket}/run", records=f"{bucket}/records") == result
    assert len(list_checkpoints(f"{bucket}/run/checkpoints", Store())) == 2

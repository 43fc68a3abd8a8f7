"""A disk that is full while a run trains, a real one: one line, no new workers, and with room the same run goes on."""

from __future__ import annotations

import errno
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from realcustom.store import StorageRefused, refusals
from realcustom.training.failures import Failure, full_disk
from realcustom.training.run import TrainResult
from tests.support.mounts import mounted, resize
from tests.support.training_runs import SETTINGS, fit

ENDLESS = replace(SETTINGS, max_failures=-1, keep_checkpoints=1)  # new workers would meet the same disk


@pytest.mark.parametrize("local", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["here", "on Ray"])
def test_a_full_disk_is_one_line_and_with_room_the_run_goes_on(
    local: bool, world: SimpleNamespace, undisturbed: TrainResult, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not local:
        request.getfixturevalue("ray_cluster")
    size = sum(path.stat().st_size for path in Path(undisturbed.adapter).parent.rglob("step-00000010.safetensors"))
    with mounted(tmp_path / "disk", f"size={2 * size}") as disk:  # the checkpoint after step 5 has room
        with pytest.raises(StorageRefused, match=r"cannot write \S+: the disk is full \(ENOSPC\)$") as caught:
            fit(world, disk / "run", ENDLESS, local=local)
        assert "\n" not in str(caught.value)
        assert not list(disk.rglob(".tmp-*"))
        assert [path.name for path in (disk / "run" / "checkpoints").iterdir()] == ["step-00000005.safetensors"]
        resize(disk, 2**24)
        assert fit(world, disk / "run", ENDLESS, local=local).sha256 == undisturbed.sha256


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_what_comes_of_a_full_disk_is_the_user_s_to_mend(number: int) -> None:
    with pytest.raises(StorageRefused) as refused, refusals("write", "/out/file"):
        raise OSError(number, "no room")
    assert full_disk(refused.value) is refused.value
    raised = OSError(number, "no room", "/tmp/file")  # by a library that writes by itself
    for error, said in ((refused.value, str(refused.value)), (raised, "cannot write /tmp/file: no room (E")):
        failure = pickle.loads(pickle.dumps(Failure.of(error)))
        assert failure.final and str(failure.to_error()).startswith(said)
    with pytest.raises(StorageRefused) as refused, refusals("read", "/in/file"):
        raise OSError(errno.EIO, "a broken disk")
    for error in (refused.value, OSError(errno.EIO, "a broken disk"), OSError("no number")):
        assert full_disk(error) is None and not Failure.of(error).final

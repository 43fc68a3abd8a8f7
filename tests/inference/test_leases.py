"""Leases, the router's choice and the autoscaler's number, without a cluster."""

from __future__ import annotations

import asyncio
import pickle
import time
from typing import Any, NamedTuple

import pytest
from ray.serve.config import AutoscalingContext
from ray.serve.request_router import PendingRequest

from realcustom.inference import errors
from realcustom.inference.leases import Leases
from realcustom.inference.routing import BUSIER, HoldersFirst
from realcustom.inference.scaling import ByQueuedSeconds


def test_what_is_not_renewed_is_ended() -> None:
    ended: list[str] = []
    leases = Leases(seconds=0.2)
    for name in ("kept", "lost", "done"):
        leases.add(name, lambda name=name: ended.append(name))  # type: ignore[misc]
    leases.remove("done")
    time.sleep(0.12)
    leases.renew(["kept", "of another engine"])
    assert leases.end_late() == 0
    time.sleep(0.12)
    assert leases.end_late() == 0  # not asked for its health since: it may be one that drains
    leases.in_service()
    assert leases.end_late() == 1 and ended == ["lost"] and len(leases) == 1


def test_an_engine_that_stood_still_ends_nothing_for_it() -> None:
    ended: list[str] = []
    leases = Leases(seconds=0.2, every=0.05)
    leases.add("waited for", lambda: ended.append("waited for"))
    time.sleep(0.4)  # nothing ran on the event loop, renewals neither
    assert leases.end_late() == 0
    leases.renew(["waited for"])
    for _ in range(6):
        time.sleep(0.05)
        leases.in_service()
        leases.end_late()
    assert ended == ["waited for"]  # nobody renewed it while the loop ran


def test_time_before_the_first_request_is_not_one_that_stood_still() -> None:
    ended: list[str] = []
    leases = Leases(seconds=0.1, every=0.05)
    time.sleep(0.3)
    leases.begin()
    leases.add("left", lambda: ended.append("left"))
    for _ in range(4):
        time.sleep(0.05)
        leases.in_service()
        leases.end_late()
    assert ended == ["left"]


class _Id:
    def __init__(self, unique_id: str) -> None:
        self.unique_id = unique_id


class _Replica:
    """As much of a replica as the router reads: what the replica told."""

    def __init__(self, name: str, jobs: int, *holds: str) -> None:
        self.replica_id, self.routing_stats = _Id(name), {"jobs": jobs, "holds": list(holds)}


def _groups(replicas: list[_Replica], **call: Any) -> list[list[str]]:
    router = HoldersFirst.__new__(HoldersFirst)  # its choice uses none of Ray's state
    request = PendingRequest.__new__(PendingRequest)
    request.kwargs = call
    groups = asyncio.run(router.choose_replicas(replicas, request))
    return [[one.replica_id.unique_id for one in group] for group in groups]


def test_holders_first_unless_much_busier() -> None:
    plain, adapter, subject = _Replica("p", 0), _Replica("a", 1, "sha"), _Replica("s", 9, "subject-1")
    replicas = [plain, adapter, subject]
    assert _groups(replicas) == [["p", "a", "s"]]
    assert _groups(replicas, wants=("sha",)) == [["a"], ["p", "s"]]
    assert _groups(replicas, wants=("sha", "subject-1")) == [["s"], ["a"], ["p"]]
    adapter.routing_stats["jobs"] = BUSIER + 1
    assert _groups(replicas, wants=("sha",)) == [["p", "a", "s"]]
    assert _groups(replicas, wants=("sha", "subject-1"), avoid=("s",)) == [["p", "a"]]
    assert _groups([plain], avoid=("p",)) == [["p"]]


class _Point(NamedTuple):
    """What an engine told, and when."""

    timestamp: float
    value: float


@pytest.mark.parametrize(
    ("seconds", "requests", "wanted"), [([], 0, 0), ([], 2, 1), ([0.0], 0, 0), ([15.0, 30.0], 5, 3), ([1.0], 1, 1)]
)
def test_as_many_engines_as_the_work_needs(seconds: list[float], requests: int, wanted: int) -> None:
    told = {number: [_Point(1.0, 99.0), _Point(2.0, last)] for number, last in enumerate(seconds)}
    context = AutoscalingContext.__new__(AutoscalingContext)
    context.__dict__.update(
        _raw_metrics_value={"queued_seconds": told | {"new": []}}, _total_num_requests_value=requests
    )
    assert ByQueuedSeconds(20.0)(context) == (wanted, {})


def test_errors_keep_their_kind_between_processes() -> None:
    for error in (
        errors.QueueFull("full", 7),
        errors.Internal(),
        errors.WordNotInPrompt("no such word", "subjects[0].word"),
        errors.EngineLost("gone"),
    ):
        other = pickle.loads(pickle.dumps(error))
        assert type(other) is type(error) and str(other) == str(error)
        assert (other.body(), other.headers(), other.status) == (error.body(), error.headers(), error.status)

"""What is said of a process of the endpoint that the cluster has no room for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from realcustom.inference.app import API, APP_NAME, ENGINE
from realcustom.inference.room import lacking
from realcustom.inference.settings import ServeSettings
from tests.support.waiting import wait_for

SETTINGS = ServeSettings(num_cpus=8.0, api_cpus=90.0)


class Replica:
    """Named as Serve names a replica; its constructor takes as long as `go_on` is not there."""

    def __init__(self, go_on: str) -> None:
        while not os.path.exists(go_on):
            time.sleep(0.05)


@pytest.fixture
def replica(ray_cluster: str, tmp_path: Path) -> Iterator[Callable[[str, float], None]]:
    def make(deployment: str, num_cpus: float) -> None:
        name = f"SERVE_REPLICA::{APP_NAME}#{deployment}#x"
        made.append(remote.options(name=name, num_cpus=num_cpus).remote(str(tmp_path / "go on")))

    remote: Any = ray.remote(Replica)
    made: list[Any] = []
    yield make
    for one in made:
        ray.kill(one)


def test_only_what_has_no_place_waits_for_room(replica: Callable[[str, float], None]) -> None:
    assert lacking(SETTINGS) is None
    replica(ENGINE, 8.0)
    wait_for(lambda: ray.available_resources().get("CPU", 0.0) < 8.0, 60.0)
    wait_for(lambda: lacking(SETTINGS) is None, 60.0)  # it has taken all there is, and loads
    replica(API, 90.0)
    wait_for(lambda: lacking(SETTINGS) is not None, 60.0)
    assert lacking(SETTINGS) == ("no node of the cluster has 90 CPU, as serve.api_cpus asks for a process of the API")


def test_an_engine_waits_while_others_have_its_room(replica: Callable[[str, float], None]) -> None:
    replica("of another", 8.0)
    wait_for(lambda: ray.available_resources().get("CPU", 0.0) < 8.0, 60.0)
    replica(ENGINE, 8.0)
    wait_for(lambda: lacking(SETTINGS) is not None, 60.0)
    assert "the cluster has 0 CPU and 0 GPU free, not 8 CPU, as serve.num_cpus" in str(lacking(SETTINGS))

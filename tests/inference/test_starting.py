"""What waiting for the endpoint asks of the cluster."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray import serve
from ray.serve.schema import ApplicationStatus

from realcustom.errors import UsageError
from realcustom.inference import starting
from realcustom.inference.app import APP_NAME
from realcustom.inference.settings import ServeSettings
from tests.support.loopback import free_port


def test_the_cluster_is_asked_for_all_actors_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    application = SimpleNamespace(deployments={}, message="", status=ApplicationStatus.DEPLOYING)
    status = SimpleNamespace(applications={APP_NAME: application})
    monkeypatch.setattr(serve, "status", lambda: status)
    looks: list[ServeSettings] = []
    monkeypatch.setattr(starting, "lacking", looks.append)  # which says None: nothing lacks
    monkeypatch.setattr(starting, "_LOOK_SECONDS", 0.5)
    settings = ServeSettings(port=free_port(), load_timeout_seconds=0.95)
    with pytest.raises(UsageError, match="may be large"):
        starting._wait_until_ready(f"http://127.0.0.1:{settings.port}", "it", settings)
    assert 1 <= len(looks) <= 2  # after half of the time, and for the last word

"""What waiting for the endpoint asks of the cluster."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace

import httpx
import pytest
from ray import serve
from ray.serve.schema import ApplicationStatus

from realcustom.errors import UsageError
from realcustom.inference import starting
from realcustom.inference.app import APP_NAME
from realcustom.inference.settings import ServeSettings
from tests.support.loopback import LoopbackServer, free_port, running


def deployed(message: str = "") -> SimpleNamespace:
    return SimpleNamespace(deployments={}, message=message, status=ApplicationStatus.DEPLOYING)


def test_the_cluster_is_asked_for_all_actors_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test's own: the machine may be busy."""

    def refused(*_: object, **__: object) -> None:
        raise httpx.ConnectError("nothing listens")

    now, looks = [0.0], list[ServeSettings]()
    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=lambda seconds: now.append(now.pop() + seconds))
    monkeypatch.setattr(starting, "time", clock)
    monkeypatch.setattr(httpx, "get", refused)
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={APP_NAME: deployed()}))
    monkeypatch.setattr(starting, "lacking", looks.append)  # which says None: nothing lacks
    with pytest.raises(UsageError, match="may be large"):
        starting._wait_until_ready("http://127.0.0.1:1", "it", ServeSettings(load_timeout_seconds=12))
    assert len(looks) == 3  # after five seconds, after five more, and for the last word


def test_a_mistake_of_any_kind_in_a_process_is_said_as_one() -> None:
    """As of a node whose credentials do not reach an adapter."""
    trace = (
        "Traceback (most recent call last):\n  ...\nrealcustom.store.AccessDenied: cannot read s3://b/a: access denied"
    )
    with pytest.raises(UsageError, match=r"^cannot read s3://b/a: access denied$"):
        starting._check_failures(deployed(trace))
    chained = f"{trace}\n\nThe above exception was ...\n\nrealcustom.errors.UsageError: the adapter is not there"
    with pytest.raises(UsageError, match=r"^the adapter is not there$"):
        starting._check_failures(deployed(chained))
    with pytest.raises(RuntimeError, match="KeyError"):
        starting._check_failures(deployed("Traceback (most recent call last):\nKeyError: 'a'"))


def test_no_proxy_is_asked_whether_this_machine_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"instance": "it", "status": "ready"}')

    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={APP_NAME: deployed()}))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with running(LoopbackServer(Ready)) as server:
        starting._wait_until_ready(server.url, "it", ServeSettings(load_timeout_seconds=5))

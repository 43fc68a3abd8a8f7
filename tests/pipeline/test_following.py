"""A job is followed to its end: through a cluster that is in trouble, and to a status that says what became of it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import pty
import sys
import time
from typing import Any

import pytest

from realcustom.errors import UsageError
from realcustom.pipeline import following
from realcustom.pipeline.cli import submit as submit_verb
from realcustom.pipeline.cli.main import run
from realcustom.pipeline.following import follow
from realcustom.pipeline.jobs_api import JobsApi
from tests.support.dashboard import Dashboard
from tests.support.loopback import running

RUNNING: dict[str, object] = {"submission_id": "a", "status": "RUNNING"}


def ended(status: str, code: int | None) -> dict[str, object]:
    return {"submission_id": "a", "status": status, "driver_exit_code": code}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    monkeypatch.setattr(following, "PAUSE_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 143)],
)
def test_the_status_is_the_program_s_as_a_shell_says_it(
    capsys: pytest.CaptureFixture[str], status: str, code: int | None, expected: int
) -> None:
    with running(Dashboard(states=[RUNNING, ended(status, code)], output="a line\n")) as server:
        assert run(["jobs", "logs", "a", "--follow", "--address", server.url]) == expected
        assert capsys.readouterr().out == "a line\n"
        assert run(["jobs", "wait", "a", "--address", server.url]) == expected


def test_a_job_that_waits_for_room_says_what_is_in_use(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(following, "SAY_SECONDS", 0.0)
    pending: dict[str, object] = {"submission_id": "a", "status": "PENDING", "message": "Job has not started yet."}
    with running(Dashboard(states=[pending, RUNNING, ended("SUCCEEDED", 0)])) as server:
        assert follow(JobsApi(server.url), "a", print).exit_status() == 0
    assert "job a waits; in use on each node: 1.0/2.0 CPU, 0B/4.00GiB memory" in caplog.messages


def test_a_name_is_one_part_of_a_path() -> None:
    with running(Dashboard(states=[RUNNING, ended("SUCCEEDED", 0)])) as server:
        assert follow(JobsApi(server.url), "../b?c", print).exit_status() == 0
        assert JobsApi(server.url).stop("a/b#c")
    asked = {request.removesuffix("/logs") for request in server.asked}
    assert asked == {"GET /api/jobs/..%2Fb%3Fc", "GET /api/jobs/..%2Fb%3Fc/logs/tail", "POST /api/jobs/a%2Fb%23c/stop"}


def test_a_proxy_is_asked_for_other_machines_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with running(Dashboard(states=[RUNNING, ended("SUCCEEDED", 0)])) as proxy, running(Dashboard()) as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        JobsApi(server.url).version()
        for address in (server.url, "http://head.invalid:8265"):
            asyncio.run(following._tail(JobsApi(address), "a", 0, print))
    assert server.asked == ["GET /api/version", "GET /api/jobs/a/logs/tail"]
    assert proxy.asked == ["GET http://head.invalid:8265/api/jobs/a/logs/tail"]


def test_waiting_for_a_job_does_not_ask_for_its_output() -> None:
    with running(Dashboard(states=[RUNNING, RUNNING, ended("SUCCEEDED", 0)])) as server:
        assert run(["jobs", "wait", "a", "--address", server.url]) == 0
        assert server.asked == ["GET /api/jobs/a"] * 3


@pytest.mark.parametrize("trouble", [500, 502, 503])
def test_a_dashboard_in_trouble_is_asked_again(caplog: pytest.LogCaptureFixture, trouble: int) -> None:
    caplog.set_level(logging.INFO)
    with running(Dashboard(states=[RUNNING, trouble, trouble, RUNNING, ended("SUCCEEDED", 0)], output="b")) as server:
        said: list[str] = []
        job = follow(JobsApi(server.url), "a", said.append)
    assert job.exit_status() == 0 and "".join(said) == "b"
    assert [text for text in caplog.messages if "answer" in text] == [
        "the cluster does not answer; trying again for 300 s",
        "the cluster answers again",
    ]


@pytest.mark.parametrize(("after", "said"), [(503, "has not answered for 0 s"), (404, "it was started anew")])
def test_a_head_that_is_lost_is_said_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], after: int, said: str
) -> None:
    monkeypatch.setattr(following, "PATIENCE_SECONDS", 0.1)
    with running(Dashboard(states=[RUNNING, after])) as server:
        assert run(["jobs", "logs", "a", "--follow", "--address", server.url]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("job a lost, exit status 1: ")]
    assert said in line and "the same command, submitted again, goes on" in line


def test_a_job_of_a_node_that_is_gone_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The head was lost and restored: its jobs are said to run for ever."""
    monkeypatch.setattr(following, "NODE_SECONDS", 0.3)
    placed = RUNNING | {"driver_node_id": "b7"}
    with running(Dashboard(states=[placed])) as server:
        server.nodes = [{"state": "DEAD", "node_id": "b7"}, {"state": "ALIVE", "node_id": "c9"}]
        assert run(["jobs", "logs", "a", "--follow", "--address", server.url]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("job a lost, exit status 1: ")]
    assert "said to run on the node b7, which is not among the living ones; the same command, submitted again" in line


def test_a_node_that_is_missed_for_a_moment_loses_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "NODE_SECONDS", 0.3)
    placed = RUNNING | {"driver_node_id": "b7"}

    class Slow(Dashboard):
        def state(self) -> dict[str, object] | int:
            self.nodes = [{"state": "DEAD" if len(self.asked) < 2 else "ALIVE", "node_id": "b7"}]
            return super().state()

    with running(Slow(states=[*[placed] * 40, ended("SUCCEEDED", 0)])) as server:
        assert follow(JobsApi(server.url), "a", None).exit_status() == 0
        asked = [request for request in server.asked if "/api/v0/nodes" in request]
    assert len(asked) >= 2


def test_a_node_is_not_asked_for_at_each_turn() -> None:
    placed = RUNNING | {"driver_node_id": "b7"}
    with running(Dashboard(states=[*[placed] * 20, ended("SUCCEEDED", 0)])) as server:
        server.nodes = [{"state": "ALIVE", "node_id": "b7"}]
        assert follow(JobsApi(server.url), "a", None).exit_status() == 0
    assert len([request for request in server.asked if "/api/v0/nodes" in request]) == 1


def test_a_job_that_was_never_there_is_a_mistake() -> None:
    with running(Dashboard()) as server, pytest.raises(UsageError, match="no job a on the cluster"):
        follow(JobsApi(server.url), "a", None)


def test_output_of_a_node_that_is_gone_is_missed_aloud(caplog: pytest.LogCaptureFixture) -> None:
    class WithoutLogs(Dashboard):
        def logs(self) -> tuple[int, object]:
            return 500, "Traceback\n  ...\naiohttp.ClientConnectorError: no agent there"

    with running(WithoutLogs(states=[ended("FAILED", None)])) as server:
        assert follow(JobsApi(server.url), "a", print).exit_status() == 1
    assert "the job's last lines cannot be had: " in caplog.text


def test_last_lines_are_asked_for_again(caplog: pytest.LogCaptureFixture) -> None:
    class InTrouble(Dashboard):
        def logs(self) -> tuple[int, object]:
            return (503, "Traceback") if self.asked.count("GET /api/jobs/a/logs") < 3 else super().logs()

    said: list[str] = []
    with running(InTrouble(states=[ended("FAILED", 1)], output="the reason\n")) as server:
        assert follow(JobsApi(server.url), "a", said.append).exit_status() == 1
    assert said == ["the reason\n"] and not caplog.messages


@pytest.mark.parametrize(("answer", "stopped"), [(b"y\n", True), (b"n\n", False), (b"\n", False)])
def test_ctrl_c_asks_once_whether_the_job_is_to_end_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: bytes, stopped: bool
) -> None:
    ours, terminal = pty.openpty()
    with running(Dashboard(states=itertools.repeat(RUNNING))) as server, os.fdopen(terminal) as stdin:

        class Terminal:
            """A stderr that is one, and is captured."""

            written = ""

            def isatty(self) -> bool:
                return True

            def write(self, text: str) -> None:
                self.written += text

            def flush(self) -> None:
                pass

        stderr = Terminal()
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sys, "stderr", stderr)
        os.write(ours, answer)

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(time, "sleep", interrupt)
        assert submit_verb.follow_to_end(server.url, "a") == 130
        assert ("POST /api/jobs/a/stop" in server.asked) is stopped
        assert stderr.written.count("stop the job a as well?") == 1
        assert ("is asked to end" in stderr.written) is stopped and ("goes on" in stderr.written) is not stopped
    os.close(ours)

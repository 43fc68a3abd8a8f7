"""Ray's jobs over HTTP, with its errors in one sentence each. No Ray is imported: an answer comes within seconds."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from realcustom.errors import UsageError
from realcustom.pipeline.cluster import NODE_GROUP
from realcustom.proxies import is_loopback

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
TIMEOUT = httpx.Timeout(10.0, connect=5.0, write=120.0)  # seconds; a package may take longer to send
CHANGE_TIMEOUT = httpx.Timeout(
    60.0, connect=5.0, write=120.0
)  # a busy head that takes a job or a package is waited for
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_TERMINATED = 143


class Unreachable(UsageError):
    """The cluster does not answer; it may again."""


class Troubled(Unreachable):
    """The cluster answers with a status of 500 or more, as a dashboard does whose head's other parts are away."""


class Absent(UsageError):
    """The cluster has no such thing."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as the cluster tells it."""

    name: str
    status: str
    entrypoint: str = ""
    message: str = ""
    exit_code: int | None = None
    started: float | None = None  # seconds since 1970
    ended: float | None = None
    node: str | None = None  # id of the node that its own process is on
    labels: Mapping[str, str]

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.status in ENDED

    def exit_status(self) -> int:
        """The exit status of its program; 1 where the program did not end by itself, 143 where it was stopped."""
        if self.status == "SUCCEEDED":
            return 0
        if self.status == "STOPPED":
            return _TERMINATED
        code = self.exit_code or 1
        return code if code > 0 else 128 - code  # Ray's -9: SIGKILL ended it; a shell says 137


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of a cluster."""

    total: Mapping[str, float]  # what it has in all, by Ray's names: CPU, GPU, memory in bytes
    launched: bool  # by KubeRay or Ray's launcher, which may add others


class JobsApi:
    """The jobs of one cluster.

    Args:
        address: of the dashboard, `http://HOST:8265`; None: RAY_API_SERVER_ADDRESS or RAY_ADDRESS.
    Raises:
        UsageError: no address is given, or it is not one of HTTP.
    """

    def __init__(self, address: str | None):
        self.url = find_address(address)
        self.headers = _token()

    def version(self) -> str:
        """Ray's version there. Raises UsageError where no Ray dashboard answers."""
        answer = self.ask("GET", "/api/version", absent=f"what answers at {self.url} is no Ray dashboard")
        if "ray_version" not in answer:
            raise UsageError(f"what answers at {self.url} is no Ray dashboard; its address is http://HOST:8265")
        return str(answer["ray_version"])

    def has_package(self, name: str) -> bool:
        """Whether the cluster holds a package."""
        return self._request("GET", f"/api/packages/gcs/{name}").status_code == httpx.codes.OK

    def send_package(self, name: str, data: bytes) -> None:
        """Give the cluster a package."""
        self.ask("PUT", f"/api/packages/gcs/{name}", content=data)

    def submit(self, request: Mapping[str, Any]) -> None:
        """Submit a job. Raises UsageError where its name is taken."""
        self.ask("POST", "/api/jobs/", json=request)

    def get(self, name: str) -> Job:
        """A job. Raises Absent where there is none of that name."""
        return _job(self.ask("GET", path_of(name), absent=self._no_job(name)))

    def all(self) -> list[Job]:
        """All submitted jobs, the first one first."""
        found = [_job(answer) for answer in self.ask("GET", "/api/jobs/") if answer.get("submission_id")]
        return sorted(found, key=lambda job: job.started or 0)

    def logs(self, name: str) -> str:
        """All that a job has written."""
        return str(self.ask("GET", f"{path_of(name)}/logs", absent=self._no_job(name))["logs"] or "")

    def stop(self, name: str) -> bool:
        """Ask a job to end; whether it was running."""
        return bool(self.ask("POST", f"{path_of(name)}/stop", absent=self._no_job(name))["stopped"])

    def nodes(self) -> list[Node]:
        """The living nodes."""
        answer = self.ask("GET", "/api/v0/nodes?detail=1&limit=1000")
        return [
            Node(total=dict(node.get("resources_total") or {}), launched=NODE_GROUP in (node.get("labels") or {}))
            for node in answer["data"]["result"]["result"]
            if node["state"] == "ALIVE"
        ]

    def lives(self, node: str) -> bool:
        """Whether the cluster counts a node, by its id, among the living ones."""
        wanted = f"filter_keys=node_id&filter_predicates=%3D&filter_values={quote(node, safe='')}"
        answer = self.ask("GET", f"/api/v0/nodes?detail=1&limit=1&{wanted}")
        return any(one["state"] == "ALIVE" for one in answer["data"]["result"]["result"])

    def usage(self) -> str:
        """What is in use of what the nodes have, as `1.0/2.0 CPU, 0B/4.00GiB memory; ...`, nodes alike once."""
        answer = self.ask("GET", "/nodes?view=summary")
        texts = (answer["data"].get("nodeLogicalResources") or {}).values()
        return "; ".join(
            sorted({", ".join(line for line in text.splitlines() if "object_store" not in line) for text in texts})
        )

    def ask(self, method: str, path: str, absent: str = "", **body: Any) -> Any:
        """The JSON of an answer; its error as one sentence.

        Args:
            absent: what a 404 means.
        """
        answer = self._request(method, path, **body)
        if answer.status_code == httpx.codes.NOT_FOUND and absent:
            raise Absent(absent)
        if answer.is_error:
            kind = Troubled if answer.is_server_error else UsageError
            raise kind(f"the cluster at {self.url} refuses: {_said(answer)}")
        try:
            return answer.json() if answer.content else {}
        except ValueError as error:
            raise UsageError(
                f"what answers at {self.url} is no Ray dashboard; its address is http://HOST:8265"
            ) from error

    def _request(self, method: str, path: str, **body: Any) -> httpx.Response:
        try:
            trusted = not is_loopback(self.url)
            answer = httpx.request(
                method,
                self.url + path,
                headers=self.headers,
                timeout=TIMEOUT if method == "GET" else CHANGE_TIMEOUT,
                trust_env=trusted,
                **body,
            )
        except (httpx.RemoteProtocolError, httpx.ReadError) as error:
            raise Unreachable(
                f"what answers at {self.url} does not speak HTTP ({error}): give the dashboard's address, as "
                "http://HOST:8265, not the port that drivers join"
            ) from error
        except httpx.HTTPError as error:
            raise Unreachable(
                f"no Ray cluster answers at {self.url} ({error}); give the dashboard's address with --address "
                "http://HOST:8265"
            ) from error
        if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            which = "another token than the one that is set" if self.headers else "a token, and none is set"
            raise UsageError(
                f"the cluster at {self.url} wants {which} ({answer.status_code}): put its token in RAY_AUTH_TOKEN, in a file "
                "that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token (`ray get-auth-token` prints it there), and leave "
                "RAY_AUTH_MODE unset or `token`"
            )
        return answer

    def _no_job(self, name: str) -> str:
        return f"no job {name} on the cluster at {self.url}; `realcustom jobs list` names those that are there"


def path_of(name: str) -> str:
    """The path of a job in the cluster's URLs; a name may hold any characters."""
    return f"/api/jobs/{quote(name, safe='')}"


def find_address(address: str | None) -> str:
    """The dashboard's URL, of an option or of Ray's own variables. Raises UsageError where it cannot be one."""
    given = address or next((os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), None)
    if given is None:
        raise UsageError("which cluster? Give --address http://HOST:8265, or set RAY_API_SERVER_ADDRESS")
    if given == "auto":
        return "http://127.0.0.1:8265"
    url = given.rstrip("/") if "://" in given else f"http://{given}"
    try:
        parsed = httpx.URL(url)
        is_address = parsed.scheme in ("http", "https") and bool(parsed.host)
    except (httpx.InvalidURL, ValueError):  # ValueError: brackets that do not close
        is_address = False
    if not is_address:
        raise UsageError(f"jobs are submitted to the dashboard, and {given} is not its address: give http://HOST:8265")
    return url


def _token() -> dict[str, str]:
    """The header with the token, from where Ray itself looks for it."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        named = os.environ.get("RAY_AUTH_TOKEN_PATH")
        place = Path(named) if named else Path.home() / ".ray" / "auth_token"
        if named and not place.is_file():
            raise UsageError(f"RAY_AUTH_TOKEN_PATH names {named}, and there is no such file")
        try:
            token = place.read_text().strip() if place.is_file() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the token in {place}: {error}") from error
    if not token.isascii() or not token.isprintable():
        raise UsageError("the token (RAY_AUTH_TOKEN, or the file with it) has characters that no header can carry")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _job(answer: Mapping[str, Any]) -> Job:
    metadata = answer.get("metadata") or {}
    times = [answer[name] / 1000 if answer.get(name) else None for name in ("start_time", "end_time")]
    return Job(
        name=str(answer.get("submission_id") or answer.get("job_id")),
        status=str(answer["status"]),
        entrypoint=str(metadata.get("verb") or answer.get("entrypoint") or ""),
        message=" ".join(str(answer.get("message") or "").split()),
        exit_code=answer.get("driver_exit_code"),
        started=times[0],
        ended=times[1],
        node=answer.get("driver_node_id"),
        labels={name[6:]: value for name, value in metadata.items() if name.startswith("label:")},
    )


def _said(answer: httpx.Response) -> str:
    """What an error says: of a trace, its last error."""
    lines = [line.strip() for line in answer.text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return [*lines[-1:], *errors][-1][:500] if lines else f"HTTP {answer.status_code}"

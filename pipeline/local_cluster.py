"""Several Ray nodes, and an object store, on this machine: for trying what is meant for a cluster.

Every port is chosen among those that are free, so that any number of such clusters can be on one machine, and each node
has a folder of its own, as on machines of their own. All of it listens on loopback and ends with its owner.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from realcustom.conditional import put_if_absent
from realcustom.errors import UsageError
from realcustom.pipeline import owned
from realcustom.store import Store

HOST = "127.0.0.1"
BUCKET = "realcustom"
# Below the ports that Linux gives to outgoing connections, above those that Ray gives to workers by default.
PORTS = range(20000, 32000)
START_SECONDS = 120.0  # for a node or the store to answer
START_TRIES = 4  # of a node: Ray gives it 30 seconds, which are too few where other work keeps the machine busy
STARTED, TOO_SLOW = "Ray runtime started.", "The current node timed out during startup"


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node: the process that holds it, its log, and where its Prometheus metrics are (host:port)."""

    process: subprocess.Popen[bytes]
    log: Path
    metrics: str

    def kill(self) -> None:
        """End all its processes at once, as a machine that is lost."""
        processes = owned.descendants([self.process.pid])
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass(kw_only=True)
class LocalCluster:
    """A running cluster; the first node is the head."""

    folder: Path
    object_store_mb: int  # of each node
    address: str  # of Ray, host:port
    api: str  # URL of its dashboard and jobs
    store: dict[str, str]  # variables that name the object store; empty without one
    started: list[subprocess.Popen[bytes]]  # all that is to end with it
    ports: list[int]  # that it was given: those of a node that is starting are not in use yet
    head_cpus: int
    keeps_state: bool  # what the head knows of the cluster outlives its process
    nodes: list[Node] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Variables with which a command uses this cluster and its store."""
        return {
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.api,
            "RAY_AUTH_MODE": "token",
            **self.store,
        }

    def add_node(self, cpus: int) -> Node:
        """Start a further node; returns when it has joined. Raises UsageError, quoting its log, where it does not."""
        self.nodes.append(self._start_node((f"--address={self.address}",), cpus))
        return self.nodes[-1]

    def start_head(self) -> Node:
        """Start the head, or, where it was lost, the next one, at the same address; it is the first node then.

        Where the cluster keeps its state, the next one knows its jobs, and the other nodes stay with it.
        """
        gcs, dashboard = (address.rpartition(":")[2] for address in (self.address, self.api))
        role = ("--head", f"--port={gcs}", "--include-dashboard=true", f"--dashboard-port={dashboard}")
        state = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(self.folder / "gcs")}
        client = f"--ray-client-server-port={self._more_ports(1)[0]}"
        head = self._start_node((*role, client), self.head_cpus, state if self.keeps_state else {})
        self.nodes.insert(0, head)
        return head

    def wait_for_api(self) -> None:
        """Return when jobs can be submitted."""
        _wait_for(self.api, self.nodes[0].process, self.nodes[0].log)

    def _start_node(
        self, role: Sequence[str], cpus: int, variables: Mapping[str, str] | None = None, tries: int = START_TRIES
    ) -> Node:
        ports, log = self._more_ports(4), self.folder / f"node-{len(self.started)}.log"
        command = _node_command(role, ports, cpus, self.object_store_mb, self.folder / f"n{len(self.started)}")
        # Ray Train asks the dashboard from a worker, which would look for it on the whole machine
        environment = {**self.store, **(variables or {}), "RAY_API_SERVER_ADDRESS": self.api}
        process = _start(command, log, environment, self.started)
        try:
            _until(lambda: STARTED in log.read_text(errors="replace"), process, log)
        except UsageError:
            if tries == 1 or TOO_SLOW not in log.read_text(errors="replace"):
                raise
            return self._start_node(role, cpus, variables, tries - 1)
        return Node(process=process, log=log, metrics=f"{HOST}:{ports[3]}")

    def _more_ports(self, number: int) -> list[int]:
        found = free_ports(number, besides=self.ports)
        self.ports += found
        return found


@contextlib.contextmanager
def local_cluster(
    nodes: int,
    cpus: int,
    *,
    s3: bool = False,
    object_store_mb: int = 200,
    head_cpus: int | None = None,
    keeps_state: bool = False,
) -> Iterator[LocalCluster]:
    """A cluster that runs inside the block. Whatever ends this process ends it too.

    Args:
        nodes: the head included.
        cpus: logical CPUs of each node.
        s3: with an S3 server, which holds an empty bucket `realcustom` in memory.
        object_store_mb: of each node, in the machine's shared memory.
        head_cpus: those of the head; None: as of the others.
        keeps_state: what the head knows of the cluster outlives its process, as with KubeRay's embedded store.
    Raises:
        UsageError: something that it needs is not installed, or a node does not start; its log is quoted.
    """
    _require_packages(s3)
    _make_token()
    folder = Path(tempfile.mkdtemp(prefix="realcustom-"))  # short: it holds Unix sockets
    started: list[subprocess.Popen[bytes]] = []
    try:
        gcs, dashboard, store = ports = free_ports(3)
        cluster = LocalCluster(
            folder=folder,
            object_store_mb=object_store_mb,
            address=f"{HOST}:{gcs}",
            api=f"http://{HOST}:{dashboard}",
            store=_start_store(store, folder, started) if s3 else {},
            started=started,
            ports=ports,
            head_cpus=cpus if head_cpus is None else head_cpus,
            keeps_state=keeps_state,
        )
        cluster.start_head()
        for _ in range(nodes - 1):  # in turn: a node has 30 seconds to start, whatever else the machine does
            cluster.add_node(cpus)
        cluster.wait_for_api()
        yield cluster
    finally:
        owned.end(owned.descendants(process.pid for process in started))
        for process in started:
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(number: int, besides: Collection[int] = ()) -> list[int]:
    """Ports of loopback on which nothing listens, all different, none of `besides`."""
    found: list[int] = []
    with contextlib.ExitStack() as held:  # together: else one of them might be given twice
        for port in random.SystemRandom().sample(PORTS, len(PORTS)):
            if port in besides:
                continue
            probe = held.enter_context(socket.socket())
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            found.append(port)
            if len(found) == number:
                return found
    raise UsageError(f"fewer than {number} ports from {PORTS.start} to {PORTS.stop} are free on this machine")


def _node_command(
    role: Sequence[str], ports: Sequence[int], cpus: int, object_store_mb: int, folder: Path
) -> list[str]:
    names = (
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
    )
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *role),
        *(f"--node-ip-address={HOST}", f"--num-cpus={cpus}", "--num-gpus=0", f"--temp-dir={folder}"),
        f"--object-store-memory={object_store_mb * 2**20}",
        *("--node-manager-port=0", "--object-manager-port=0", "--min-worker-port=0", "--max-worker-port=0"),
        *(f"--{name}={port}" for name, port in zip(names, ports, strict=True)),
    ]


def _start(
    command: Sequence[str], log: Path, store: dict[str, str], started: list[subprocess.Popen[bytes]]
) -> subprocess.Popen[bytes]:
    """Start a process of the cluster in a session of its own: a terminal's Ctrl-C is for us alone."""
    binaries = str(Path(sys.executable).parent)
    environment = {
        "RAY_health_check_period_ms": "1000",  # a lost node is known after 5 s, not 15
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        **store,
        "RAY_AUTH_MODE": "token",
        "PATH": os.pathsep.join([binaries, os.environ.get("PATH", os.defpath)]),  # a job's `python` is ours
        "PYTHONWARNINGS": "ignore",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    started.append(process)
    owned.watch([process.pid], str(log.parent))
    return process


def _start_store(port: int, folder: Path, started: list[subprocess.Popen[bytes]]) -> dict[str, str]:
    url = f"http://{HOST}:{port}"
    program = "import sys; from moto.server import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", program, "--host", HOST, "--port", str(port)]
    log = folder / "store.log"
    process = _start(command, log, {}, started)
    _wait_for(url, process, log)
    urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"), timeout=10).close()
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "realcustom",
        "AWS_SECRET_ACCESS_KEY": "realcustom",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    def answers() -> bool:
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    _until(answers, process, log)


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip().splitlines()
            raise UsageError(f"a part of the cluster did not start: {' / '.join(said[-4:]) or 'it said nothing'}")
        time.sleep(0.1)


def _require_packages(s3: bool) -> None:
    for package, extra in (("ray", "PATH_OF_THE_CLONE[all]"), *([("moto", "moto[server]")] if s3 else [])):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"this needs {package}, which is not installed: pip install '{extra}'")


def _make_token() -> None:
    """The token that this machine's clusters want, where Ray looks for it; one that is there is kept."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    place = Path.home() / ".ray" / "auth_token"
    place.parent.mkdir(mode=0o700, exist_ok=True)
    put_if_absent(str(place), uuid.uuid4().hex.encode(), Store())  # whole at once: another one may start now

"""The Ray cluster of a command: an existing one, or an embedded one that ends with the command."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator

from realcustom.errors import UsageError
from realcustom.machine import available_cores
from realcustom.pipeline import owned

LOCAL_CPUS = 8  # logical CPUs of an embedded cluster, at least: actor pools of a pipeline wait for each other on fewer
PATIENCE_SECONDS = 5.0  # for an address to accept a connection

NODE_GROUP = "ray.io/node-group"  # label of a node that KubeRay or Ray's launcher made, which may add others

NO_DASHBOARD = "http://127.0.0.1:9"  # where nothing answers: an embedded cluster has none

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def connected(address: str | None = None) -> Iterator[None]:
    """A context that is connected to Ray.

    Args:
        address: `host:port` or `ray://host:port` of a cluster, or `auto` for the one that runs on this machine; None =
            the environment variable RAY_ADDRESS, or else an embedded cluster of this machine's CPUs and GPUs. A
            connection that this process already has is used and stays open.
    Raises:
        UsageError: nothing answers at the address.
    """
    check_address(address)
    _prepare_environment(embedded=is_embedded(address))
    import ray  # imported here, so that a command's help and mistakes do not wait for it

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        _join(address)
    else:
        start_local()
    try:
        yield
    finally:
        ray.shutdown()


def start_local(num_cpus: int | None = None) -> str:
    """Start an embedded cluster, connect to it and return its address; a start that fails is tried once more.

    Args:
        num_cpus: logical CPUs; None = this machine's, at least `LOCAL_CPUS`.
    """
    _prepare_environment(embedded=True)
    import ray

    cpus = num_cpus or local_cpus()
    before = owned.descendants([os.getpid()])
    with owned.watching_what_is_started():
        try:
            address = _init_local(cpus)
        except Exception as error:  # a busy machine sometimes misses Ray's fixed time limits
            logger.warning("Ray did not start (%s); trying once more", error)
            ray.shutdown()
            address = _init_local(cpus)
        # Ray itself leaves two helpers behind where this process is killed
        owned.watch([process.pid for process in owned.descendants([os.getpid()]) - before])
    return address


def local_cpus() -> int:
    """Logical CPUs of an embedded cluster."""
    return max(LOCAL_CPUS, available_cores())


def is_embedded(address: str | None) -> bool:
    """Whether `connected(address)` starts an embedded cluster: this machine is all that it will ever have."""
    ray = sys.modules.get("ray")
    named = address or os.environ.get("RAY_ADDRESS")
    return (not named or named == "local") and not (ray is not None and ray.is_initialized())


def check_address(address: str | None) -> None:
    """Report within seconds that nothing answers at `address` (None: RAY_ADDRESS); Ray takes minutes.

    Imports no Ray, so that it can come before anything is written. `auto` and other names are looked up by Ray.
    """
    address = address or os.environ.get("RAY_ADDRESS") or ""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_SECONDS).close()
    except OSError as error:
        message = f"no Ray cluster answers at {address} ({error}); start one or leave --address and RAY_ADDRESS out"
        raise UsageError(message) from error


HARMLESS = (  # log lines of Ray's own parts that do not matter
    "Failed to query Ray Train Controller actor state",  # an embedded cluster has no dashboard
    "Task ServeController.graceful_shutdown failed",  # always fails: the controller has ended by then
    "PYTHON worker processes have been started",  # intended: more logical CPUs than cores
    "Set ray log level from environment variable",
    "have taken more than 30s to",  # Serve's: `serve` says itself what it waits for
    "Failed to get queue length from",  # of a replica that is busy: another one is asked
)


def _prepare_environment(embedded: bool) -> None:
    """Environment variables that Ray and its workers read only while they are imported: Ray's default of
    authentication, explicit so that all processes agree; no log lines about internals of datasets and actors, and no
    colours; on this machine alone no prefix of a worker's lines either, which are the command's own; no progress bars
    of libraries, which a worker's log turns into lines. Workers of an embedded cluster have the command's own priority: at
    Ray's niceness of 15 they stand still while any other program of the machine computes, its daemons among them."""
    if embedded:
        os.environ.setdefault("RAY_worker_niceness", "0")
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "|".join(HARMLESS))
        os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")  # we say ourselves what is waited for
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")
        if embedded:
            os.environ.setdefault("RAY_DISABLE_WORKER_LOG_PREFIX", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")


def _init_local(num_cpus: int) -> str:
    import ray

    # else Ray Train asks that of any cluster that it finds
    os.environ.setdefault("RAY_API_SERVER_ADDRESS", NO_DASHBOARD)
    with _without_harmless():
        context = ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, logging_level=logging.ERROR)
    return str(context.address_info["address"])


@contextlib.contextmanager
def _without_harmless() -> Iterator[None]:
    """A context in which lines on stderr are kept back, and written at its end but for those that are harmless.

    Ray's own library writes to the file descriptor: no logger can be told to be quiet.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            for line in written:
                if not any(text.encode() in line for text in HARMLESS):
                    os.write(2, line)


def _join(address: str) -> None:
    import ray

    try:
        with _without_harmless():
            ray.init(address=address, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError) as error:
        raise UsageError(f"no Ray cluster at {address}: {error}") from error

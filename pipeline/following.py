"""A job's output, shown as it comes, through lost connections, until the job has ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

import aiohttp

from realcustom.pipeline.jobs_api import Absent, Job, JobsApi, Troubled, Unreachable, path_of
from realcustom.proxies import proxy_of
from realcustom.retry import RetrySettings, retry

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 300.0  # for a cluster that does not answer any more
PAUSE_SECONDS = 1.0
LOGS_TRIES = 5  # of the last lines of a job that has ended: with the waits between them a quarter of a minute
SAY_SECONDS = 30.0  # until a job that has not begun is said to wait
NODE_SECONDS = 30.0  # for which the node of a job's process is looked for in vain, before the job is taken for lost
LOST = "LOST"  # the status of a job of which its cluster tells nothing any more; beside Ray's own


def follow(api: JobsApi, name: str, write: Callable[[str], object] | None) -> Job:
    """Hand all that a job writes to `write`, piece by piece; returns the job when it has ended.

    A job whose cluster has not answered for `PATIENCE_SECONDS`, or does not know it any more, has the status `LOST`; so has one
    that is said to run on a node that is gone, as after the head was lost and restored.

    Args:
        write: None: the output is not asked for.
    Raises:
        UsageError: there is no such job.
    """
    shown = 0  # characters of the output
    heard = said = time.monotonic()
    lost = known = False
    place = _Place(api)
    while True:
        try:
            job = api.get(name)
            if lost:
                logger.info("the cluster answers again")
            heard, lost, known = time.monotonic(), False, True
            if job.has_ended:
                if write is not None:
                    _write_rest(api, name, shown, write)
                return job
            if job.status == "PENDING":
                if time.monotonic() - said > SAY_SECONDS:
                    said = time.monotonic()
                    logger.info("job %s waits; in use on each node: %s", name, api.usage() or "nothing is said")
            elif place.is_gone(job):
                return _lost(
                    name,
                    f"it is said to run on the node {job.node}, which is not among the living ones; the same command, "
                    "submitted again, goes on where it ended",
                )
            elif write is not None:
                shown = asyncio.run(_tail(api, name, shown, write))
        except Unreachable as error:
            if time.monotonic() - heard > PATIENCE_SECONDS:
                return _lost(
                    name,
                    f"{error}; it has not answered for {PATIENCE_SECONDS:.0f} s. If its head was lost, the job is too, "
                    "unless the cluster keeps its state elsewhere; the same command, submitted again, goes on where it ended",
                )
            if not lost:
                logger.warning("the cluster does not answer; trying again for %.0f s", PATIENCE_SECONDS)
            lost = True
        except Absent as error:
            if not known:
                raise
            return _lost(
                name, f"{error}: it was started anew; the same command, submitted again, goes on where it ended"
            )
        time.sleep(PAUSE_SECONDS)


class _Place:
    """Looks now and then whether the node of a running job lives."""

    def __init__(self, api: JobsApi) -> None:
        self._api = api
        self._asked: float | None = None
        self._missed: float | None = None  # since when it is not among the living ones

    def is_gone(self, job: Job) -> bool:
        """Whether it was missing for `NODE_SECONDS`. Raises Unreachable as the question does."""
        now = time.monotonic()
        if job.node is None or (self._asked is not None and now - self._asked < NODE_SECONDS / 3):
            return False
        self._asked = now
        if self._api.lives(job.node):
            self._missed = None
            return False
        self._missed = now if self._missed is None else self._missed
        return now - self._missed >= NODE_SECONDS


def _lost(name: str, message: str) -> Job:
    return Job(name=name, status=LOST, message=message, labels={})


def _write_rest(api: JobsApi, name: str, shown: int, write: Callable[[str], object]) -> None:
    """Write what the stream has not shown; nothing where the job's node is gone, and its output with it."""
    tries = RetrySettings(attempts=LOGS_TRIES, backoff=PAUSE_SECONDS)
    try:
        write(retry(lambda: api.logs(name), tries, lambda error: isinstance(error, Troubled))[shown:])
    except (Troubled, Absent) as error:
        logger.warning("the job's last lines cannot be had: %s", error)


async def _tail(api: JobsApi, name: str, shown: int, write: Callable[[str], object]) -> int:
    """Write what comes after the first `shown` characters, until the stream ends; returns how many there are now."""
    read = 0
    url = f"{api.url}{path_of(name)}/logs/tail"
    timeout = aiohttp.ClientTimeout(total=None, connect=10)
    # the stream's end and a lost connection are the same here: the caller asks how the job is
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with (
            # its trust_env would read a .netrc as well, which must not replace our token
            aiohttp.ClientSession(headers=api.headers, timeout=timeout) as session,
            session.ws_connect(url, proxy=proxy_of(url), heartbeat=30, max_msg_size=0) as stream,
        ):
            async for message in stream:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                text = message.data
                write(text[max(0, shown - read) :])
                read += len(text)
    return max(shown, read)

"""What all units share that a worker downloads at once: one HTTP client in an event loop of its own, and the limits.

A unit waits for its slowest row. So a worker has several (`ingest.download.units`), and those that wait cost nothing. The client
is aiohttp's: httpx, which other parts use, takes three times its CPU for a picture.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import aiohttp
import httpx

from realcustom.preprocessing.settings import DownloadSettings

T = TypeVar("T")

_ACCEPT = "image/jpeg, image/png, image/webp, image/gif, image/bmp, */*;q=0.1"  # what is decoded here
_LOOKUPS = 64  # threads that look names up: a dead name keeps one for seconds


class Session:
    """A client and its limits. The coroutines that use it run by `run`, which any thread may call."""

    def __init__(self, download: DownloadSettings):
        self.patience = min(download.silence, download.timeout)  # seconds without a byte, or without a host's address
        self.connections = asyncio.Semaphore(download.connections)
        self._download = download
        self._turns: weakref.WeakValueDictionary[str, asyncio.Semaphore] = weakref.WeakValueDictionary()
        self._probes: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._lookups = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookup")
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(self._lookups)
        self._thread = threading.Thread(target=self._loop.run_forever, name="downloads", daemon=True)
        self._thread.start()
        self.client: aiohttp.ClientSession = self.run(self._make_client())

    def turn(self, host: str) -> asyncio.Semaphore:
        """Held while a host is asked: so many at once as `per_host` allows."""
        return self._turns.get(host) or self._turns.setdefault(host, asyncio.Semaphore(self._download.per_host))

    def probe(self, site: str) -> asyncio.Lock:
        """Held while a host is asked that has not answered yet: one at a time, so that a dead one keeps no other waiting."""
        return self._probes.get(site) or self._probes.setdefault(site, asyncio.Lock())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; it is cancelled where this thread is interrupted."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """End the client and the event loop. Look-ups that still wait are left to end by themselves."""
        self.run(self.client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._lookups.shutdown(wait=False, cancel_futures=True)
        self._loop.close()

    async def _make_client(self) -> aiohttp.ClientSession:
        # a connection belongs to an address and a host name: it is not used again, lest for another name. The authorities are
        # httpx's: not every machine has its own
        connector = aiohttp.TCPConnector(limit=0, force_close=True, ssl=httpx.create_ssl_context())
        return aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": self._download.user_agent, "Accept": _ACCEPT, "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self.patience, sock_read=self.patience),
        )


_open: dict[DownloadSettings, tuple[Session, int]] = {}  # with the number of units that use it
_lock = threading.Lock()


@contextlib.contextmanager
def shared_session(download: DownloadSettings) -> Iterator[Session]:
    """The session of this process; it ends when no unit uses it."""
    with _lock:
        session, users = _open.get(download) or (Session(download), 0)
        _open[download] = session, users + 1
    try:
        yield session
    finally:
        with _lock:
            users = _open[download][1] - 1
            _open[download] = session, users
            if not users:
                del _open[download]
        if not users:
            session.close()

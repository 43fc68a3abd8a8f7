"""Pictures fetched by URL over HTTP, within limits, and only from addresses that an untrusted table may use.

A refusal by the server, a robots opt-out and a forbidden address are rules: the row is dropped for that reason. No
answer after all tries is a fault: many faults stop the job, as an outage of the network must.
"""

from __future__ import annotations

import asyncio
import collections
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from realcustom.http_retry import (
    TryAgain,
    is_passing,
    no_answer,
    retry_after,
    run_in_thread,
    with_retries,
)
from realcustom.preprocessing.errors import DataError, DataFault, RowDropped, RowExcluded, naming
from realcustom.preprocessing.ingest.hosts import hosts_of_worker
from realcustom.preprocessing.ingest.url_safety import UrlTarget, resolve
from realcustom.preprocessing.settings import IngestSettings
from realcustom.retry import RetrySettings

MAX_REDIRECTS = 5
_WITH_VALUE = frozenset(
    {"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"}
)  # no robots' names
_ROBOT = re.compile(r"[a-z][^\s:]*")  # a robot's name; the date of `unavailable_after` also has a colon
OPT_OUT = frozenset({"noai", "noimageai"})  # directives of X-Robots-Tag against use in the training of models
_ACCEPT = "image/jpeg, image/png, image/webp, image/gif, image/bmp, */*;q=0.1"  # what is decoded here
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

Result = bytes | RowExcluded


def download(urls: Sequence[bytes | None], settings: IngestSettings, retries: RetrySettings) -> list[Result]:
    """The result of each URL, in their order: the bytes, or why there are none."""
    return run_in_thread(_Downloader(settings, retries).all(urls))


class _Downloader:
    """One client for the URLs of a unit."""

    def __init__(self, settings: IngestSettings, retries: RetrySettings):
        self._settings, self._retries = settings, retries
        self._all = asyncio.Semaphore(settings.download.connections)
        self._known = hosts_of_worker()
        self._hosts: dict[str, asyncio.Semaphore] = collections.defaultdict(
            lambda: asyncio.Semaphore(settings.download.per_host)
        )

    async def all(self, urls: Sequence[bytes | None]) -> list[Result]:
        """All URLs at once, within the limits."""
        headers = {"User-Agent": self._settings.download.user_agent, "Accept": _ACCEPT, "Accept-Encoding": "identity"}
        # a connection belongs to an address and a host name: it is not reused for another name
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        download = self._settings.download
        patience = min(download.silence, download.timeout)
        timeout = httpx.Timeout(download.timeout, connect=patience, read=patience)
        # names are looked up by threads, of which asyncio has few: dead names would keep all of them
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(download.connections))
        async with httpx.AsyncClient(headers=headers, limits=limits, timeout=timeout, trust_env=False) as client:
            return await asyncio.gather(*(self._one(client, url) for url in urls))

    async def _one(self, client: httpx.AsyncClient, url: bytes | None) -> Result:
        try:
            with naming(f"URL {url!r}"):
                return await self._patiently(client, _text(url))
        except RowExcluded as why:
            return why

    async def _patiently(self, client: httpx.AsyncClient, url: str) -> bytes:
        try:
            return await with_retries(lambda: self._follow(client, url), self._retries)
        except TryAgain as error:
            raise DataError(DataFault.UNREACHABLE, f"{error.what}: {url}") from error

    async def _follow(self, client: httpx.AsyncClient, url: str) -> bytes:
        """One try: the picture. Each redirect is checked as the first URL was."""
        for _ in range(MAX_REDIRECTS + 1):
            target = UrlTarget.parse(url)
            async with self._hosts[target.host]:
                self._require_alive(target, url)
                async with self._all:
                    answer = await self._guarded_get(client, url, target.site)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise RowDropped("too_many_redirects", f"more than {MAX_REDIRECTS}, the last one to {url}")

    def _require_alive(self, target: UrlTarget, url: str) -> None:
        if self._known.is_dead(target.site):
            raise DataError(
                DataFault.UNREACHABLE, f"{target.site} gave no answer before, and is not asked again: {url}"
            )

    async def _guarded_get(self, client: httpx.AsyncClient, url: str, site: str) -> bytes | str:
        try:
            async with asyncio.timeout(self._settings.download.timeout):
                return await self._get(client, url, site)
        except (httpx.TransportError, httpx.DecodingError, TimeoutError) as error:
            if isinstance(error, (httpx.ConnectError, httpx.TimeoutException, TimeoutError)):
                self._known.was_silent(site)
            raise TryAgain(no_answer(error)) from error
        except OSError as error:  # the host name was not found
            self._known.was_silent(site)
            raise TryAgain(f"no such host ({type(error).__name__})") from error

    async def _get(self, client: httpx.AsyncClient, url: str, site: str) -> bytes | str:
        """The body, or where a redirect leads."""
        target = UrlTarget.parse(url)
        request = await resolve(target, self._settings.private_addresses)
        async with client.stream(
            "GET", request.url, headers={"Host": request.host_header}, extensions=request.extensions
        ) as response:
            self._known.answered(site)
            status, headers = response.status_code, response.headers
            if is_passing(status):
                raise TryAgain(f"HTTP {status}", retry_after(headers.get("retry-after")))
            moved = status in _REDIRECTS and "location" in headers
            if status != httpx.codes.OK and not moved:
                raise RowDropped(f"http_{status}", url)
            if opted_out(headers.get_list("x-robots-tag"), self._settings.download.user_agent):
                raise RowDropped("robots_opt_out", f"X-Robots-Tag: {headers['x-robots-tag']} at {url}")
            return _join(url, headers["location"]) if moved else await self._body(response)

    async def _body(self, response: httpx.Response) -> bytes:
        limit = self._settings.max_bytes
        message = f"more than ingest.max_bytes={limit}"
        declared = response.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > limit:
            raise DataError(DataFault.TOO_MANY_BYTES, f"{declared} bytes, {message}")
        data = bytearray()
        async for chunk in response.aiter_bytes():
            data += chunk
            if len(data) > limit:
                raise DataError(DataFault.TOO_MANY_BYTES, message)
        return bytes(data)


def opted_out(values: Sequence[str], user_agent: str) -> bool:
    """Whether X-Robots-Tag headers forbid training on what they come with, for all robots or for `user_agent`.

    Each value is a list of directives; a robot's name and a colon precede those that are for it alone.
    """
    own = user_agent.partition("/")[0].strip().lower()
    for value in values:
        ours = True
        for directive in value.lower().split(","):
            name, colon, rest = (part.strip() for part in directive.partition(":"))
            if colon and name not in _WITH_VALUE and _ROBOT.fullmatch(name):
                ours, name = name == own, rest
            if ours and name in OPT_OUT:
                return True
    return False


def _text(url: bytes | None) -> str:
    if url is None or not url.strip():
        raise DataError(DataFault.INVALID_URL, "the row holds no URL")
    try:
        return url.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(DataFault.INVALID_URL, f"the URL is not UTF-8: {error}") from error


def _join(url: str, location: str) -> str:
    try:
        return str(httpx.URL(url).join(location))
    except (httpx.InvalidURL, ValueError) as error:
        raise DataError(DataFault.INVALID_URL, f"{url} redirects to {location!r}: {error}") from error

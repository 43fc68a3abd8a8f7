"""Pictures fetched by URL over HTTP, within limits, and only from addresses that an untrusted table may use.

A refusal by the server, a robots opt-out and a forbidden address are rules: the row is dropped for that reason. No
answer after all tries is a fault: many faults stop the job, as an outage of the network must.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Sequence

import aiohttp
import httpx
from yarl import URL

from realcustom.http_retry import (
    TryAgain,
    is_passing,
    no_answer,
    retry_after,
    with_retries,
)
from realcustom.preprocessing.errors import DataError, DataFault, RowDropped, RowExcluded, naming
from realcustom.preprocessing.ingest.hosts import hosts_of_worker
from realcustom.preprocessing.ingest.session import Session, shared_session
from realcustom.preprocessing.ingest.url_safety import PinnedRequest, UrlTarget, resolve
from realcustom.preprocessing.settings import IngestSettings
from realcustom.retry import RetrySettings

MAX_REDIRECTS = 5
_WITH_VALUE = frozenset(
    {"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"}
)  # no robots' names
_ROBOT = re.compile(r"[a-z][^\s:]*")  # a robot's name; the date of `unavailable_after` also has a colon
OPT_OUT = frozenset({"noai", "noimageai"})  # directives of X-Robots-Tag against use in the training of models
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# what a name server says of a name that is not there; no name server that answers is another thing
_NO_SUCH_NAME = frozenset(getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA") if hasattr(socket, name))

Result = bytes | RowExcluded


def download(urls: Sequence[bytes | None], settings: IngestSettings, retries: RetrySettings) -> list[Result]:
    """The result of each URL, in their order: the bytes, or why there are none."""
    with shared_session(settings.download) as session:
        return session.run(_Downloader(session, settings, retries).all(urls))


class _Downloader:
    """The URLs of a unit."""

    def __init__(self, session: Session, settings: IngestSettings, retries: RetrySettings):
        self._session, self._settings, self._retries = session, settings, retries
        self._known = hosts_of_worker()

    async def all(self, urls: Sequence[bytes | None]) -> list[Result]:
        """All URLs at once, within the limits."""
        return await asyncio.gather(*(self._one(url) for url in urls))

    async def _one(self, url: bytes | None) -> Result:
        try:
            with naming(f"URL {url!r}"):
                return await self._patiently(_text(url))
        except RowExcluded as why:
            return why

    async def _patiently(self, url: str) -> bytes:
        try:
            return await with_retries(lambda: self._follow(url), self._retries)
        except TryAgain as error:
            raise DataError(DataFault.UNREACHABLE, f"{error.what}: {url}") from error

    async def _follow(self, url: str) -> bytes:
        """One try: the picture. Each redirect is checked as the first URL was."""
        for _ in range(MAX_REDIRECTS + 1):
            target = UrlTarget.parse(url)
            async with self._session.turn(target.host):
                answer = await self._ask(target, url)
            if isinstance(answer, bytes):
                return answer
            url = answer
        raise RowDropped("too_many_redirects", f"more than {MAX_REDIRECTS}, the last one to {url}")

    async def _ask(self, target: UrlTarget, url: str) -> bytes | str:
        if not self._known.has_answered(target.site):
            async with self._session.probe(target.site):
                if not self._known.has_answered(target.site):
                    if self._known.is_dead(target.site):
                        message = f"{target.site} gave no answer before, and is not asked again: {url}"
                        raise DataError(DataFault.UNREACHABLE, message)
                    return await self._guarded_get(target, url)
        return await self._guarded_get(target, url)

    async def _guarded_get(self, target: UrlTarget, url: str) -> bytes | str:
        try:
            async with asyncio.timeout(self._session.patience):
                request = await resolve(target, self._settings.private_addresses)
            async with self._session.connections, asyncio.timeout(self._settings.download.timeout):
                return await self._get(request, target, url)
        except (aiohttp.ClientError, TimeoutError) as error:
            if isinstance(error, (aiohttp.ClientConnectorError, TimeoutError)):
                self._known.was_silent(target.site)
            raise TryAgain(no_answer(error)) from error
        except socket.gaierror as error:
            if error.errno in _NO_SUCH_NAME:
                self._known.is_gone(target.site)
                raise DataError(DataFault.UNREACHABLE, f"no such host: {url}") from error
            self._known.was_silent(target.site)
            raise TryAgain(f"the host's name cannot be looked up ({error.strerror})") from error
        except OSError as error:
            self._known.was_silent(target.site)
            raise TryAgain(no_answer(error)) from error

    async def _get(self, request: PinnedRequest, target: UrlTarget, url: str) -> bytes | str:
        """The body, or where a redirect leads."""
        async with self._session.client.get(
            URL(str(request.url), encoded=True),
            headers={"Host": request.host_header},
            server_hostname=request.server_hostname,
            allow_redirects=False,
        ) as response:
            self._known.answered(target.site)
            status, headers = response.status, response.headers
            if is_passing(status):
                raise TryAgain(f"HTTP {status}", retry_after(headers.get("Retry-After")))
            moved = status in _REDIRECTS and "Location" in headers
            if status != httpx.codes.OK and not moved:
                raise RowDropped(f"http_{status}", url)
            rules = headers.getall("X-Robots-Tag", [])
            if opted_out(rules, self._settings.download.user_agent):
                raise RowDropped("robots_opt_out", f"X-Robots-Tag: {', '.join(rules)} at {url}")
            return _join(url, headers["Location"]) if moved else await self._body(response)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        limit = self._settings.max_bytes
        message = f"more than ingest.max_bytes={limit}"
        declared = response.headers.get("Content-Length", "")
        if declared.isdigit() and int(declared) > limit:
            raise DataError(DataFault.TOO_MANY_BYTES, f"{declared} bytes, {message}")
        data = bytearray()
        async for chunk in response.content.iter_any():
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

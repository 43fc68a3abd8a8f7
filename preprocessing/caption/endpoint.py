"""Captions from a large model behind an OpenAI-compatible endpoint (vLLM, SGLang ...), one request for each picture.

A row with an empty or refused caption is excluded for that reason. Transient errors are retried. If all tries of a
picture fail, a plain picture is sent: if that one is captioned, the row is excluded; if it fails too, the job stops. A
wrong key or an unknown model stops the job at once.

The client runs inside the stage, not as a Ray Data operator: the same code runs in this process and in a worker, and a
unit is still done entirely or not at all.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import httpx
from PIL import Image

from realcustom.errors import UsageError
from realcustom.http_retry import (
    TryAgain,
    is_passing,
    no_answer,
    retry_after,
    run_in_thread,
    with_retries,
)
from realcustom.preprocessing.errors import DataError, DataFault, RowDropped, RowExcluded
from realcustom.preprocessing.settings import CaptionSettings
from realcustom.retry import RetrySettings

EMPTY = "empty_caption"
REFUSED = "refused_caption"
CUT = "cut_caption"
_NOT_THIS_PICTURE = frozenset({400, 413, 415, 422})  # statuses about the content of one request
_BUSY = frozenset({425, 429, 503})  # statuses about the server's load, never about a picture
_APOLOGY = re.compile(
    r"sorry,|(?:i[’']m sorry|i am sorry|i can[’']?t|i cannot|i[’']m unable|i am unable)\b", re.IGNORECASE
)

_PLAIN = (64, 64)  # pixels, width and height, of the plain picture that tells a bad picture from a bad endpoint

Result = str | RowExcluded
T = TypeVar("T")


class EndpointRefused(UsageError):
    """The endpoint cannot caption any picture; the job has to stop."""


class _TryPictureAgain(TryAgain):
    """A transient failure that is the picture's own fault if it lasts."""

    def __init__(self, what: str, fault: DataFault, after: float = 0.0):
        super().__init__(what, after)
        self.fault = fault


class EndpointCaptioner:
    """Pictures -> captions, at most `endpoint.concurrency` requests at once."""

    def __init__(self, settings: CaptionSettings, retries: RetrySettings):
        self._settings, self._endpoint, self._retries = settings, settings.endpoint, retries
        self._key = os.environ.get(self._endpoint.key_variable, "").strip()
        if not self._key.isascii() or not self._key.isprintable():
            raise EndpointRefused(f"{self._endpoint.key_variable} holds characters that no HTTP header can carry")

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Result]:
        """The caption of each RGB picture, sent as large as it is, or why it has none. Raises EndpointRefused."""
        return run_in_thread(self._all(pictures))

    def check(self) -> None:
        """Ask for the list of models. Raises EndpointRefused if nothing answers, the key is wrong or the model missing.

        A server without such a list passes; its first caption shows whether it has the model.
        """
        names = run_in_thread(self._models())
        if names is not None and self._endpoint.model not in names:
            raise EndpointRefused(self._unknown_model(f"it has {', '.join(names) or 'none'}"))

    async def _models(self) -> list[str] | None:
        async with self._client() as client:
            # the few tries of a file, not those of a picture: a wrong URL is reported soon
            response = await self._patiently(lambda: self._send(client, "GET", "models"), self._retries)
        try:
            return [str(entry["id"]) for entry in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            return None

    async def _all(self, pictures: Sequence[Image.Image]) -> list[Result]:
        slots = asyncio.Semaphore(self._endpoint.concurrency)
        async with self._client() as client:
            tasks = [asyncio.create_task(self._one(client, slots, picture)) for picture in pictures]
            try:
                return await asyncio.gather(*tasks)
            finally:  # after an error no request may still be opening a connection when the client closes
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        # httpx's own limits are 100 connections, of which 20 are kept
        most = self._endpoint.concurrency
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
        # without trust_env: a .netrc must not replace our key
        return httpx.AsyncClient(headers=headers, limits=limits, timeout=self._endpoint.timeout, trust_env=False)

    async def _one(self, client: httpx.AsyncClient, slots: asyncio.Semaphore, picture: Image.Image) -> Result:
        async with slots:  # held between tries too: a busy server must not get more requests
            try:
                return await self._caption(client, picture)
            except DataError as why:
                if why.fault is DataFault.ENDPOINT_FAILED:
                    await self._check_plain(client)
                return why
            except RowDropped as why:
                return why

    async def _caption(self, client: httpx.AsyncClient, picture: Image.Image) -> str:
        body = self._request(picture)
        return await self._patiently(lambda: self._ask(client, body), self._endpoint.retries)

    async def _check_plain(self, client: httpx.AsyncClient) -> None:
        """Raise EndpointRefused if a plain picture fails as well: then the endpoint cannot caption."""
        try:
            await self._caption(client, Image.new("RGB", _PLAIN, "grey"))
        except RowDropped:
            return
        except DataError as error:
            if error.fault is DataFault.ENDPOINT_FAILED:
                raise self._down(error.message) from error

    def _request(self, picture: Image.Image) -> dict[str, Any]:
        data = io.BytesIO()
        picture.save(data, format="JPEG", quality=95)
        url = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": self._endpoint.prompt},
        ]
        return {
            "model": self._endpoint.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._settings.max_new_tokens,
            "temperature": 0,
            "seed": self._endpoint.seed,
        }

    async def _patiently(self, action: Callable[[], Awaitable[T]], retries: RetrySettings) -> T:
        try:
            return await with_retries(action, retries)
        except _TryPictureAgain as error:
            raise DataError(error.fault, error.what) from error
        except TryAgain as error:
            raise self._down(error.what) from error

    async def _send(self, client: httpx.AsyncClient, method: str, path: str, body: Any = None) -> httpx.Response:
        """One try. Returns the answer; raises where it asks for another try or where no try can help."""
        address = f"{str(self._endpoint.url).rstrip('/')}/{path}"
        try:
            async with asyncio.timeout(self._endpoint.timeout):
                response = await client.request(method, address, json=body)
        except (httpx.TransportError, httpx.DecodingError, TimeoutError) as error:
            raise self._failed(no_answer(error), body is not None) from error
        status = response.status_code
        if is_passing(status):
            after = retry_after(response.headers.get("retry-after"))
            raise self._failed(f"HTTP {status}", body is not None and status not in _BUSY, after)
        if status in (401, 403):
            state = "the key in it is refused" if self._key else "it is not set"
            variable = self._endpoint.key_variable
            raise EndpointRefused(f"{self._name}: HTTP {status}; the key is read from {variable}: {state}")
        return response

    def _failed(self, what: str, by_picture: bool, after: float = 0.0) -> TryAgain:
        """One picture can make a server fail; a server that is busy, or gives no list of models, is not a picture's fault."""
        return _TryPictureAgain(what, DataFault.ENDPOINT_FAILED, after) if by_picture else TryAgain(what, after)

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, Any]) -> str:
        response = await self._send(client, "POST", "chat/completions", body)
        status = response.status_code
        if status in _NOT_THIS_PICTURE:
            raise DataError(DataFault.ENDPOINT_REJECTED, f"HTTP {status}: {self._said(response)}")
        if status == 404:
            raise EndpointRefused(self._unknown_model(f"HTTP 404: {self._said(response)}"))
        if status != 200:
            raise EndpointRefused(f"{self._name}: HTTP {status}: {self._said(response)}")
        try:
            choice = response.json()["choices"][0]
            message = choice["message"]
            text, refusal, reason = message.get("content"), message.get("refusal"), choice.get("finish_reason")
            # JSON can hold a lone surrogate, a table cannot
            caption = " ".join((text or "").encode("utf-8", "replace").decode().split())
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            what = f"the answer is no chat completion: {self._said(response)}"
            raise _TryPictureAgain(what, DataFault.UNREADABLE_ANSWER) from error
        if refusal or reason == "content_filter" or _APOLOGY.match(caption):
            raise RowDropped(REFUSED, self._plain(str(refusal or caption or reason)))
        if reason == "length":
            limit = f"not finished within caption.max_new_tokens={self._settings.max_new_tokens}"
            raise RowDropped(CUT, f"{limit}: {self._plain(caption)}")
        if not caption:
            raise RowDropped(EMPTY)
        return caption

    @property
    def _name(self) -> str:
        return f"caption.endpoint.url={self._endpoint.url}"

    def _down(self, message: str) -> EndpointRefused:
        timeout = self._endpoint.timeout
        return EndpointRefused(
            f"{self._name}: {message}. Is the server up, and caption.endpoint.timeout={timeout} s enough?"
        )

    def _unknown_model(self, why: str) -> str:
        return f"{self._name} has no model caption.endpoint.model={self._endpoint.model!r}: {why}"

    def _said(self, response: httpx.Response) -> str:
        return self._plain(response.text)

    def _plain(self, text: str) -> str:
        """The beginning of a server's answer, without our key: it goes into reports."""
        text = text.replace(self._key, "[key]") if self._key else text
        return repr(text[:200])

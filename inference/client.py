"""Clients of the endpoint, one for threads and one for asyncio; both have the same methods.

with Client("http://127.0.0.1:8000") as client:
    answer = client.generate("a star on grass", [SubjectRequest(image=encode("star.png"), word="star")])
    decode(answer.data[0].b64_json).save("out.png")
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from types import TracebackType
from typing import TypeVar

import httpx
from pydantic import BaseModel

from realcustom.inference.exchange import (
    ApiError,
    Call,
    Event,
    EventReader,
    Options,
    Retries,
    cancel_call,
    check,
    decode,
    encode,
    generation_call,
    models_call,
    read,
    subject_call,
    wait_before_retry,
)
from realcustom.inference.responses import GenerationResponse, ModelList, SubjectResponse
from realcustom.inference.schema import SubjectRequest
from realcustom.proxies import is_loopback
from realcustom.sampling import SamplingParams

__all__ = ["ApiError", "AsyncClient", "Client", "Options", "Retries", "SubjectRequest", "decode", "encode"]

Model = TypeVar("Model", bound=BaseModel)
DEFAULTS, PLAIN, RETRIES = SamplingParams(), Options(), Retries()


def _headers(key: str | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key}"}


class Client:
    """For threads.

    Args:
        url: the endpoint's, `http://host:port`.
        key: bearer key, where the server requires one.
        timeout: seconds without a byte until the server counts as gone.
        retries: of answers 429 and 503, after as long as the server says.
    """

    def __init__(self, url: str, key: str | None = None, *, timeout: float = 300.0, retries: Retries = RETRIES) -> None:
        trusted = not is_loopback(url)
        self._http = httpx.Client(base_url=url, headers=_headers(key), timeout=timeout, trust_env=trusted)
        self._retries = retries

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def generate(
        self,
        prompt: str,
        subjects: Sequence[SubjectRequest] = (),
        sampling: SamplingParams = DEFAULTS,
        options: Options = PLAIN,
    ) -> GenerationResponse:
        """Draw, and wait for the answer. Raises ApiError, and httpx's own errors of the network."""
        return self._ask(GenerationResponse, generation_call(prompt, subjects, sampling, options, stream=False))

    def stream(
        self,
        prompt: str,
        subjects: Sequence[SubjectRequest] = (),
        sampling: SamplingParams = DEFAULTS,
        options: Options = PLAIN,
    ) -> Generator[Event, None, None]:
        """Draw, and give the events as they come. Closing the generator ends the work. Raises as `generate`."""
        with self._opened(generation_call(prompt, subjects, sampling, options, stream=True)) as response:
            reader = EventReader(response.headers.get("x-request-id"), sampling.n)
            for line in response.iter_lines():
                yield from reader.feed(line)
            reader.end()

    def add_subject(self, image: str, mask: str | None = None) -> SubjectResponse:
        """Have a subject (as `encode` gives it) encoded once; its id stands for it in `SubjectRequest.id`."""
        return self._ask(SubjectResponse, subject_call(image, mask))

    def models(self) -> ModelList:
        """The names for `Options.model`."""
        return self._ask(ModelList, models_call())

    def cancel(self, request_id: str) -> None:
        """End a running request by its id. Raises ApiError where none of this id runs."""
        with self._opened(cancel_call(request_id)):
            pass

    def _ask(self, model: type[Model], call: Call) -> Model:
        with self._opened(call) as response:
            response.read()
            return read(model, response)

    @contextlib.contextmanager
    def _opened(self, call: Call) -> Iterator[httpx.Response]:
        """The answer to a call that is not refused for now; its body is not read yet."""
        attempt = 1
        while True:
            with self._http.stream(call.method, call.path, json=call.body, headers=call.headers) as response:
                wait = wait_before_retry(response, attempt, self._retries)
                if wait is None:
                    if not response.is_success:
                        response.read()
                        check(response)
                    yield response
                    return
            time.sleep(wait)
            attempt += 1


class AsyncClient:
    """For asyncio; arguments and methods as `Client`."""

    def __init__(self, url: str, key: str | None = None, *, timeout: float = 300.0, retries: Retries = RETRIES) -> None:
        trusted = not is_loopback(url)
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(key), timeout=timeout, trust_env=trusted)
        self._retries = retries

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def generate(
        self,
        prompt: str,
        subjects: Sequence[SubjectRequest] = (),
        sampling: SamplingParams = DEFAULTS,
        options: Options = PLAIN,
    ) -> GenerationResponse:
        """As `Client.generate`; cancelling the task ends the work."""
        return await self._ask(GenerationResponse, generation_call(prompt, subjects, sampling, options, stream=False))

    async def stream(
        self,
        prompt: str,
        subjects: Sequence[SubjectRequest] = (),
        sampling: SamplingParams = DEFAULTS,
        options: Options = PLAIN,
    ) -> AsyncGenerator[Event, None]:
        """As `Client.stream`."""
        async with self._opened(generation_call(prompt, subjects, sampling, options, stream=True)) as response:
            reader = EventReader(response.headers.get("x-request-id"), sampling.n)
            async for line in response.aiter_lines():
                for event in reader.feed(line):
                    yield event
            reader.end()

    async def add_subject(self, image: str, mask: str | None = None) -> SubjectResponse:
        """As `Client.add_subject`."""
        return await self._ask(SubjectResponse, subject_call(image, mask))

    async def models(self) -> ModelList:
        """As `Client.models`."""
        return await self._ask(ModelList, models_call())

    async def cancel(self, request_id: str) -> None:
        """As `Client.cancel`."""
        async with self._opened(cancel_call(request_id)):
            pass

    async def _ask(self, model: type[Model], call: Call) -> Model:
        async with self._opened(call) as response:
            await response.aread()
            return read(model, response)

    @contextlib.asynccontextmanager
    async def _opened(self, call: Call) -> AsyncIterator[httpx.Response]:
        attempt = 1
        while True:
            async with self._http.stream(call.method, call.path, json=call.body, headers=call.headers) as response:
                wait = wait_before_retry(response, attempt, self._retries)
                if wait is None:
                    if not response.is_success:
                        await response.aread()
                        check(response)
                    yield response
                    return
            await asyncio.sleep(wait)
            attempt += 1

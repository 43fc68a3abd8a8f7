"""The life of a request that draws: key, limits, body, the engine's place, the answer or the stream, and its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response

from realcustom.inference.admission import Admission
from realcustom.inference.backend import Backend, Work
from realcustom.inference.body import Bodies
from realcustom.inference.drawing import read_drawing
from realcustom.inference.edits import Edit, parse_edit
from realcustom.inference.errors import BadRequest, UnknownRequest
from realcustom.inference.event_stream import EventStream, while_wanted
from realcustom.inference.front import Record, record_of
from realcustom.inference.responses import SubjectResponse
from realcustom.inference.running import RunningRequests
from realcustom.inference.schema import parse_request
from realcustom.inference.settings import ServeSettings
from realcustom.inference.subjects import parse_new_subject


@dataclass(frozen=True, kw_only=True)
class Asked(Edit):
    """A request that was read and checked."""

    edit: bool

    def text(self) -> bytes:
        """Equal for requests that ask for the same, in whatever form they came."""
        return f"{self.edit}\n{self.words}\n{self.request.model_dump_json(exclude_unset=True)}".encode()


SPARE_BODIES = 16  # that a process reads at once beyond those that the engines have places for
Read = Callable[[bytes, ServeSettings], Awaitable[Asked]]


class Handler:
    """Answers the routes that do work."""

    def __init__(self, service: Backend, admission: Admission, running: RunningRequests) -> None:
        self.service, self.admission, self.running = service, admission, running
        self.bodies = Bodies(service.settings.places + SPARE_BODIES)

    async def generate(self, request: Request) -> Response:
        """Draw what the JSON body asks for."""

        async def read(body: bytes, settings: ServeSettings) -> Asked:
            request = await asyncio.to_thread(parse_request, body, settings)  # a body may be large
            return Asked(request=request, words=None, edit=False)

        return await self._draw(request, read)

    async def edit(self, request: Request) -> Response:
        """Draw what the form asks for."""

        async def read(body: bytes, settings: ServeSettings) -> Asked:
            content_type = request.headers.get("content-type", "")
            found = await parse_edit(body, content_type, settings, self.service.naming)
            return Asked(request=found.request, words=found.words, edit=True)

        return await self._draw(request, read)

    async def cancel(self, request: Request, request_id: str) -> None:
        """End a request of the same key, in whichever process it is. Raises UnknownRequest, EngineLost."""
        name = self.admission.identify(request).name, request_id
        if not self.running.cancel(*name) and not await self.service.cancel_elsewhere(*name):
            raise UnknownRequest(f"no request {request_id[:64]} runs; it may be done", None)

    async def add_subject(self, request: Request) -> SubjectResponse:
        """Encode and keep the subject in the JSON body."""
        key = self.admission.identify(request)
        settings = key.limits.narrow(self.service.settings)
        with self.admission.during(key):
            body = await self.bodies.read(request, settings.max_body_bytes, settings.body_timeout_seconds)
            adding = self.service.add_subject(await asyncio.to_thread(parse_new_subject, body))
            return await while_wanted(request.receive, adding)

    async def _draw(self, request: Request, read: Read) -> Response:
        record, key = record_of(request), self.admission.identify(request)
        settings = key.limits.narrow(self.service.settings)
        with contextlib.ExitStack() as stack:  # what is given back when the request ends, however it ends
            running = stack.enter_context(self.running.during(key.name, record.request_id))
            stack.enter_context(self.admission.during(key))
            body = await self.bodies.read(request, settings.max_body_bytes, settings.body_timeout_seconds)
            asked = await while_wanted(request.receive, read(body, settings), running.cancelled)
            if asked.request.stream:
                _refuse_idempotency(request)
                work = await while_wanted(request.receive, self._begin(asked, settings, record), running.cancelled)
                stack.callback(_end, work, record)
                ending = asyncio.ensure_future(_cancel_when(running.cancelled, work))
                stack.callback(ending.cancel)
                return EventStream(work.chunks(), stack.pop_all().close)

            async def make() -> bytes:
                work = await self._begin(asked, settings, record)
                try:
                    return await work.answer()
                finally:
                    _end(work, record)

            name = request.headers.get("idempotency-key")
            making = make() if name is None else self.service.answers.once((key.name, name), asked.text(), make)
            answer = await while_wanted(request.receive, making, running.cancelled)
            return Response(answer, media_type="application/json")

    async def _begin(self, asked: Asked, settings: ServeSettings, record: Record) -> Work:
        """Hand over to an engine; from here on the log knows of it."""
        seconds = asked.request.deadline_seconds or settings.deadline_seconds
        owner = record.key or ""
        drawing = await asyncio.to_thread(
            read_drawing, asked.request, settings, seconds, owner=owner, edit=asked.edit, words=asked.words
        )
        work = await self.service.draw(drawing)
        record.model, record.steps, record.images = work.model, work.steps, work.images
        return work


async def _cancel_when(cancelled: asyncio.Event, work: Work) -> None:
    """A stream's work ends with an event that says so."""
    await cancelled.wait()
    work.cancel()


def _end(work: Work, record: Record) -> None:
    """The request is over, however it ended."""
    work.cancel()
    if work.usage is not None:
        record.queue_seconds = round(work.usage.queue_seconds, 4)
        record.compute_seconds = round(work.usage.seconds, 4)


def _refuse_idempotency(request: Request) -> None:
    if "idempotency-key" in request.headers:
        raise BadRequest("Idempotency-Key: not for streams; leave it or `stream` out", "Idempotency-Key")

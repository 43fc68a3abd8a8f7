"""A job's progress as a stream of events: previews, steps, heartbeats, and the result or what went wrong."""

from __future__ import annotations

import asyncio
import collections
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future

from realcustom.inference.answers import completed_events, previews, step_event
from realcustom.inference.errors import DeadlineExceeded, Internal, RequestError
from realcustom.inference.events import HEARTBEAT, QueuedEvent, encode_event, error_event
from realcustom.inference.jobs import Generation, Ticket
from realcustom.inference.metrics import UNOBSERVED, Observer
from realcustom.inference.progress import Progress
from realcustom.inference.responses import GenerationResponse
from realcustom.inference.schema import ImagesRequest
from realcustom.preview import Preview

logger = logging.getLogger(__name__)

FIRST_PREVIEW_STEP = 3
LOOK_SECONDS = 1.0  # after which a stream that waits for its first step looks how many are ahead of it


def preview_steps(count: int, of: int) -> list[int]:
    """The steps, ascending, after which `count` previews are sent: the first soon, the others evenly up to the end."""
    first = min(FIRST_PREVIEW_STEP, of)
    return sorted({first + round((of - first) * i / count) for i in range(count)})


class Mailbox:
    """Steps that the engine's thread hands to the event loop.

    A step that nobody asked a picture of is replaced by the next one if it was not taken yet: a slow client gets fewer
    events, and memory stays bounded.
    """

    def __init__(self, is_due: Callable[[Progress], bool]) -> None:
        self._loop, self._is_due = asyncio.get_running_loop(), is_due
        self._waiting: collections.deque[Progress] = collections.deque()
        self._changed, self._closed = asyncio.Event(), False

    def put(self, progress: Progress) -> None:
        """Hand over. Any thread may call."""
        self._from_thread(self._add, progress)

    def close(self, _: Future[Generation]) -> None:
        """No more will come. Any thread may call."""
        self._from_thread(self._end)

    async def take(self, timeout: float) -> Progress | None:
        """The next step; None at the end. Raises TimeoutError if nothing comes within `timeout` seconds."""
        async with asyncio.timeout(timeout):
            while not self._waiting and not self._closed:
                self._changed.clear()
                await self._changed.wait()
        return self._waiting.popleft() if self._waiting else None

    def _from_thread(self, call: Callable[..., None], *arguments: Progress) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)

    def _add(self, progress: Progress) -> None:
        if self._waiting and not self._is_due(self._waiting[-1]):
            self._waiting.pop()
        self._waiting.append(progress)
        self._changed.set()

    def _end(self) -> None:
        self._closed = True
        self._changed.set()


class Stream:
    """The events of one request.

    Args:
        request: says which events are sent.
        preview: makes the partial images.
        heartbeat_seconds: after so long without an event a comment is sent, which keeps proxies from closing.
        ahead: the number of requests that the engine had before a ticket's and still has.
        observer: is told when the first preview was sent.
        edit: whether the events are those of `/v1/images/edits`.
    """

    def __init__(
        self,
        request: ImagesRequest,
        preview: Preview,
        heartbeat_seconds: float,
        *,
        ahead: Callable[[Ticket], int],
        edit: bool = False,
        observer: Observer = UNOBSERVED,
    ) -> None:
        self.request, self.preview, self.heartbeat_seconds = request, preview, heartbeat_seconds
        self.ahead, self.edit, self.observer = ahead, edit, observer
        self.mailbox = Mailbox(lambda progress: self._preview_number(progress) is not None or self._has_masks(progress))
        self._first: tuple[float, int] | None = None  # time and number of the first step seen

    async def chunks(
        self, ticket: Ticket, respond: Callable[[Generation], GenerationResponse]
    ) -> AsyncGenerator[bytes, None]:
        """The stream's text, from the job's first step to its end. `respond` makes the answer; it may take a while."""
        ticket.future.add_done_callback(self.mailbox.close)
        try:
            ahead, waits, sent = -1, self.request.step_events, time.monotonic()
            while True:
                if waits and (now := self.ahead(ticket)) != ahead:
                    ahead, sent = now, time.monotonic()
                    yield encode_event(QueuedEvent(ahead=ahead))
                quiet = sent + self.heartbeat_seconds - time.monotonic()
                patience = min(quiet, ticket.seconds_left(), LOOK_SECONDS if waits else math.inf)
                try:
                    progress = await self.mailbox.take(patience)
                except TimeoutError:
                    if ticket.seconds_left() == 0:
                        raise DeadlineExceeded("the request was not done before its deadline") from None
                    if time.monotonic() - sent >= self.heartbeat_seconds:
                        sent = time.monotonic()
                        yield HEARTBEAT
                    continue
                waits, sent = False, time.monotonic()
                if progress is None:
                    break
                for chunk in await asyncio.to_thread(self._of_step, progress):
                    yield chunk
                if self._preview_number(progress) == 0:
                    self.observer.observe("time_to_first_preview_seconds", time.monotonic() - ticket.submitted)
            response = await asyncio.to_thread(respond, ticket.future.result())
            for event in completed_events(response, edit=self.edit):
                yield encode_event(event)
        except RequestError as error:
            yield encode_event(error_event(error))
        except Exception:  # the answer's status is sent already: the stream is where the client looks
            logger.exception("a stream failed")
            yield encode_event(error_event(Internal()))

    def _of_step(self, progress: Progress) -> list[bytes]:
        events = []
        if self.request.step_events:
            left = self._seconds_left(progress)
            events.append(encode_event(step_event(progress, left, with_masks=self._has_masks(progress))))
        number = self._preview_number(progress)
        if number is not None:
            pictures = previews(progress, self.preview, number, self.request, edit=self.edit)
            events += [encode_event(event) for event in pictures]
        return events

    def _seconds_left(self, progress: Progress) -> float | None:
        now = time.monotonic()
        if self._first is None:
            self._first = (now, progress.step)
            return None
        since, first = self._first
        return round((now - since) / (progress.step - first) * (progress.of - progress.step), 3)

    def _preview_number(self, progress: Progress) -> int | None:
        """Which of the previews this step gives."""
        steps = preview_steps(self.request.partial_images or 0, progress.of)
        return steps.index(progress.step) if progress.step in steps else None

    def _has_masks(self, progress: Progress) -> bool:
        every = self.request.mask_every
        return every is not None and (progress.step % every == 0 or progress.step == progress.of)

"""The engine's deployment on Ray Serve: one replica is one process with one engine on one accelerator.

Models are imported where a replica begins: who deploys it and the API import this file too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray import serve

from realcustom import log
from realcustom.errors import UsageError
from realcustom.inference.drawing import Drawing
from realcustom.inference.errors import Internal, RequestError, UnknownSubject
from realcustom.inference.leases import Leases
from realcustom.inference.messages import Answer, Begun, Chunk, Failed, FirstStep, Message, Taken
from realcustom.inference.models import ServedModel
from realcustom.inference.ray_metrics import RayObserver
from realcustom.inference.responses import SubjectResponse
from realcustom.inference.settings import ServeSettings
from realcustom.inference.subjects import NewSubject

if TYPE_CHECKING:
    from realcustom.inference.engine import Engine
    from realcustom.inference.service import EngineWork

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """The models of a replica: hub ids, folders, or (an adapter) a storage URI."""

    base: str
    models: tuple[ServedModel, ...]  # all that a request can name
    image_encoder: str | None = None  # none = the one named by the adapter


class EngineServer:
    """Draws what the API sends. Its constructor returns when the models are loaded: until then it gets no requests."""

    def __init__(self, settings: ServeSettings, source: ModelSource, log_level: str) -> None:
        from realcustom.inference.loading import load_engine
        from realcustom.inference.service import Service

        log.configure(log_level)

        def load() -> Engine:
            own = next((model for model in source.models if model.adapter), source.models[0])
            return load_engine(settings, source.base, own, source.image_encoder)

        self._name = serve.get_replica_context().replica_id.unique_id
        self._service = Service(settings, load, models=source.models, observer=RayObserver())
        self._service.wait()
        self._leases = Leases()
        self._sweeping: asyncio.Task[None] | None = None

    async def draw(
        self, drawing: Drawing, lease: str, wants: tuple[str, ...] = (), avoid: tuple[str, ...] = ()
    ) -> AsyncGenerator[Message, None]:
        """Draw a request, and tell of it. It ends within a step when the caller cancels, or renews its lease no more.

        Args:
            wants, avoid: for the router (`routing.py`).
        """
        self._sweep()
        yield Taken(engine=self._name)
        try:
            work = await self._service.draw(drawing)
        except Exception as error:
            yield _failed(error)
            return
        self._leases.add(lease, work.cancel)
        try:
            yield Begun(model=work.model, steps=work.steps, images=work.images)
            async with contextlib.aclosing(self._streamed(work) if work.stream else self._whole(work)) as messages:
                async for message in messages:
                    yield message
        finally:
            work.cancel()
            self._leases.remove(lease)

    async def renew(self, leases: Iterable[str]) -> None:
        """Someone waits for these requests."""
        self._leases.renew(leases)

    async def add_subject(self, new: NewSubject) -> SubjectResponse | Failed:
        """Encode a subject and keep it here."""
        try:
            return await self._service.add_subject(new)
        except Exception as error:
            return _failed(error)

    async def find_subject(self, subject_id: str) -> SubjectResponse | None:
        """A subject that this replica holds."""
        try:
            return await self._service.subject(subject_id)
        except UnknownSubject:
            return None

    def __del__(self) -> None:
        """Called by Serve when this replica ends, after its requests have: no thread is left in native code."""
        if hasattr(self, "_service"):
            self._service.close()

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica if this raises: a dead thread, or a step that hangs."""
        self._leases.in_service()
        self._service.check()

    def record_routing_stats(self) -> dict[str, Any]:
        """What this replica holds and how much it has to do, for the router."""
        holds = [*self._service.shelf.loaded(), *self._service.subjects.ids()]
        return {"holds": holds, "jobs": self._service.engine().jobs}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The seconds that the replica's requests will take, for the autoscaler."""
        return {"queued_seconds": self._service.engine().queued_seconds}

    async def _streamed(self, work: EngineWork) -> AsyncGenerator[Message, None]:
        told = False
        async with contextlib.aclosing(work.chunks()) as chunks:
            async for data in chunks:
                if work.started.is_set() and not told:
                    told = True
                    yield FirstStep()
                yield Chunk(data=data)
        yield Answer(data=b"", usage=work.usage)

    async def _whole(self, work: EngineWork) -> AsyncGenerator[Message, None]:
        answer, started = asyncio.ensure_future(work.answer()), asyncio.ensure_future(work.started.wait())
        try:
            await asyncio.wait({answer, started}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                yield FirstStep()
            yield Answer(data=await answer, usage=work.usage)
        except Exception as error:
            yield _failed(error)
        finally:
            answer.cancel()
            started.cancel()

    def _sweep(self) -> None:
        """Have late leases ended from now on, on the event loop that requests run on."""
        if self._sweeping is None:
            self._leases.begin()

            async def sweep() -> None:
                while True:
                    await asyncio.sleep(self._leases.every)
                    if ended := self._leases.end_late():
                        logger.warning("%d requests were ended: nobody waited for them any more", ended)

            self._sweeping = asyncio.get_running_loop().create_task(sweep())


def _failed(error: Exception) -> Failed:
    """What the API is told of it: a mistake in its own words, a bug's stay in the log."""
    if isinstance(error, RequestError):
        return Failed(error=error)
    if isinstance(error, UsageError):
        return Failed(error=RequestError(str(error)))
    logger.error("a request failed", exc_info=error)
    return Failed(error=Internal())

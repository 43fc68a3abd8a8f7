"""The API's side of the engines: requests go to replicas of another deployment, their answers come back as messages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from realcustom.inference.answer_keeper import AnswerKeeper, Keeper
from realcustom.inference.backend import State
from realcustom.inference.drawing import Drawing
from realcustom.inference.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineLost,
    Internal,
    Loading,
    QueueFull,
    RequestError,
    UnknownSubject,
)
from realcustom.inference.events import encode_event, error_event
from realcustom.inference.idempotency import Answers
from realcustom.inference.leases import RENEW_SECONDS
from realcustom.inference.messages import Answer, Begun, Chunk, Failed, FirstStep, Message, Taken
from realcustom.inference.models import ServedModel, choose_model
from realcustom.inference.naming import Naming
from realcustom.inference.remote_keeper import RemoteKeeper
from realcustom.inference.responses import SubjectResponse, UsageResponse
from realcustom.inference.settings import ServeSettings
from realcustom.inference.subjects import NewSubject

logger = logging.getLogger(__name__)
TAKEN_SECONDS = 10.0  # within which an engine says that it has a request
ALONE_SECONDS = 1.5  # the same where the only engine has just ended
ASK_SECONDS = 2.0  # within which an engine answers a question
GRACE_SECONDS = 30.0  # beyond a request's deadline, which the engine minds: for decoding and sending its answer
FULL = "too many requests wait for an engine; try again later"
LOST = "the engine that drew this request ended; try again"


class Engines:
    """The engines as a backend of the API: see `backend.Backend`.

    Args:
        settings, instance, naming: see `backend.Backend`.
        handle: of the engines' deployment.
        models: all models that a request can name.
        keeper: of the deployment that keeps answers; None: this process alone speaks HTTP, and keeps them itself.
        peers: gives a handle of the API's own deployment; None as `keeper`.
    """

    def __init__(
        self,
        settings: ServeSettings,
        handle: DeploymentHandle[Any],
        models: Sequence[ServedModel],
        instance: str = "",
        naming: Naming | None = None,
        keeper: DeploymentHandle[Any] | None = None,
        peers: Callable[[], DeploymentHandle[Any]] | None = None,
    ) -> None:
        self.settings, self.handle, self.instance, self.naming = settings, handle, instance, naming
        own: Keeper = AnswerKeeper(settings.max_idempotency_bytes, settings.idempotency_seconds)
        self.answers = Answers(own if keeper is None else RemoteKeeper(keeper))
        self._peers = peers
        self._models = tuple(models)
        self._leases: set[str] = set()
        self._running = 0  # engines that answered last
        self._watching: asyncio.Task[None] | None = None

    failed_by_mistake = False

    def watch(self) -> None:
        """Ask for the engines, and renew leases, from now on; on the event loop of the caller."""
        self._watching = self._watching or asyncio.get_running_loop().create_task(self._watch())

    def state(self) -> tuple[State, str]:
        """See `backend.Backend`. Without an engine a server that may have none is ready: a request starts one."""
        ready = self._running > 0 or self.settings.min_engines == 0
        return (State.READY if ready else State.LOADING), ""

    def models(self) -> Sequence[ServedModel]:
        """See `backend.Backend`."""
        return self._models

    async def draw(self, drawing: Drawing) -> RemoteWork:
        """See `backend.Backend`."""
        if self.state()[0] is not State.READY:
            await self._look()  # another process of the API may have said that it is
        if self.state()[0] is not State.READY:
            raise Loading("no engine is ready; the models are loading, try again soon")
        work = RemoteWork(self, drawing, choose_model(self._models, drawing.request.model))
        await work.begin()
        return work

    async def add_subject(self, new: NewSubject) -> SubjectResponse:
        """See `backend.Backend`."""
        response = self.handle.add_subject.remote(new)
        try:
            async with asyncio.timeout(self.settings.deadline_seconds + GRACE_SECONDS):
                found: SubjectResponse | Failed = await response
        except TimeoutError as error:
            raise DeadlineExceeded("no engine encoded the subject within this server's deadline; try later") from error
        except BackPressureError as error:
            raise QueueFull(FULL, 1) from error
        except (RayActorError, RayServeException) as error:
            raise EngineLost(LOST) from error
        except RayTaskError as error:
            logger.error("an engine failed on a subject", exc_info=error)
            raise Internal from error
        finally:
            response.cancel()  # no effect on what is done
        if isinstance(found, Failed):
            raise found.error
        return found

    async def subject(self, subject_id: str) -> SubjectResponse:
        """See `backend.Backend`."""
        answers, _ = await _ask_all(self.handle, "find_subject", subject_id)
        found = [one for one in answers if one is not None]
        if not found:
            raise UnknownSubject("id: this server holds no such subject; send its picture again")
        answer: SubjectResponse = found[0]
        return answer

    async def cancel_elsewhere(self, owner: str, request_id: str) -> bool:
        """See `backend.Backend`."""
        if self._peers is None:
            return False
        answers, is_silent = await _ask_all(self._peers(), "cancel", (owner, request_id))
        if is_silent and not any(answers):
            raise EngineLost("a process of the API that may have this request does not answer; try again")
        return any(answers)

    def patience(self, *, again: bool) -> float | None:
        """Seconds within which an engine takes a request; None: one may have to be started first.

        Args:
            again: an engine ended with it already.
        """
        if again:
            return TAKEN_SECONDS if self._running > 1 else ALONE_SECONDS
        return None if self.settings.min_engines == 0 else TAKEN_SECONDS

    @contextlib.contextmanager
    def lease(self) -> Any:
        """A lease that is renewed while the block runs; gives its name."""
        name = uuid.uuid4().hex
        self._leases.add(name)
        try:
            yield name
        finally:
            self._leases.discard(name)

    async def _watch(self) -> None:
        while True:
            began = time.monotonic()
            await self._look()
            await asyncio.sleep(max(0.0, RENEW_SECONDS - (time.monotonic() - began)))

    async def _look(self) -> None:
        """Renew leases, and count the engines that answer."""
        answers, is_silent = await _ask_all(self.handle, "renew", tuple(self._leases))
        if not is_silent:
            self._running = len(answers)


class RemoteWork:
    """A request that an engine of another process has taken: see `backend.Work`."""

    def __init__(self, engines: Engines, drawing: Drawing, model: ServedModel) -> None:
        self.engines, self.drawing, self.model = engines, drawing, model.id
        self.steps, self.images = 0, drawing.sampling.n
        self.usage: UsageResponse | None = None
        self._wants = tuple(name for name in (model.sha256, *(one.id for one in drawing.subjects)) if name is not None)
        seconds = drawing.deadline_seconds or engines.settings.deadline_seconds
        self._ends = time.monotonic() + min(seconds, engines.settings.deadline_seconds) + GRACE_SECONDS
        self._response: DeploymentResponseGenerator[Any] | None = None
        self._cancelled = False
        self._messages = self._told()

    async def begin(self) -> None:
        """Wait until it has its place in an engine. Raises RequestError."""
        try:
            message = await self._next()
        except BaseException:
            await self._end()
            raise
        assert isinstance(message, Begun)
        self.steps, self.images = message.steps, message.images

    def cancel(self) -> None:
        """See `backend.Work`."""
        self._cancelled = True
        if self._response is not None:
            self._response.cancel()

    async def answer(self) -> bytes:
        """See `backend.Work`."""
        try:
            while True:
                message = await self._next()
                if isinstance(message, Answer):
                    self.usage = message.usage
                    return message.data
        finally:
            await self._end()

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """See `backend.Work`."""
        try:
            while True:
                message = await self._next()
                if isinstance(message, Answer):
                    self.usage = message.usage
                    return
                if isinstance(message, Chunk):
                    yield message.data
        except RequestError as error:
            yield encode_event(error_event(error))
        finally:
            await self._end()

    async def _next(self) -> Message:
        """The next message. Raises RequestError; after that nothing comes."""
        try:
            async with asyncio.timeout(max(0.0, self._ends - time.monotonic())):
                return await anext(self._messages)
        except TimeoutError as error:
            self.cancel()
            raise DeadlineExceeded("the request was not done before its deadline") from error
        except BaseException:
            self.cancel()
            raise

    async def _end(self) -> None:
        self.cancel()
        await self._messages.aclose()

    async def _told(self) -> AsyncGenerator[Message, None]:
        """The messages from Begun on. A request without a step is given to another engine once, where its own ends, and to
        each that has not said yet that it lacks its subject: what the router knows of new subjects is a second old.
        """
        tried: set[str] = set()
        lost, begun = False, False
        missing: UnknownSubject | None = None
        while True:
            drawn = False
            try:
                async with contextlib.aclosing(self._call(tuple(tried), patient=not lost)) as messages:
                    async for message in messages:
                        if isinstance(message, Taken):
                            if missing is not None and message.engine in tried:
                                raise missing  # there is no other
                            tried.add(message.engine)
                            continue
                        drawn = drawn or isinstance(message, FirstStep)
                        if isinstance(message, Begun) and begun:
                            continue
                        begun = begun or isinstance(message, Begun)
                        yield message
                return
            except UnknownSubject as error:
                if error is missing or self._cancelled:
                    raise
                missing = error
            except EngineLost:
                if drawn or lost or self._cancelled:
                    raise
                lost = True
                logger.warning("an engine ended; another one takes its request over")

    async def _call(self, tried: tuple[str, ...], *, patient: bool) -> AsyncGenerator[Message, None]:
        """The messages of one engine. Raises RequestError."""
        with self.engines.lease() as lease:
            handle = self.engines.handle.options(stream=True)
            response = self._response = handle.draw.remote(self.drawing, lease, wants=self._wants, avoid=tried)
            try:
                async with asyncio.timeout(self.engines.patience(again=not patient)):
                    message = await anext(response)
                while not isinstance(message, Answer | Failed):
                    yield message
                    message = await anext(response)
                self._response = None  # it has ended: to cancel it would be one call more, in both processes
                if isinstance(message, Failed):
                    raise message.error
                yield message
            except TimeoutError as error:
                raise (
                    Loading("no engine has a free place; try again soon") if patient else EngineLost(LOST)
                ) from error
            except BackPressureError as error:
                raise QueueFull(FULL, 1) from error
            except (RayActorError, RayServeException) as error:
                raise (Cancelled("the request was cancelled") if self._cancelled else EngineLost(LOST)) from error
            except (TaskCancelledError, StopAsyncIteration, asyncio.CancelledError) as error:
                if not self._cancelled:
                    raise
                raise Cancelled("the request was cancelled") from error
            except RayTaskError as error:
                logger.error("an engine failed on a request", exc_info=error)
                raise Internal from error
            finally:
                if self._response is not None:
                    response.cancel()


async def _ask_all(handle: DeploymentHandle[Any], method: str, argument: Any) -> tuple[list[Any], bool]:
    """What the processes of a deployment answer, and whether one of them is silent; those that end are left out."""
    try:
        async with asyncio.timeout(ASK_SECONDS):
            # its public form gives no answer at all where one process is silent
            asked = await handle.broadcast(method, argument)._fetch_replica_results_async()
    except TimeoutError:
        return [], True
    except (RayServeException, RayActorError):  # none runs
        return [], False
    waited = (asyncio.wait_for(one.get_async(), ASK_SECONDS) for one in asked)
    answers = await asyncio.gather(*waited, return_exceptions=True)
    is_silent = any(isinstance(answer, TimeoutError) for answer in answers)
    return [answer for answer in answers if not isinstance(answer, BaseException)], is_silent

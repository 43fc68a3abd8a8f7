"""From a decoded request to its answer, around one engine: loading state, adapters, subjects, streams. No Ray, no HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.errors import UsageError
from realcustom.inference.answer_keeper import AnswerKeeper
from realcustom.inference.answers import answer
from realcustom.inference.backend import State
from realcustom.inference.drawing import Drawing, SubjectPart, decode_mask, read_pair
from realcustom.inference.engine import Engine
from realcustom.inference.errors import DeadlineExceeded, Loading, QueueFull, RequestError, Unavailable
from realcustom.inference.idempotency import Answers
from realcustom.inference.images import ImageLimits
from realcustom.inference.jobs import Generation, GenerationJob, Ticket, width_height_steps
from realcustom.inference.metrics import UNOBSERVED, Observer
from realcustom.inference.models import PREFIX, ServedModel, choose_model
from realcustom.inference.naming import Naming
from realcustom.inference.progress import Progress
from realcustom.inference.responses import GenerationResponse, SubjectResponse, UsageResponse
from realcustom.inference.settings import ServeSettings
from realcustom.inference.shelf import AdapterShelf
from realcustom.inference.streaming import Stream
from realcustom.inference.subjects import NewSubject, SubjectStore
from realcustom.preview import Preview, make_preview

logger = logging.getLogger(__name__)


class EngineWork:
    """A request that the engine of this process has taken: see `backend.Work`. `started` is set after its first step."""

    def __init__(
        self,
        drawing: Drawing,
        model: ServedModel,
        ticket: Ticket,
        steps: int,
        stream: Stream | None,
        started: asyncio.Event,
    ) -> None:
        self.drawing, self.served, self.ticket, self.steps, self.stream = drawing, model, ticket, steps, stream
        self.model, self.images = model.id, ticket.job.sampling.n
        self.started = started

    @property
    def usage(self) -> UsageResponse | None:
        """See `backend.Work`."""
        future = self.ticket.future
        if not future.done() or future.exception() is not None:
            return None
        return UsageResponse(**vars(future.result().usage))

    def cancel(self) -> None:
        """See `backend.Work`."""
        self.ticket.cancel()

    async def answer(self) -> bytes:
        """See `backend.Work`."""
        ticket, drawn = self.ticket, asyncio.wrap_future(self.ticket.future)
        try:
            while not drawn.done():
                if (left := ticket.seconds_left()) == 0:
                    raise DeadlineExceeded(
                        "the request was not done before its deadline; ask for fewer steps or images, or try later"
                    )
                await asyncio.wait({drawn}, timeout=None if left == math.inf else left)
        finally:
            ticket.cancel()  # no effect on a job that is done
            drawn.cancel()
        generation = drawn.result()
        return await asyncio.to_thread(lambda: self._response(generation).model_dump_json(exclude_unset=True).encode())

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """See `backend.Work`."""
        assert self.stream is not None
        return self.stream.chunks(self.ticket, self._response)

    def _response(self, generation: Generation) -> GenerationResponse:
        drawing, served = self.drawing, self.served
        return answer(generation, drawing.request, model=served.id, adapter=served.sha256, words=drawing.words)


class Service:
    """Loads an engine in the background and draws requests with it: see `backend.Backend`.

    Args:
        settings: limits of a request.
        load: makes the engine; the text of its error becomes the reason in `state`.
        instance, naming: see `backend.Backend`.
        models: all models that a request can name; none = those that the engine is loaded with.
        observer: is told what is measured.
    """

    def __init__(
        self,
        settings: ServeSettings,
        load: Callable[[], Engine],
        instance: str = "",
        naming: Naming | None = None,
        models: Sequence[ServedModel] = (),
        observer: Observer = UNOBSERVED,
    ) -> None:
        self.settings, self.instance, self.naming = settings, instance, naming
        self.observer = observer
        self.subjects = SubjectStore(settings.max_subject_bytes)
        self.answers = Answers(AnswerKeeper(settings.max_idempotency_bytes, settings.idempotency_seconds))
        self._models = tuple(models)
        # one at a time, and not of the threads that all else shares: memory stays bounded, and nobody else waits
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._adding: set[Future[SubjectResponse]] = set()
        self._engine: Engine | None = None
        self._shelf: AdapterShelf | None = None
        self._preview: Preview | None = None
        self._failure: Exception | None = None
        self._failed_at = 0.0
        self._thread = threading.Thread(target=self._load, args=(load,), name="load", daemon=True)
        self._thread.start()

    def state(self) -> tuple[State, str]:
        """See `backend.Backend`."""
        if self._failure is not None:
            return State.FAILED, str(self._failure)
        return (State.READY, "") if self._engine is not None else (State.LOADING, "")

    @property
    def failed_by_mistake(self) -> bool:
        """Whether loading failed by the user's mistake, which the message describes fully; else the log has a trace."""
        return isinstance(self._failure, UsageError)

    def wait(self) -> None:
        """Return when the engine is loaded. Raises what loading it raised."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def engine(self) -> Engine:
        """The engine. Raises Loading or Unavailable."""
        state, message = self.state()
        if self._engine is None:
            raise Loading("the models are loading; try again soon") if state is State.LOADING else Unavailable(message)
        return self._engine

    @property
    def shelf(self) -> AdapterShelf:
        """The adapters that are loaded. Raises as `engine`."""
        self.engine()
        assert self._shelf is not None  # made before the engine is shown
        return self._shelf

    def models(self) -> Sequence[ServedModel]:
        """See `backend.Backend`."""
        return self._models or _models_of(self.engine())

    def check(self, patience_seconds: float = 60.0) -> None:
        """Raises RuntimeError if only a new process can help: the engine's thread died, or loading failed long ago."""
        if self._engine is not None and not self._engine.alive:
            raise RuntimeError("a thread of the engine is dead, or a step hangs")
        if self._failure is not None and time.monotonic() - self._failed_at > patience_seconds:
            raise RuntimeError(f"the models could not be loaded: {self._failure}")

    def close(self) -> None:
        """End the engine's threads."""
        self._thread.join()
        self._encoder.shutdown(cancel_futures=True)
        if self._engine is not None:
            self.shelf.close()
            self._engine.close()

    def _load(self, load: Callable[[], Engine]) -> None:
        try:
            engine = load()
            engine.measures.observer = self.observer
            self._preview = make_preview(engine.pipeline.base, self.settings.preview_decoder)
            self._shelf = AdapterShelf(engine, self.settings.max_adapters)
            self._engine = engine
        except Exception as error:  # shown by the readiness route; a thread's exception would not be seen
            if isinstance(error, UsageError):
                logger.error("the models were not loaded: %s", error)
            else:
                logger.exception("loading the models failed")
            self._failed_at = time.monotonic()
            self._failure = error

    async def draw(self, drawing: Drawing) -> EngineWork:
        """See `backend.Backend`."""
        engine, request = self.engine(), drawing.request
        model = choose_model(self.models(), request.model)
        if drawing.subjects and model.adapter is None and engine.adapter is not None:
            raise RequestError(f"subjects: {model.id} is a base without an adapter, it takes none", "subjects")
        subjects = tuple(self._subject(part, f"subjects[{i}].id") for i, part in enumerate(drawing.subjects))
        job = GenerationJob(
            prompt=request.prompt,
            subjects=subjects,
            sampling=drawing.sampling,
            adapter=model.sha256,
            owner=drawing.owner,
            alone=request.deterministic,
        )
        stream = None
        if request.stream:
            assert self._preview is not None  # made before the engine is shown
            stream = Stream(
                request,
                self._preview,
                self.settings.heartbeat_seconds,
                ahead=engine.ahead,
                edit=drawing.edit,
                observer=self.observer,
            )
        started, loop = asyncio.Event(), asyncio.get_running_loop()

        def on_progress(progress: Progress) -> None:
            if not started.is_set() and not loop.is_closed():  # the loop is woken once, not at every step
                loop.call_soon_threadsafe(started.set)
            if stream is not None:
                stream.mailbox.put(progress)

        if model.sha256 in self.shelf.loaded():
            self.observer.observe("cache_hits_total", 1, "adapters")
        release = await self.shelf.hold(model)
        try:
            width, height, steps = width_height_steps(job.sampling, engine.pipeline_of(job))
            drawing.check(width, height, steps)
            await asyncio.to_thread(engine.check, job)
            ticket = engine.submit(job, on_progress, deadline_seconds=drawing.deadline_seconds)
        except BaseException:
            release()
            raise
        ticket.future.add_done_callback(lambda _: release())
        return EngineWork(drawing, model, ticket, steps, stream, started)

    async def add_subject(self, new: NewSubject) -> SubjectResponse:
        """See `backend.Backend`."""
        pipeline = self.engine().pipeline
        if pipeline.image_encoder is None:
            raise RequestError("this server runs without an adapter, it takes no subjects")
        if len(self._adding) > self.settings.max_queue:
            raise QueueFull(f"{len(self._adding)} subjects are being encoded already; try again later", 1)
        adding = self._encoder.submit(self._add_subject, pipeline, new)
        self._adding.add(adding)
        adding.add_done_callback(self._adding.discard)  # also where the caller has given up before its turn
        try:
            async with asyncio.timeout(self.settings.deadline_seconds):
                return await asyncio.wrap_future(adding)
        except TimeoutError as error:
            raise DeadlineExceeded("the subject was not encoded within this server's deadline; try later") from error

    async def subject(self, subject_id: str) -> SubjectResponse:
        """See `backend.Backend`."""
        return self.subjects.describe(subject_id)

    async def cancel_elsewhere(self, owner: str, request_id: str) -> bool:
        """See `backend.Backend`. This process is the only one."""
        return False

    def _add_subject(self, pipeline: RealCustomPipeline, new: NewSubject) -> SubjectResponse:
        limits = ImageLimits(max_bytes=self.settings.max_image_bytes, max_pixels=self.settings.max_image_pixels)
        picture, mask = read_pair(new.image, new.mask, limits)
        image = picture.decode()
        try:
            encoded = pipeline.encode_subject(image, decode_mask(mask, image))
        except UsageError as error:
            raise RequestError(f"image: {error}", "image") from error
        added = self.subjects.add(encoded)
        self.observer.observe("cache_bytes", self.subjects.held_bytes, "subjects")
        return added

    def _subject(self, part: SubjectPart, param: str) -> Subject:
        """The subject of a request: its picture, or what is held here under its id."""
        if part.image is not None:
            return Subject(image=part.image, mask=part.mask, **part.chosen)
        assert part.id is not None  # checked with the request
        held = self.subjects.get(part.id, param)
        self.observer.observe("cache_hits_total", 1, "subjects")
        return Subject(image=held, **part.chosen)


def _models_of(engine: Engine) -> list[ServedModel]:
    """Those that the engine is loaded with, the adapter first."""
    base = ServedModel(id=engine.pipeline.base.identity, adapter=None)
    if engine.adapter is None:
        return [base]
    return [ServedModel(id=PREFIX + engine.adapter["id"], adapter=engine.adapter), base]

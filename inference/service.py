"""From a request's bytes to its answer: loading state, decoding, the wait for the engine. No Ray, no HTTP framework."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import logging
import random
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.errors import UsageError
from realcustom.inference.answers import answer
from realcustom.inference.engine import Engine
from realcustom.inference.errors import DeadlineExceeded, Loading, RequestError, TooLarge, Unavailable
from realcustom.inference.images import ImageLimits, decode_image
from realcustom.inference.jobs import Generation, GenerationJob, Ticket
from realcustom.inference.models import ServedModel, choose_model, served_models
from realcustom.inference.responses import GenerationResponse, SubjectResponse
from realcustom.inference.schema import ImagesRequest, SubjectRequest
from realcustom.inference.settings import ServeSettings
from realcustom.inference.streaming import Stream
from realcustom.inference.subjects import NewSubject, SubjectStore
from realcustom.preview import LatentPreview
from realcustom.sampling import MAX_SEED

logger = logging.getLogger(__name__)


class State(enum.Enum):
    """The state of the service."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Work:
    """A request that the engine has taken."""

    request: ImagesRequest
    model: ServedModel
    ticket: Ticket
    stream: Stream | None  # None: its answer is sent as a whole
    words: list[str] | None  # of an edit
    steps: int  # denoising steps

    def answer(self, generation: Generation) -> GenerationResponse:
        """The answer; encoding the pictures takes a while."""
        return answer(generation, self.request, model=self.model.id, adapter=self.model.sha256, words=self.words)


class Service:
    """Loads an engine in the background and answers requests with it.

    Args:
        settings: limits of a request.
        load: makes the engine; the text of its error becomes the reason in `state`.
        instance: returned by the readiness route, so that `start` can tell its own service from an older one.
        nouns: the words of a prompt that can name a subject; None = an edit must name its word.
    """

    def __init__(
        self,
        settings: ServeSettings,
        load: Callable[[], Engine],
        instance: str = "",
        nouns: Callable[[str], list[str]] | None = None,
    ) -> None:
        self.settings = settings
        self.nouns = nouns
        self.instance = instance
        self.subjects = SubjectStore(settings.max_subject_bytes)
        self._encoding = threading.Lock()
        self._limits = ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)
        self._engine: Engine | None = None
        self._preview: LatentPreview | None = None
        self._failure: Exception | None = None
        self._failed_at = 0.0
        self._thread = threading.Thread(target=self._load, args=(load,), name="load", daemon=True)
        self._thread.start()

    def state(self) -> tuple[State, str]:
        """The state, and for a failed one the reason."""
        if self._failure is not None:
            return State.FAILED, str(self._failure)
        return (State.READY, "") if self._engine is not None else (State.LOADING, "")

    @property
    def failed_by_mistake(self) -> bool:
        """Whether loading failed by the user's mistake, which the message describes fully; else the log has a trace."""
        return isinstance(self._failure, UsageError)

    def engine(self) -> Engine:
        """The engine. Raises Loading or Unavailable."""
        state, message = self.state()
        if self._engine is None:
            raise Loading("the models are loading; try again soon") if state is State.LOADING else Unavailable(message)
        return self._engine

    def check(self, patience_seconds: float = 60.0) -> None:
        """Raises RuntimeError if only a new process can help: the engine's thread died, or loading failed long ago."""
        if self._engine is not None and not self._engine.alive:
            raise RuntimeError("the engine's thread is dead")
        if self._failure is not None and time.monotonic() - self._failed_at > patience_seconds:
            raise RuntimeError(f"the models could not be loaded: {self._failure}")

    def close(self) -> None:
        """End the engine's thread."""
        self._thread.join()
        if self._engine is not None:
            self._engine.close()

    def _load(self, load: Callable[[], Engine]) -> None:
        try:
            engine = load()
            self._preview = LatentPreview.fit(engine.pipeline.base)
            self._engine = engine
        except Exception as error:  # shown by the readiness route; a thread's exception would not be seen
            if isinstance(error, UsageError):
                logger.error("the models were not loaded: %s", error)
            else:
                logger.exception("loading the models failed")
            self._failed_at = time.monotonic()
            self._failure = error

    async def begin(
        self,
        request: ImagesRequest,
        deadline_seconds: float | None = None,
        *,
        owner: str = "",
        edit: bool = False,
        words: list[str] | None = None,
    ) -> Work:
        """Check the request fully and hand it to the engine. Raises RequestError of the kind that says what is wrong.

        Args:
            deadline_seconds: from now to the last step; None = the engine's own.
            owner: name of the bearer key: the engine is fair among owners.
            edit, words: for `/v1/images/edits`: the words of its subjects, which the answer names.
        """
        engine = self.engine()
        model = choose_model(served_models(engine), request.model)
        job = await asyncio.to_thread(self._job, request, model, owner)
        await asyncio.to_thread(engine.check, job)
        stream = None
        if request.stream:
            assert self._preview is not None  # made before the engine is ready
            stream = Stream(request, self._preview, self.settings.heartbeat_seconds, ahead=engine.jobs, edit=edit)
        ticket = engine.submit(job, stream.mailbox.put if stream else None, deadline_seconds=deadline_seconds)
        steps = job.sampling.num_inference_steps or engine.pipeline.settings.sampler.num_inference_steps
        return Work(request=request, model=model, ticket=ticket, stream=stream, words=words, steps=steps)

    async def finish(self, work: Work) -> GenerationResponse:
        """The answer. If the caller is cancelled, the engine stops within one step."""
        ticket = work.ticket
        try:
            generation = await asyncio.wait_for(asyncio.wrap_future(ticket.future), ticket.seconds_left())
        except TimeoutError as error:
            raise DeadlineExceeded(
                "the request was not done before its deadline; ask for fewer steps or images, or try later"
            ) from error
        finally:
            ticket.cancel()  # no effect on a job that is done
        return await asyncio.to_thread(work.answer, generation)

    def chunks(self, work: Work) -> AsyncGenerator[bytes, None]:
        """The text of the work's stream."""
        assert work.stream is not None
        return work.stream.chunks(work.ticket, work.answer)

    def _job(self, request: ImagesRequest, model: ServedModel, owner: str) -> GenerationJob:
        if request.subjects and model.adapter is None and self.engine().adapter is not None:
            raise RequestError(f"subjects: {model.id} is a base without an adapter, it takes none", "subjects")
        subjects = tuple(self._subject(subject, i) for i, subject in enumerate(request.subjects))
        pictures = [picture for subject in subjects for picture in subject.pictures]
        pixels = sum(picture.width * picture.height for picture in pictures)
        if pixels > self.settings.max_request_pixels:  # limits the memory of one place in the queue
            limit = self.settings.max_request_pixels
            raise TooLarge(
                f"subjects: {pixels} pixels in all pictures are over this server's limit of {limit}", "subjects"
            )
        sampling = request.sampling()
        if sampling.seed is None:
            seed = random.SystemRandom().randint(0, MAX_SEED - self.settings.max_n)
            sampling = dataclasses.replace(sampling, seed=seed)
        return GenerationJob(
            prompt=request.prompt,
            subjects=subjects,
            sampling=sampling,
            adapter=model.sha256,
            owner=owner,
            alone=request.deterministic,
        )

    async def add_subject(self, new: NewSubject) -> SubjectResponse:
        """Encode a subject and keep it. Raises RequestError of the kind that says what is wrong."""
        pipeline = self.engine().pipeline
        if pipeline.image_encoder is None:
            raise RequestError("this server runs without an adapter, it takes no subjects")
        return await asyncio.to_thread(self._add_subject, pipeline, new)

    def _add_subject(self, pipeline: RealCustomPipeline, new: NewSubject) -> SubjectResponse:
        image = decode_image(new.image, self._limits, "image")
        mask = self._mask(new.mask, image, "mask")
        with self._encoding:  # one at a time: memory stays bounded
            return self.subjects.add(pipeline.encode_subject(image, mask))

    def _subject(self, subject: SubjectRequest, index: int) -> Subject:
        where = f"subjects[{index}]"
        chosen: dict[str, Any] = {"word": subject.word, "occurrence": subject.occurrence, "scope": subject.scope}
        if subject.id is not None:
            return Subject(image=self.subjects.get(subject.id, f"{where}.id"), **chosen)
        assert subject.image is not None  # checked with the request
        image = decode_image(subject.image, self._limits, f"{where}.image")
        return Subject(image=image, mask=self._mask(subject.mask, image, f"{where}.mask"), **chosen)

    def _mask(self, text: str | None, image: Image.Image, param: str) -> Image.Image | None:
        """A picture's mask, of its size."""
        if text is None:
            return None
        mask = decode_image(text, self._limits, param).convert("L")
        if mask.size != image.size:
            sizes = f"{mask.width} x {mask.height}, the picture {image.width} x {image.height}"
            raise RequestError(f"{param}: the mask is {sizes}; they must be the same", param)
        return mask

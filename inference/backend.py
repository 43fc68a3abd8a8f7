"""What the HTTP interface asks of the part that draws, be it in this process (`service.py`) or in others (`remote.py`)."""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from realcustom.inference.drawing import Drawing
from realcustom.inference.idempotency import Answers
from realcustom.inference.models import ServedModel
from realcustom.inference.naming import Naming
from realcustom.inference.responses import SubjectResponse, UsageResponse
from realcustom.inference.settings import ServeSettings
from realcustom.inference.subjects import NewSubject


class State(enum.Enum):
    """Whether requests are served."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class Work(Protocol):
    """A request that an engine has taken."""

    @property
    def model(self) -> str:
        """Id of the model that draws."""
        ...

    @property
    def steps(self) -> int:
        """Denoising steps."""
        ...

    @property
    def images(self) -> int:
        """Number of images."""
        ...

    @property
    def usage(self) -> UsageResponse | None:
        """Its work; None until it is done, and where it was not done."""
        ...

    def cancel(self) -> None:
        """End it within a step; no effect on what is done."""
        ...

    async def answer(self) -> bytes:
        """The JSON of its answer. If the caller is cancelled, the work ends within a step. Raises RequestError."""
        ...

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The text of its stream, in which errors are events."""
        ...


class Backend(Protocol):
    """Draws requests."""

    settings: ServeSettings
    instance: str  # returned by the readiness route, so that `start` can tell its own service from an older one
    answers: Answers  # by Idempotency-Key
    naming: Naming | None  # finds the word of an edit that has none; None = an edit must have it

    def state(self) -> tuple[State, str]:
        """The state, and for a failed one the reason."""
        ...

    @property
    def failed_by_mistake(self) -> bool:
        """Whether loading failed by the user's mistake, which the message describes fully; else the log has a trace."""
        ...

    def models(self) -> Sequence[ServedModel]:
        """All models; the first is that of a request that names none. Raises Loading or Unavailable."""
        ...

    async def draw(self, drawing: Drawing) -> Work:
        """Check the request fully and hand it to an engine. Raises RequestError of the kind that says what is wrong."""
        ...

    async def add_subject(self, new: NewSubject) -> SubjectResponse:
        """Encode a subject and keep it. Raises RequestError."""
        ...

    async def subject(self, subject_id: str) -> SubjectResponse:
        """A subject that is held. Raises UnknownSubject."""
        ...

    async def cancel_elsewhere(self, owner: str, request_id: str) -> bool:
        """Cancel a request that another process of the API has, by its key's name and its id; False: none has it.

        Raises EngineLost where none has it and one does not answer.
        """
        ...

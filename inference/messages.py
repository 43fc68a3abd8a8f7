"""What an engine tells the API of a request, in this order: taken, begun, the first step, then its stream or its answer.

Pictures and masks are encoded on the engine's side, so these messages hold bytes and numbers alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from realcustom.inference.errors import RequestError
from realcustom.inference.responses import UsageResponse


@dataclass(frozen=True, kw_only=True)
class Taken:
    """The engine has the request and checks it."""

    engine: str  # id of the replica


@dataclass(frozen=True, kw_only=True)
class Begun:
    """The request has its place in the engine."""

    model: str
    steps: int
    images: int


@dataclass(frozen=True, kw_only=True)
class FirstStep:
    """From here on the request has work in it: it is not given to another engine any more."""


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of a stream's text."""

    data: bytes


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The end of a request: the JSON of its answer, empty for a stream."""

    data: bytes
    usage: UsageResponse | None


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The end of a request that is not served. An exception that Ray carries would lose its kind."""

    error: RequestError


Message = Taken | Begun | FirstStep | Chunk | Answer | Failed

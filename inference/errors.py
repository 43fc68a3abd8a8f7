"""Errors of a request: one class per kind, each with its HTTP status and its stable name."""

from __future__ import annotations

from typing import Any


class RequestError(Exception):
    """A request that is not served. `param` names the field at fault, where there is one."""

    status = 422
    kind = "invalid_request"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.message, vars(self))  # subclasses take other arguments

    def body(self) -> dict[str, Any]:
        """The JSON form of every error."""
        return {"error": {"type": self.kind, "message": self.message, "param": self.param}}

    def headers(self) -> dict[str, str]:
        """Extra HTTP headers of the answer."""
        return {}


def _restored(kind: type[RequestError], message: str, values: dict[str, Any]) -> RequestError:
    error = kind.__new__(kind, message)
    error.__dict__.update(values)
    return error


class BadRequest(RequestError):
    """Something that this API does not have, asked for by a field or a header that is known."""

    status = 400
    kind = "bad_request"


class WordNotInPrompt(RequestError):
    """A subject's word is not a whole word of the prompt; the message lists those which are."""

    kind = "word_not_in_prompt"


class NotAnImage(RequestError):
    """A picture of the request cannot be decoded."""

    kind = "not_an_image"


class UnknownModel(RequestError):
    """A request names a model that is not served."""

    status = 404
    kind = "model_not_found"


class TooLarge(RequestError):
    """The body, or a picture in it, is over a limit."""

    status = 413
    kind = "too_large"


class UnknownSubject(RequestError):
    """A request names a subject that this server does not hold (any more)."""

    status = 404
    kind = "subject_not_found"


class UnknownRequest(RequestError):
    """A request that is to be cancelled does not run."""

    status = 404
    kind = "request_not_found"


class Conflict(RequestError):
    """An id or an idempotency key that belongs to another request."""

    status = 409
    kind = "conflict"


class WrongMediaType(RequestError):
    """The body is of another kind than the route takes."""

    status = 415
    kind = "wrong_media_type"


class QueueFull(RequestError):
    """The queue already holds as many requests as allowed."""

    status = 429
    kind = "queue_full"

    def __init__(self, message: str, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds

    def headers(self) -> dict[str, str]:
        return {"Retry-After": str(self.retry_after_seconds)}


class RateLimited(QueueFull):
    """The bearer key has used up its own limits."""

    kind = "rate_limited"


class DeadlineExceeded(RequestError):
    """The request was not done within `deadline_seconds`."""

    status = 408
    kind = "deadline_exceeded"


class BodyTooLarge(TooLarge):
    """The body is over a limit; the rest of it is not read."""

    def headers(self) -> dict[str, str]:
        return {"Connection": "close"}


class BodyTooSlow(RequestError):
    """The request's body did not arrive within `body_timeout_seconds`; the rest of it is not read."""

    status = 408
    kind = "body_too_slow"

    def headers(self) -> dict[str, str]:
        return {"Connection": "close"}


class Cancelled(RequestError):
    """The client went away, or the engine was closed; nobody waits for the answer."""

    status = 499
    kind = "cancelled"


class Loading(RequestError):
    """The models are not loaded yet."""

    status = 503
    kind = "loading"

    def headers(self) -> dict[str, str]:
        return {"Retry-After": "5"}


class Unavailable(RequestError):
    """The models could not be loaded; the message is the loader's."""

    status = 503
    kind = "unavailable"

    def headers(self) -> dict[str, str]:
        return {"Retry-After": "30"}


class EngineLost(RequestError):
    """The engine that drew the request ended; another one takes the next."""

    status = 503
    kind = "engine_lost"

    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"}


class Unauthorized(RequestError):
    """The bearer key is missing or wrong."""

    status = 401
    kind = "unauthorized"

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


class Internal(RequestError):
    """A bug of ours; the log has its trace."""

    status = 500
    kind = "internal"

    def __init__(self) -> None:
        super().__init__("the server failed on this request; its log says why")

"""Every exception as an answer of one shape."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from realcustom.errors import UsageError
from realcustom.inference.errors import Cancelled, RequestError

_HTTP_KINDS = {404: "not_found", 405: "method_not_allowed"}


def add_error_answers(api: FastAPI) -> None:
    """Have `api` answer exceptions with `{"error": {"type", "message", "param"}}`; `Front` answers bugs."""
    api.add_exception_handler(RequestError, _answer_request_error)
    api.add_exception_handler(UsageError, _answer_mistake)
    api.add_exception_handler(HTTPException, _answer_http_error)
    api.add_exception_handler(ClientDisconnect, _answer_disconnect)


def answer_of(error: RequestError) -> JSONResponse:
    """The error as an answer."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


async def _answer_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    request.scope["state"]["record"].error = error.kind
    return answer_of(error)


async def _answer_mistake(_: Request, error: Exception) -> Response:
    return answer_of(RequestError(str(error)))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _HTTP_KINDS.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    body = {"error": {"type": kind, "message": message, "param": None}}
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _answer_disconnect(_: Request, __: Exception) -> Response:
    return answer_of(Cancelled("the client went away"))

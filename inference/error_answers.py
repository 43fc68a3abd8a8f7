"""Every exception as an answer of one shape."""

from __future__ import annotations

import logging

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from realcustom.errors import UsageError
from realcustom.inference.errors import Cancelled, Internal, RequestError

logger = logging.getLogger(__name__)

_HTTP_KINDS = {404: "not_found", 405: "method_not_allowed"}


def add_error_answers(api: FastAPI) -> None:
    """Have `api` answer exceptions with `{"error": {"type", "message", "param"}}`."""
    api.add_exception_handler(RequestError, _answer_request_error)
    api.add_exception_handler(UsageError, _answer_mistake)
    api.add_exception_handler(HTTPException, _answer_http_error)
    api.add_exception_handler(ClientDisconnect, _answer_disconnect)
    api.add_exception_handler(Exception, _answer_bug)


def answer_of(error: RequestError) -> JSONResponse:
    """The error as an answer."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


async def _answer_request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
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


async def _answer_bug(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer_of(Internal())

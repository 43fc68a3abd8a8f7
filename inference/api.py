"""The HTTP interface as a plain FastAPI application: routes, limits on the body's size, one format of errors.

No Ray.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from realcustom.errors import UsageError
from realcustom.inference.errors import Cancelled, RequestError, TooLarge, Unauthorized
from realcustom.inference.schema import GenerationRequest, GenerationResponse
from realcustom.inference.service import Service, State

logger = logging.getLogger(__name__)

_HTTP_KINDS = {404: "not_found", 405: "method_not_allowed"}


def build_api(service: Service, key_digest: bytes | None = None) -> FastAPI:
    """The application around `service`.

    Args:
        service: loads and owns the engine.
        key_digest: SHA-256 of the bearer key that every /v1 route requires; None = no key.
    """
    api = FastAPI(title="RealCustom", description="Subject-driven text-to-image generation.")
    api.add_exception_handler(RequestError, _answer_request_error)
    api.add_exception_handler(UsageError, _answer_mistake)
    api.add_exception_handler(HTTPException, _answer_http_error)
    api.add_exception_handler(ClientDisconnect, _answer_disconnect)
    api.add_exception_handler(Exception, _answer_bug)

    def check_key(request: Request) -> None:
        if key_digest is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode()).digest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, key_digest):
            raise Unauthorized("send the server's key in the header 'Authorization: Bearer KEY'")

    @api.post(
        "/v1/images/generations",
        response_model=GenerationResponse,
        response_model_exclude_unset=True,
        dependencies=[Depends(check_key)],
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": {"schema": _request_schema()}}}
        },
    )
    async def generate(request: Request) -> GenerationResponse:
        """Draw `n` images of the prompt, its words narrowed to the given subjects."""
        return await service.generate(await _read_body(request, service.settings.max_body_bytes))

    @api.get("/v1/adapters", dependencies=[Depends(check_key)])
    async def adapters() -> dict[str, Any]:
        """The adapter that is loaded: its hash, its settings, the base and the image encoder it runs with."""
        adapter = service.engine().adapter
        return {"object": "list", "data": [adapter] if adapter else []}

    @api.get("/healthz")
    async def live() -> dict[str, str]:
        """200 as long as the process answers, also while models load."""
        return {"status": "live"}

    @api.get("/readyz")
    async def ready() -> JSONResponse:
        """200 when requests are served; 503 while the models load or if they could not be loaded."""
        state, message = service.state()
        body: dict[str, Any] = {"status": state.value, "message": message, "instance": service.instance}
        if state is State.FAILED:
            body["mistake"] = service.failed_by_mistake
        return JSONResponse(body, status_code=200 if state is State.READY else 503)

    return api


async def _read_body(request: Request, limit: int) -> bytes:
    """The request's body; reading stops at the limit, also if the client declared a smaller length."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"the body's {declared} bytes are over this server's limit of {limit}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLarge(f"the body is over this server's limit of {limit} bytes")
    return bytes(body)


def _request_schema() -> dict[str, Any]:
    """The request's JSON schema with the subject's inserted: FastAPI does not parse the body, so it has no schema."""
    schema = GenerationRequest.model_json_schema()
    schema["properties"]["subjects"]["items"] = schema.pop("$defs")["SubjectRequest"]
    return schema


async def _answer_request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers())


async def _answer_mistake(_: Request, error: Exception) -> Response:
    refused = RequestError(str(error))
    return JSONResponse(refused.body(), status_code=refused.status)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _HTTP_KINDS.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path}: {error.detail}"
    body = {"error": {"type": kind, "message": message, "param": None}}
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


async def _answer_disconnect(_: Request, __: Exception) -> Response:
    gone = Cancelled("the client went away")
    return JSONResponse(gone.body(), status_code=gone.status)


async def _answer_bug(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    body = {
        "error": {"type": "internal", "message": "the server failed on this request; its log says why", "param": None}
    }
    return JSONResponse(body, status_code=500)

"""The HTTP interface as a plain FastAPI application. No Ray."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from realcustom.inference.answers import GenerationResponse
from realcustom.inference.body import read_body
from realcustom.inference.edits import parse_edit
from realcustom.inference.error_answers import add_error_answers
from realcustom.inference.errors import Cancelled, Unauthorized
from realcustom.inference.event_stream import EventStream, until_gone
from realcustom.inference.models import ModelInfo, ModelList, choose_model, served_models
from realcustom.inference.schema import GenerationRequest, parse_request
from realcustom.inference.service import Service, State, Work


def build_api(service: Service, key_digest: bytes | None = None) -> FastAPI:
    """The application around `service`.

    Args:
        service: loads and owns the engine.
        key_digest: SHA-256 of the bearer key that every /v1 route requires; None = no key.
    """
    api = FastAPI(title="RealCustom", description="Subject-driven text-to-image generation.")
    add_error_answers(api)
    settings = service.settings

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
        dependencies=[Depends(check_key)],
        openapi_extra={
            "requestBody": {"required": True, "content": {"application/json": {"schema": _request_schema()}}}
        },
    )
    async def generate(request: Request) -> Response:
        """Draw `n` images of the prompt, its words narrowed to the given subjects."""
        body = await read_body(request, settings.max_body_bytes, settings.body_timeout_seconds)
        work = await service.begin(parse_request(body, settings))
        return await _answer(service, work, request)

    @api.post("/v1/images/edits", response_model=GenerationResponse, dependencies=[Depends(check_key)])
    async def edit(request: Request) -> Response:
        """Draw `n` images of the prompt with the subject of the picture, sent as a form."""
        body = await read_body(request, settings.max_body_bytes, settings.body_timeout_seconds)
        found = await parse_edit(body, request.headers.get("content-type", ""), settings, service.nouns)
        return await _answer(service, await service.begin(found.request, edit=True, words=found.words), request)

    @api.get("/v1/models", dependencies=[Depends(check_key)])
    async def models() -> ModelList:
        """The base and every adapter on it; the first is the one of a request that names none."""
        return ModelList(data=[model.listed() for model in served_models(service.engine())])

    @api.get("/v1/models/{model:path}", dependencies=[Depends(check_key)])
    async def model(model: str) -> ModelInfo:
        """One of them."""
        return choose_model(served_models(service.engine()), model).listed()

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


async def _answer(service: Service, work: Work, request: Request) -> Response:
    """The work's answer, as a stream or as a whole; a client that goes away ends the work."""
    if work.stream is not None:
        return EventStream(service.chunks(work), work.ticket.cancel)
    finishing, gone = asyncio.ensure_future(service.finish(work)), asyncio.ensure_future(until_gone(request.receive))
    try:
        await asyncio.wait({finishing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not finishing.done():
            raise Cancelled("the client went away")
        return Response(finishing.result().model_dump_json(exclude_unset=True), media_type="application/json")
    finally:
        for task in (finishing, gone):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(finishing, gone, return_exceptions=True)


def _request_schema() -> dict[str, Any]:
    """The request's JSON schema with the subject's inserted: FastAPI does not parse the body, so it has no schema."""
    schema: dict[str, Any] = GenerationRequest.model_json_schema()
    schema["properties"]["subjects"]["items"] = schema.pop("$defs")["SubjectRequest"]
    return schema

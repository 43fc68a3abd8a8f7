"""The HTTP interface as a plain FastAPI application: its routes. No Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from realcustom.inference.admission import Admission
from realcustom.inference.backend import Backend, State
from realcustom.inference.document import (
    complete,
    drawing,
    edit_body,
    errors,
    generation_body,
    stream_answer,
    subject_body,
    subject_link,
)
from realcustom.inference.error_answers import add_error_answers
from realcustom.inference.front import Front
from realcustom.inference.handling import Handler
from realcustom.inference.keys import Key
from realcustom.inference.metrics import UNOBSERVED, Observer
from realcustom.inference.models import choose_model
from realcustom.inference.page.routes import add_page
from realcustom.inference.reference_page import STYLE, reference_page
from realcustom.inference.responses import GenerationResponse, ModelInfo, ModelList, SubjectResponse
from realcustom.inference.running import RunningRequests

_DRAWING_ERRORS = (404, 408, 409, 413, 422, 429, 499, 503)


def build_api(
    service: Backend,
    keys: Sequence[Key] = (),
    *,
    has_proxy: bool = False,
    observer: Observer = UNOBSERVED,
    running: RunningRequests | None = None,
) -> FastAPI:
    """The application around `service`.

    Args:
        service: draws.
        keys: bearer keys, of which every /v1 route requires one; none = anyone may ask.
        has_proxy: a proxy before this server puts X-Request-Id into requests and answers, as Ray Serve's does.
        observer: counts requests.
        running: the requests that run here, for a caller who cancels them too.
    """
    api = FastAPI(
        title="RealCustom",
        description="Subject-driven text-to-image generation.",
        docs_url=None,  # theirs load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    admission = Admission(keys)
    handler = Handler(service, admission, RunningRequests() if running is None else running)
    add_error_answers(api)
    api.add_middleware(Front, has_proxy=has_proxy, access_log=service.settings.access_log, observer=observer)
    _add_images(api, handler)
    _add_subjects(api, handler)
    _add_models(api, service, admission)
    _add_health(api, service)
    add_page(api)

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """The document as a page."""
        return HTMLResponse(reference_page(api.openapi()))

    @api.get("/docs.css", include_in_schema=False)
    async def style() -> Response:
        """Its style."""
        return Response(STYLE, media_type="text/css")

    complete(api, has_keys=bool(keys))
    return api


def _add_images(api: FastAPI, handler: Handler) -> None:
    @api.post(
        "/v1/images/generations",
        response_model=GenerationResponse,
        responses=errors(*_DRAWING_ERRORS) | stream_answer(),
        openapi_extra=drawing(generation_body()),
    )
    async def generate(request: Request) -> Response:
        """Draw `n` images of the prompt, its words narrowed to the given subjects."""
        return await handler.generate(request)

    @api.post(
        "/v1/images/edits",
        response_model=GenerationResponse,
        responses=errors(*_DRAWING_ERRORS, 415) | stream_answer(),
        openapi_extra=drawing(edit_body()),
    )
    async def edit(request: Request) -> Response:
        """Draw `n` images of the prompt with the subject of the picture, sent as a form."""
        return await handler.edit(request)

    @api.delete("/v1/requests/{request_id}", responses=errors(404, 422, 503))
    async def cancel(request_id: str, request: Request) -> dict[str, str | bool]:
        """End a running request within a step, by its X-Request-Id."""
        await handler.cancel(request, request_id)
        return {"id": request_id, "cancelled": True}


def _add_subjects(api: FastAPI, handler: Handler) -> None:
    @api.post(
        "/v1/subjects",
        responses=errors(408, 413, 422, 429, 499, 503) | subject_link(),
        openapi_extra=subject_body(),
    )
    async def add_subject(request: Request) -> SubjectResponse:
        """Encode a subject once; requests then name it by its id."""
        return await handler.add_subject(request)

    @api.get("/v1/subjects/{subject_id}", operation_id="get_subject", responses=errors(404, 422))
    async def subject(subject_id: str, request: Request) -> SubjectResponse:
        """Whether this server holds a subject."""
        handler.admission.identify(request)
        return await handler.service.subject(subject_id)


def _add_models(api: FastAPI, service: Backend, admission: Admission) -> None:
    needs_key = [Depends(admission.identify)]

    @api.get("/v1/models", dependencies=needs_key, responses=errors(503))
    async def models() -> ModelList:
        """The base and every adapter on it; the first is the one of a request that names none."""
        return ModelList(data=[model.listed() for model in service.models()])

    @api.get("/v1/models/{model:path}", dependencies=needs_key, responses=errors(404, 422, 503))
    async def model(model: str) -> ModelInfo:
        """One of them."""
        return choose_model(service.models(), model).listed()

    @api.get("/v1/adapters", dependencies=needs_key, responses=errors(503))
    async def adapters() -> dict[str, Any]:
        """All adapters: their hash, their settings, the base and the image encoder that they were trained with."""
        return {"object": "list", "data": [model.adapter for model in service.models() if model.adapter]}


def _add_health(api: FastAPI, service: Backend) -> None:
    @api.get("/healthz", responses=errors())
    async def live() -> dict[str, str]:
        """200 as long as the process answers, also while models load."""
        return {"status": "live"}

    @api.get("/readyz", responses=errors() | {503: {"description": "not ready", "model": dict[str, Any]}})
    async def ready() -> JSONResponse:
        """200 when requests are served; 503 while the models load or if they could not be loaded."""
        state, message = service.state()
        body: dict[str, Any] = {"status": state.value, "message": message, "instance": service.instance}
        if state is State.FAILED:
            body["mistake"] = service.failed_by_mistake
        return JSONResponse(body, status_code=200 if state is State.READY else 503)

"""What an engine's deployment tells the API, without a cluster."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
from PIL import Image

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.inference.engine import Engine
from realcustom.inference.engine_server import EngineServer
from realcustom.inference.messages import Failed
from realcustom.inference.service import Service
from realcustom.inference.settings import ServeSettings
from realcustom.inference.subjects import NewSubject
from realcustom.settings import Reference
from tests.support.tiny import ADAPTER


@pytest.fixture
def pipeline(tiny_pipeline: RealCustomPipeline) -> RealCustomPipeline:
    """Of an adapter that takes subjects cut out."""
    encoder = replace(tiny_pipeline.settings.image_encoder, reference=Reference.CROP)
    settings = replace(tiny_pipeline.settings, image_encoder=encoder)
    return RealCustomPipeline(tiny_pipeline.base, settings, tiny_pipeline.model, tiny_pipeline.image_encoder)


@pytest.fixture
def server(pipeline: RealCustomPipeline) -> Iterator[EngineServer]:
    service = Service(ServeSettings(), lambda: Engine(pipeline, threads=1, adapter=ADAPTER))
    service.wait()
    server = EngineServer.__new__(EngineServer)  # its constructor asks Serve for the replica's name
    server._service = service
    yield server
    service.close()


def _subject() -> NewSubject:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24), "red").save(buffer, "PNG")
    return NewSubject(image=base64.b64encode(buffer.getvalue()).decode())


def _failed(server: EngineServer) -> Failed:
    found = asyncio.run(server.add_subject(_subject()))
    assert isinstance(found, Failed)
    return found


def test_a_subject_that_the_adapter_cannot_use_is_a_sentence(server: EngineServer) -> None:
    error = _failed(server).error
    assert (error.status, error.kind, error.param) == (422, "invalid_request", "image")
    assert (
        error.message.startswith("image: this adapter takes a subject cut out on white") and "\n" not in error.message
    )


def test_a_bug_tells_the_client_nothing_of_itself(
    server: EngineServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("realcustom.inference.service.read_pair", None)
    error = _failed(server).error
    assert (error.status, error.kind) == (500, "internal") and "NoneType" not in error.message
    assert "NoneType" in caplog.text

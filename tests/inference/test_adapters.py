"""Several adapters of one base by name: what is listed, what is refused, and loading one beside the running batch."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from realcustom.checkpoint import adapter_sha256
from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.errors import UsageError
from realcustom.inference.adapters import find_models
from realcustom.inference.api import build_api
from realcustom.inference.engine import Engine
from realcustom.inference.errors import QueueFull
from realcustom.inference.loading import load_engine
from realcustom.inference.models import ServedModel
from realcustom.inference.service import Service
from realcustom.inference.settings import ServeSettings
from realcustom.inference.shelf import AdapterShelf
from tests.support.tiny import TinyModels, tiny_adapter, tiny_base, tiny_settings

URL = "/v1/images/generations"
NAMES = ("one", "two", "three")


def _picture() -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


REQUEST: dict[str, Any] = {
    "prompt": "a cat in the snow",
    "seed": 3,
    "num_inference_steps": 2,
    "subjects": [{"image": _picture(), "word": "cat"}],
}


@pytest.fixture(scope="module")
def files(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three further adapters by name; each has another scope of the influence, so each draws another image."""
    folder, plain = tmp_path_factory.mktemp("adapters"), tiny_settings()
    return {
        name: tiny_adapter(
            folder / f"{name}.safetensors",
            tiny_models.base,
            tiny_models.image_encoder,
            replace(plain, mask=replace(plain.mask, influence_scope=scope)),
        )
        for name, scope in zip(NAMES, (0.1, 0.5, 0.9), strict=True)
    }


@pytest.fixture(scope="module")
def models(tiny_models: TinyModels, files: dict[str, str]) -> tuple[ServedModel, ...]:
    return find_models(tiny_models.base, tiny_models.adapter, [f"{name}={path}" for name, path in files.items()])


@pytest.fixture
def service(tiny_models: TinyModels, models: tuple[ServedModel, ...]) -> Iterator[Service]:
    settings = ServeSettings(max_adapters=2, max_steps=2000, threads=1, device="cpu")
    service = Service(
        settings,
        lambda: load_engine(settings, tiny_models.base, models[0], tiny_models.image_encoder),
        models=models,
    )
    service.wait()
    yield service
    service.close()


def _talk(service: Service, *requests: dict[str, Any]) -> list[httpx.Response]:
    """The answers to requests that are sent at once."""

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(build_api(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60.0) as client:
            return await asyncio.gather(*(client.post(URL, json=REQUEST | one) for one in requests))

    return asyncio.run(run())


def test_models_in_order_and_described(models: tuple[ServedModel, ...], tiny_models: TinyModels) -> None:
    sha256 = adapter_sha256(tiny_models.adapter)
    base = next(model for model in models if model.adapter is None)
    assert [model.id for model in models] == [
        f"realcustom:{sha256[:12]}",
        base.id,
        *(f"realcustom:{name}" for name in NAMES),
    ]
    assert models[2].adapter is not None and models[2].adapter["settings"]["mask"]["influence_scope"] == 0.1
    assert find_models(tiny_models.base, None)[0] == base
    assert all(model.source is None or model.source not in str(model.adapter) for model in models)


def test_adapters_that_are_refused(tiny_models: TinyModels, files: dict[str, str], tmp_path: Path) -> None:
    other = tiny_adapter(
        tmp_path / "other.safetensors", tiny_base(tmp_path / "other", seed=9), tiny_models.image_encoder
    )
    for entries, message in (
        (["one"], "'one' is not NAME=PATH"),
        (["a/b=x"], "'a/b=x' is not NAME=PATH"),
        ([f"one={files['one']}", f"one={files['two']}"], "two adapters have the name 'one'"),
        ([f"one={other}"], "one was trained for the base other@sha256-"),
        ([f"one={tmp_path}/none.safetensors"], "none.safetensors"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            find_models(tiny_models.base, tiny_models.adapter, entries)
        assert "\n" not in str(caught.value)


def test_an_object_store_without_the_adapter_is_said_at_once(tiny_models: TinyModels, bucket: str) -> None:
    began = time.monotonic()
    for address in (f"{bucket}/none.safetensors", "s3://no-such-bucket/none.safetensors"):
        with pytest.raises(UsageError, match=r"none\.safetensors"):
            find_models(tiny_models.base, None, [f"one={address}"])
    assert time.monotonic() - began < 10


def test_each_name_draws_with_its_adapter_and_few_are_kept(
    service: Service, files: dict[str, str], tiny_models: TinyModels
) -> None:
    async def lists() -> tuple[list[str], list[str]]:
        transport = httpx.ASGITransport(build_api(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            found = [(await client.get(path)).json()["data"] for path in ("/v1/models", "/v1/adapters")]
        return [model["id"] for model in found[0]], [adapter["model"] for adapter in found[1]]

    assert asyncio.run(lists()) == ([m.id for m in service.models()], [m.id for m in service.models() if m.adapter])
    own = adapter_sha256(tiny_models.adapter)
    pictures: dict[str, str] = {}
    for name in (*NAMES, "one"):
        [answer] = _talk(service, {"model": f"realcustom:{name}"})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert (body["model"], body["adapter"]) == (f"realcustom:{name}", adapter_sha256(files[name]))
        picture = body["data"][0]["b64_json"]
        assert pictures.setdefault(name, picture) == picture
        assert service.shelf.loaded() == [own, adapter_sha256(files[name])]  # room for two, of which the first stays
    assert len(set(pictures.values())) == 3
    alone = RealCustomPipeline.from_pretrained(
        tiny_models.base, adapter=files["two"], image_encoder=tiny_models.image_encoder, device="cpu"
    )
    engine = Engine(alone, threads=1, adapter={"id": "two", "sha256": "two"})
    single = Service(service.settings, lambda: engine)
    single.wait()
    [answer] = _talk(single, {})
    single.close()
    assert answer.json()["data"][0]["b64_json"] == pictures["two"]


def test_loading_one_does_not_stop_the_batch_and_those_in_use_stay(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = service.engine().pipeline
    load, loading, go_on = pipeline.with_adapter, threading.Event(), threading.Event()
    scheduler = type(pipeline.scheduler)
    step, steps = scheduler.step, Counter[int]()  # of each request's scheduler

    def slow_load(*args: Any) -> RealCustomPipeline:
        loading.set()
        assert go_on.wait(60)
        return load(*args)

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if loading.is_set():
            steps[id(self)] += 1
            if len(steps) == 8 and min(steps.values()) > 2:  # taken while the adapter is being loaded
                go_on.set()
        return step(self, *args, **kwargs)

    monkeypatch.setattr(type(pipeline), "with_adapter", lambda _, *args: slow_load(*args))
    monkeypatch.setattr(scheduler, "step", counted)
    *running, named, refused = _talk(
        service,
        *({"num_inference_steps": 60, "seed": seed} for seed in range(8)),
        {"model": "realcustom:one"},
        {"model": "realcustom:two"},
    )
    assert [one.status_code for one in running] == [200] * 8 and go_on.is_set()
    assert sorted((named.status_code, refused.status_code)) == [200, 429]
    late = named if named.status_code == 429 else refused
    assert "in use" in late.json()["error"]["message"] and int(late.headers["Retry-After"]) >= 1
    [again] = _talk(service, {"model": "realcustom:two"})
    assert again.status_code == 200


def test_one_place_is_that_of_the_first_adapter(service: Service, models: tuple[ServedModel, ...]) -> None:
    shelf = AdapterShelf(service.engine(), max_adapters=1)
    with pytest.raises(QueueFull, match="all 1 adapters"):
        asyncio.run(shelf.hold(models[2]))
    asyncio.run(shelf.hold(models[0]))()
    assert shelf.loaded() == [models[0].sha256]
    shelf.close()


def test_one_that_cannot_be_loaded_any_more_is_503(
    service: Service, models: tuple[ServedModel, ...], files: dict[str, str], tmp_path: Path
) -> None:
    path = Path(files["three"])
    kept = path.rename(tmp_path / "kept")
    try:
        [answer] = _talk(service, {"model": "realcustom:three"})
    finally:
        kept.rename(path)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (503, "unavailable") and str(path.parent) not in error["message"]
    [answer] = _talk(service, {"model": "realcustom:three"})
    assert answer.status_code == 200

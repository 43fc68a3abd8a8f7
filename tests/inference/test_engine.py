"""The engine with a tiny random pipeline: seeds, company, cancellation, deadline, queue."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.inference.drawing import read_drawing
from realcustom.inference.engine import Engine
from realcustom.inference.errors import (
    Cancelled,
    DeadlineExceeded,
    EngineLost,
    QueueFull,
    RequestError,
    WordNotInPrompt,
)
from realcustom.inference.jobs import GenerationJob, Ticket
from realcustom.inference.schema import check_request
from realcustom.inference.service import Service
from realcustom.inference.settings import ServeSettings
from realcustom.output import to_images
from realcustom.sampling import SamplingParams
from realcustom.settings import Reference

REFERENCE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
PROMPT = "a cat in the snow"


def _job(prompt: str = PROMPT, subjects: tuple[Subject, ...] = (), **knobs: Any) -> GenerationJob:
    given: dict[str, Any] = {"seed": 7, "num_inference_steps": 3}
    return GenerationJob(prompt=prompt, subjects=subjects, sampling=SamplingParams(**(given | knobs)))


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 255.0


@pytest.fixture(scope="module")
def engine(tiny_pipeline: RealCustomPipeline) -> Iterator[Engine]:
    engine = Engine(tiny_pipeline, max_queue=2, deadline_seconds=60.0, threads=1)
    yield engine
    engine.close()


class Gate:
    """Holds the engine at a step until let go, and counts the steps that were run."""

    def __init__(self, pipeline: RealCustomPipeline, monkeypatch: pytest.MonkeyPatch, hold_at: int) -> None:
        self.steps = 0
        self.reached, self.open = threading.Event(), threading.Event()
        kind = type(pipeline.scheduler)
        step = kind.step

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.steps += 1
            if self.steps == hold_at:
                self.reached.set()
                assert self.open.wait(30)
            return step(*args, **kwargs)

        monkeypatch.setattr(kind, "step", counted)  # each job has a scheduler of its own


def test_image_i_is_that_of_seed_plus_i_alone_or_in_company(engine: Engine) -> None:
    subjects = (Subject(image=REFERENCE, word="cat"),)
    together = engine.submit(_job(n=3, subjects=subjects, return_masks=True)).future.result(60)
    assert together.seeds == [7, 8, 9]
    alone = [
        engine.submit(_job(seed=seed, subjects=subjects, return_masks=True)).future.result(60) for seed in (7, 8, 9)
    ]
    for i, one in enumerate(alone):
        np.testing.assert_allclose(_pixels(together.images[i]), _pixels(one.images[0]), atol=1.01 / 255)
        assert together.masks is not None and one.masks is not None
        assert one.masks.shape[:3] == (3, 1, 1) and one.masks.min() >= 0.0 and one.masks.max() == 1.0
        np.testing.assert_allclose(together.masks[:, i], one.masks[:, 0], atol=1e-4)
    assert np.abs(_pixels(alone[0].images[0]) - _pixels(alone[1].images[0])).max() > 0.01


def test_a_subject_is_encoded_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = engine.pipeline.image_encoder
    assert encoder is not None
    encode, calls = encoder.encode, []

    def counted(pixel_values: Any) -> Any:
        calls.append(len(pixel_values))
        return encode(pixel_values)

    monkeypatch.setattr(encoder, "encode", counted)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 24, 3), dtype=np.uint8))
    first = engine.submit(_job(subjects=(Subject(image=picture, word="cat"),))).future.result(60)
    again = engine.submit(_job(subjects=(Subject(image=picture.copy(), word="cat"),))).future.result(60)
    assert calls == [1]
    assert first.images[0].tobytes() == again.images[0].tobytes()


def test_a_cancelled_job_stops_within_one_step(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(engine.pipeline, monkeypatch, hold_at=2)
    ticket = engine.submit(_job(num_inference_steps=50))
    assert gate.reached.wait(30)
    ticket.cancel()
    gate.open.set()
    with pytest.raises(Cancelled):
        ticket.future.result(30)
    assert gate.steps == 2  # the step it was in was the last


def test_queue_full_and_a_cancelled_place_is_free(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(engine.pipeline, monkeypatch, hold_at=1)
    job = replace(_job(), alone=True)  # in other company images differ by rounding
    running = engine.submit(job)
    assert gate.reached.wait(30)
    waiting = [engine.submit(job) for _ in range(2)]
    with pytest.raises(QueueFull) as caught:
        engine.submit(_job())
    assert int(caught.value.headers()["Retry-After"]) >= 1
    waiting[0].cancel()
    third = engine.submit(replace(_job(seed=8), alone=True))
    gate.open.set()
    with pytest.raises(Cancelled):
        waiting[0].future.result(60)
    images = [ticket.future.result(60).images[0].tobytes() for ticket in (running, waiting[1], third)]
    assert images[0] == images[1] != images[2]


def test_deadline(tiny_pipeline: RealCustomPipeline) -> None:
    engine = Engine(tiny_pipeline, deadline_seconds=0.2, threads=1)
    with pytest.raises(DeadlineExceeded):
        engine.submit(_job(num_inference_steps=500)).future.result(60)
    engine.close()
    with pytest.raises(Cancelled):
        engine.submit(_job())


def test_decoding_has_no_deadline(tiny_pipeline: RealCustomPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline is that of the last step."""

    def slow(*args: Any) -> Any:
        time.sleep(1.2)
        return to_images(*args)

    monkeypatch.setattr("realcustom.inference.engine.to_images", slow)
    service = Service(ServeSettings(deadline_seconds=1.0), lambda: Engine(tiny_pipeline, threads=1))
    service.wait()
    try:
        drawing = read_drawing(check_request({"prompt": PROMPT}, service.settings), service.settings, 1.0)

        async def draw() -> bytes:
            return await (await service.draw(drawing)).answer()

        assert b'"b64_json"' in asyncio.run(draw())
    finally:
        service.close()


def test_a_step_hangs_when_it_takes_much_longer_than_expected(
    tiny_pipeline: RealCustomPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("realcustom.inference.engine.STALLED_SECONDS", 0.05)
    service = Service(ServeSettings(), lambda: Engine(tiny_pipeline, threads=1))
    service.wait()
    engine = service.engine()
    try:
        for expected, hangs in ((1e-3, True), (5.0, False)):
            engine.forget_seconds()
            engine.cost.learn((16, 16), 1, 1, expected)
            with monkeypatch.context() as patch:
                gate = Gate(tiny_pipeline, patch, hold_at=1)
                ticket = engine.submit(_job())
                assert gate.reached.wait(30)
                time.sleep(0.3)
                assert engine.alive is not hangs
                if hangs:
                    with pytest.raises(RuntimeError, match="a step hangs"):
                        service.check()
                gate.open.set()
                ticket.future.result(60)
            assert engine.alive
    finally:
        service.close()


def test_a_subject_that_was_encoded_for_another_model_is_a_sentence(engine: Engine) -> None:
    encoded = engine.pipeline.encode_subject(REFERENCE)
    engine.check(_job(subjects=(Subject(image=encoded, word="cat"),)))
    other = replace(encoded, settings=replace(encoded.settings, reference=Reference.CROP))
    for subject in (other, replace(encoded, encoder="another")):
        with pytest.raises(RequestError, match="send its picture as `image`") as caught:
            engine.check(_job(subjects=(Subject(image=subject, word="cat"),)))
        assert caught.value.param == "subjects[0].id" and "pipe" not in caught.value.message


def test_closing_gives_up_what_runs_and_waits(
    tiny_pipeline: RealCustomPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tiny_pipeline, threads=1)
    gate = Gate(tiny_pipeline, monkeypatch, hold_at=1)
    tickets = [engine.submit(_job()) for _ in range(2)]
    assert gate.reached.wait(30)
    closer = threading.Thread(target=engine.close)
    closer.start()
    gate.open.set()
    closer.join(30)
    assert not engine.alive
    assert all(isinstance(ticket.future.exception(0), EngineLost) for ticket in tickets)


@pytest.mark.parametrize(
    ("fields", "kind", "param", "message"),
    [
        ({"subjects": (Subject(image=REFERENCE, word="dog"),)}, WordNotInPrompt, "subjects[0].word", "a, cat, in, the"),
        ({"subjects": (Subject(image=REFERENCE, word="cat", occurrence=3),)}, WordNotInPrompt, "subjects[0].word", "3"),
        ({"subjects": (Subject(image=REFERENCE, word=" "),)}, RequestError, "subjects[0].word", "empty"),
        ({"width": 32, "height": 33}, RequestError, "size", "height must be a multiple of 2 pixels, got 33"),
    ],
)
def test_what_would_be_refused_later_is_refused_before_the_queue(
    engine: Engine, fields: dict[str, Any], kind: type[RequestError], param: str, message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        engine.check(_job(**fields))
    assert caught.value.param == param
    with pytest.raises(RequestError):  # and by the pipeline as well: the two do not drift apart
        engine.submit(_job(**fields)).future.result(60)
    engine.check(_job(width=48, height=32, subjects=(Subject(image=REFERENCE, word="Cat", occurrence="first"),)))


def test_a_word_of_a_long_prompt(engine: Engine) -> None:
    """Refused where the text encoder stops before it, unless all of the prompt is to be read."""
    fields: dict[str, Any] = {"prompt": "a " * 80 + "cat", "subjects": (Subject(image=REFERENCE, word="cat"),)}
    with pytest.raises(RequestError, match="token 81 of the prompt, the text encoder reads 75") as caught:
        engine.check(_job(**fields))
    assert caught.value.param == "subjects[0].word"
    engine.check(_job(**fields, long_prompt=True))
    assert len(engine.submit(_job(**fields, long_prompt=True)).future.result(60).images) == 1
    with pytest.raises(RequestError, match="clip_skip is at most 2"):
        engine.submit(_job(clip_skip=9)).future.result(60)


def test_a_bug_is_that_requests_answer_and_the_engine_goes_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine.pipeline.scheduler, "step", None)
        with pytest.raises(TypeError):
            engine.submit(_job()).future.result(60)
    ticket: Ticket = engine.submit(_job(num_inference_steps=1))
    assert len(ticket.future.result(60).images) == 1

"""An engine's first steps are taken before its first request; with compilation no request makes a graph."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from realcustom.config import override
from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.errors import UsageError
from realcustom.inference.engine import Engine
from realcustom.inference.jobs import Generation, GenerationJob
from realcustom.inference.loading import load_engine
from realcustom.inference.models import ServedModel
from realcustom.inference.order import LargestStretch
from realcustom.inference.settings import ServeSettings
from realcustom.inference.warm_up import warm_up
from realcustom.sampling import SamplingParams
from tests.support.tiny import ADAPTER, TinyModels

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
WARM, COLD = (32, 32), (48, 32)
BATCH_SIZES = (2, 4)


def job(seed: int, size: tuple[int, int], n: int = 1) -> GenerationJob:
    sampling = SamplingParams(seed=seed, n=n, num_inference_steps=3, width=size[0], height=size[1])
    subjects = (Subject(image=PICTURE, word="cat"),) if seed % 2 else ()
    return GenerationJob(prompt="a cat in the snow", subjects=subjects, sampling=sampling, adapter=ADAPTER["sha256"])


def drawn(engine: Engine, jobs: list[GenerationJob]) -> list[Generation]:
    tickets = [engine.submit(one) for one in jobs]
    return [ticket.future.result(60) for ticket in tickets]


def pipeline(models: TinyModels) -> RealCustomPipeline:
    return RealCustomPipeline.from_pretrained(
        models.base, adapter=models.adapter, image_encoder=models.image_encoder, device="cpu"
    )


@pytest.fixture
def compiled(tiny_models: TinyModels) -> Iterator[tuple[Engine, list[int]]]:
    """An engine with a compiled UNet, and the rows of the UNet's calls."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pipe, rows = pipeline(tiny_models), list[int]()
    pipe.base.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    pipe.compile(dynamic=False, backend="eager")
    engine = Engine(pipe, adapter=ADAPTER, threads=1, order=LargestStretch(batch_sizes=BATCH_SIZES))
    yield engine, rows
    engine.close()
    torch._dynamo.reset()


@pytest.mark.slow  # tracing takes seconds
def test_no_request_makes_a_graph_and_images_stay_the_same(
    compiled: tuple[Engine, list[int]], tiny_models: TinyModels
) -> None:
    engine, rows = compiled
    warm_up(engine, [WARM], BATCH_SIZES, max_cells=10**6)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0 and set(rows) == set(BATCH_SIZES) and engine.cost.known
    rows.clear()
    jobs = [job(seed, WARM, 1 + seed % 3) for seed in range(6)]
    found = drawn(engine, jobs)
    assert set(rows) <= {*BATCH_SIZES, 6, 9}  # one with more rows than the largest batch is not padded
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    rows.clear()
    found += drawn(engine, [job(7, COLD)])  # a size that was not warmed up: not padded, and nothing is compiled
    assert 1 in rows and torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    plain = Engine(pipeline(tiny_models), adapter=ADAPTER, threads=1)
    for one, own in zip(found, [drawn(plain, [one])[0] for one in [*jobs, job(7, COLD)]], strict=True):
        assert one.usage.forwards == own.usage.forwards
        for image, other in zip(one.images, own.images, strict=True):
            difference = np.abs(np.asarray(image, dtype=np.float32) - np.asarray(other, dtype=np.float32))
            assert difference.max() <= 1
    plain.close()


def loaded(models: TinyModels, **settings: Any) -> Engine:
    model = ServedModel(id="tiny", adapter=None)
    return load_engine(ServeSettings(device="cpu", threads=1, **settings), models.base, model, None)


def test_a_loaded_engine_has_taken_its_first_steps(tiny_models: TinyModels) -> None:
    engine = loaded(tiny_models, warm_up=("auto", "48x32"), deadline_seconds=7.0)
    try:
        assert engine.may_compile and not any(engine.batch_sizes.values()) and engine.jobs == 0
        assert set(engine.cost._sums) == {(16, 16), (16, 24)}
        assert engine.deadline_seconds == 7.0
    finally:
        engine.close()
    cold = loaded(tiny_models, warm_up=())
    assert not cold.cost.known
    cold.close()


def test_a_size_that_cannot_be_warmed_up_is_one_sentence_and_leaves_no_thread(tiny_models: TinyModels) -> None:
    before = threading.active_count()
    with pytest.raises(UsageError, match="warm_up: size: the width must be a multiple of 2 pixels, got 33"):
        loaded(tiny_models, warm_up=("33x32",))
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warm_up": ("32",)}, "warm_up takes sizes as 512x512 or auto, got '32'"),
        ({"batch_sizes": ()}, "batch_sizes takes numbers of 1 or more"),
        ({"batch_sizes": (0, 2)}, "batch_sizes takes numbers of 1 or more"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ServeSettings(**settings)


def test_a_batch_is_filled_to_the_rows_that_are_computed_anyway() -> None:
    chance = random.Random(0)
    for _ in range(200):
        sizes = tuple(sorted(chance.sample(range(1, 40), chance.randint(1, 5))))
        wanted, fitting = chance.randint(1, 50), chance.randint(1, 50)
        limit = LargestStretch(max_cells=fitting * 6, batch_sizes=sizes)._limit((2, 3), wanted)
        assert limit <= fitting
        if room := [size for size in sizes if size <= fitting]:
            assert limit == next((size for size in room if size >= min(wanted, fitting)), room[-1])
        else:
            assert limit == min(wanted, fitting)


def test_an_adapter_of_cut_out_subjects_is_warmed_up(tiny_models: TinyModels) -> None:
    pipe = pipeline(tiny_models)
    pipe.settings = override(pipe.settings, {"image_encoder": {"reference": "crop"}})
    engine = Engine(pipe, adapter=ADAPTER, threads=1)
    warm_up(engine, [WARM], (), max_cells=10**6)
    assert engine.cost.known
    engine.close()

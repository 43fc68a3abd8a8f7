"""Requests in company: each equals itself alone, costs what it costs alone, and ends when it would."""

from __future__ import annotations

import copy
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from realcustom.config import override
from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.inference.cost import KNOWN_SIZES, Load, StepCost
from realcustom.inference.engine import Engine
from realcustom.inference.errors import Cancelled, DeadlineExceeded, QueueFull
from realcustom.inference.expectation import check_time
from realcustom.inference.images import encode_picture
from realcustom.inference.jobs import GenerationJob, Ticket
from realcustom.inference.order import LargestStretch, Running
from realcustom.launch import Launch, run_together
from realcustom.maps import MapRecorder, text_cross_attentions
from realcustom.mask import influence_mask
from realcustom.model import RealCustomModel
from realcustom.output import to_images
from realcustom.sampler import Sampler
from realcustom.sampling import SamplingParams
from realcustom.settings import GuidanceMode, MaskSource
from tests.support.tiny import TinyModels, tiny_adapter, tiny_image_encoder, tiny_sdxl_base, tiny_settings

PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)) for seed in range(4)
]
PROMPTS = ("a cat in the snow", "the dog and a cat on grass", "a toy star in space")
WORDS = (("cat",), ("dog", "cat"), ("star",))
SCHEDULERS = (
    "DDIMScheduler",
    "EulerDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "PNDMScheduler",
)
SIZES = ((32, 32), (32, 48), (48, 32))
PADDED = (4, 8, 32)  # rows of the UNet calls of half of the crowds


@pytest.fixture(scope="module")
def pipelines(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> list[RealCustomPipeline]:
    """Two adapters of one base, the second with other settings and weights; and the base alone."""
    first = RealCustomPipeline.from_pretrained(
        tiny_models.base, adapter=tiny_models.adapter, image_encoder=tiny_models.image_encoder, device="cpu"
    )
    settings = override(
        tiny_settings(),
        {
            "mask": {"source": "previous", "influence_scope": 0.4},
            "guidance": {"mode": "direct"},
            "attn": {"scale": 0.7},
        },
    )
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("second") / "adapter.safetensors"
    second = first.with_adapter(tiny_adapter(path, tiny_models.base, tiny_models.image_encoder, settings))
    assert second.image_encoder is first.image_encoder and second.base is first.base
    plain = RealCustomPipeline(first.base, tiny_settings())
    return [first, second, plain]


@dataclass(kw_only=True)
class Alone:
    """A request that was run by itself: what it is in company is held against it."""

    arguments: dict[str, Any]
    pipeline: RealCustomPipeline
    arrival: int  # turns of the crowd before it comes
    gives_up: int | None  # its own steps after which it is cancelled
    masks: list[tuple[Tensor, ...] | None] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    forwards: int = 0
    kinds: list[set[bool]] = field(default_factory=list)  # of each step's calls, whether it comes before the others

    def sampler(self) -> Sampler:
        scheduler = getattr(diffusers, self.arguments["scheduler"]).from_config(self.pipeline.scheduler.config)
        return self.pipeline.prepare(
            self.arguments["prompt"], self.arguments["subjects"], self.arguments["sampling"], scheduler=scheduler
        ).sampler

    def run(self) -> Alone:
        sampler = self.sampler()
        self.forwards = sampler.forwards_left()
        rows: list[int] = []
        while not sampler.done:
            self.kinds.append(set())
            (step,) = run_together(sampler.unet, [told_of(sampler.launches(), self.kinds[-1])], rows)
            assert not isinstance(step, Exception)
            self.masks.append(step.masks)
            self.latents.append(step.latents)
        assert sum(rows) == self.forwards and len(rows) == sum(map(len, self.kinds))
        return self


def told_of(steps: Generator[Any, Any, Any], kinds: set[bool]) -> Generator[Any, Any, Any]:
    """A sampler's step; which kinds of UNet calls it asks for is put into `kinds`."""
    found = None
    while True:
        try:
            work = steps.send(found)
        except StopIteration as stop:
            return stop.value
        if isinstance(work, Launch):
            kinds.add(work.before_others)
        found = yield work


def random_request(chance: random.Random, pipelines: list[RealCustomPipeline]) -> Alone:
    number = chance.randrange(3)
    pipeline = chance.choice(pipelines)
    words = WORDS[number][: chance.randint(0, 2)] if pipeline.model is not None else ()
    scheduler = chance.choice(SCHEDULERS)
    steps = chance.randint(4 if scheduler == "PNDMScheduler" else 1, 5)
    height, width = chance.choice(SIZES)
    cascade = pipeline.settings.guidance.mode is GuidanceMode.CASCADE
    weights: dict[str, Any] = {"guidance_scale" if cascade else "subject_guidance_scale": chance.choice((1.0, 5.0))}
    if words:
        weights |= {"influence_quantity": chance.choice((None, 0.5)), "mask_reuse_after": chance.choice((None, 1, 2))}
        weights["return_masks"] = chance.random() < 0.3
    sampling = SamplingParams(
        n=chance.choice((1, 1, 2)),
        seed=chance.randrange(10**6),
        height=height,
        width=width,
        num_inference_steps=steps,
        **(weights if words or pipeline.model is None else {}),
    )
    arguments = {
        "prompt": PROMPTS[number],
        "subjects": [Subject(image=chance.choice(PICTURES), word=word) for word in words],
        "sampling": sampling,
        "scheduler": scheduler,
    }
    gives_up = chance.randint(0, steps) if chance.random() < 0.2 else None
    return Alone(arguments=arguments, pipeline=pipeline, arrival=chance.randint(0, 5), gives_up=gives_up).run()


def running(alone: Alone) -> Running:
    """In company, with the masks that it had alone: which cells are kept may turn on the last bit."""
    sampler = alone.sampler()
    build = sampler._build_masks

    def replayed(recorder: Any) -> Any:
        own, found = alone.masks[sampler.position], (yield from build(recorder))
        assert own is not None
        other = torch.cat([(a > 0) != (b > 0) for a, b in zip(found, own, strict=True)]).float().mean()
        assert other <= 0.05, "the masks differ in more than a cell here and there"
        return own

    sampler._build_masks = replayed  # type: ignore[method-assign]
    job = GenerationJob(prompt="", sampling=alone.arguments["sampling"])
    ticket = Ticket(job, time.monotonic() + 1000)
    return Running(ticket=ticket, sampler=sampler, forwards=alone.forwards)


def check_crowd(seed: int, pipelines: list[RealCustomPipeline]) -> None:
    chance = random.Random(seed)
    sizes = PADDED if seed % 2 else ()
    crowd = [random_request(chance, pipelines) for _ in range(chance.randint(2, 5))]
    order, cost = LargestStretch(), StepCost()
    coming = sorted(crowd, key=lambda one: one.arrival)
    present: dict[Running, Alone] = {}
    largest = dict.fromkeys(range(len(crowd)), 0.0)
    turn, rows = 0, list[int]()
    while coming or present:
        while coming and (coming[0].arrival <= turn or not present):
            one = coming.pop(0)
            present[running(one)] = one
        turn += 1
        chosen = order.choose(list(present), cost, float(turn))
        calls: list[int] = []
        launches = [member.sampler.launches() for member in chosen]
        results = run_together(chosen[0].sampler.unet, launches, calls, sizes)
        assert len({member.size for member in chosen}) == 1
        asked = set[bool]().union(*(present[member].kinds[member.sampler.position - 1] for member in chosen))
        assert len(calls) == len(asked)  # one for all passes whose maps make a mask, one for all other branches
        cost.learn(chosen[0].size, len(calls), sum(calls), 1e-3 * len(calls) + 1e-3 * sum(calls))
        rows += calls
        for member, step in zip(chosen, results, strict=True):
            alone = present[member]
            assert not isinstance(step, Exception), step
            expected = alone.latents[step.index]
            difference = float((step.latents - expected).abs().max() / expected.abs().max().clamp(min=1))
            number = crowd.index(alone)
            largest[number] = max(largest[number], difference)
            if member.sampler.done or alone.gives_up == member.sampler.position:
                del present[member]
    assert max(largest.values()) <= 1e-4, largest
    if all(one.gives_up is None for one in crowd):
        assert sum(rows) == sum(one.forwards for one in crowd)


@pytest.mark.parametrize("seed", range(12))
def test_each_in_a_crowd_equals_itself_alone(seed: int, pipelines: list[RealCustomPipeline]) -> None:
    check_crowd(seed, pipelines)


@pytest.mark.parametrize("number", [0, 1], ids=["cascade", "direct"])
@pytest.mark.parametrize("reuse_after", [None, 1, 2])
def test_calls_and_forwards_are_those_of_the_method(
    number: int, reuse_after: int | None, pipelines: list[RealCustomPipeline]
) -> None:
    """Method, section 7: of n steps with a new mask in r, direct 3r + 2(n - r) forwards and cascade 3n; n + r UNet calls."""
    steps, images, pipeline = 4, 2, pipelines[number]
    sampling = SamplingParams(seed=1, n=images, num_inference_steps=steps, mask_reuse_after=reuse_after)
    subjects = [Subject(image=PICTURES[0], word="cat")]
    arguments = {"prompt": PROMPTS[0], "subjects": subjects, "sampling": sampling, "scheduler": "DDIMScheduler"}
    alone = Alone(arguments=arguments, pipeline=pipeline, arrival=0, gives_up=None).run()
    passes = 1 if pipeline.settings.mask.source is MaskSource.PREVIOUS else min(steps, reuse_after or steps)
    direct = pipeline.settings.guidance.mode is GuidanceMode.DIRECT
    assert alone.forwards == images * (3 * passes + 2 * (steps - passes) if direct else 3 * steps)
    assert [len(kinds) for kinds in alone.kinds] == [2] * passes + [1] * (steps - passes)


def test_rows_of_sdxl_share_a_call(tmp_path: Path) -> None:
    """Pooled texts and sizes of pictures go with their rows."""
    base, encoder = tiny_sdxl_base(tmp_path / "base"), tiny_image_encoder(tmp_path / "encoder")
    adapter = tiny_adapter(tmp_path / "adapter.safetensors", base, encoder, tiny_settings())
    pipeline = RealCustomPipeline.from_pretrained(base, adapter, encoder)
    crowd = [
        Alone(
            arguments={
                "prompt": PROMPTS[number],
                "subjects": [Subject(image=PICTURES[number], word=word) for word in WORDS[number][:count]],
                "sampling": SamplingParams(seed=number, n=n, num_inference_steps=2, negative_prompt=negative),
                "scheduler": scheduler,
            },
            pipeline=pipeline,
            arrival=0,
            gives_up=None,
        ).run()
        for number, count, n, negative, scheduler in (
            (0, 1, 2, None, "DDIMScheduler"),
            (1, 2, 1, "snow", "EulerDiscreteScheduler"),
            (2, 0, 1, "a hat", "DDIMScheduler"),
        )
    ]
    together = [running(one).sampler for one in crowd]
    for index in range(2):
        rows: list[int] = []
        steps = run_together(together[0].unet, [one.launches() for one in together], rows)
        assert len(rows) == 2
        for one, step in zip(crowd, steps, strict=True):
            assert not isinstance(step, Exception), step
            torch.testing.assert_close(step.latents, one.latents[index], atol=1e-4, rtol=1e-4)


def test_the_same_bytes_at_the_same_shapes_of_calls(pipelines: list[RealCustomPipeline]) -> None:
    """Whoever the company is: another prompt, picture, seed and adapter than before."""

    def drawn(other: int, pipeline: RealCustomPipeline, sizes: Sequence[int]) -> str:
        samplers = [
            prepared_by.prepare(
                PROMPTS[prompt],
                [Subject(image=PICTURES[prompt], word=WORDS[prompt][-1])],
                SamplingParams(seed=prompt, num_inference_steps=2),
                scheduler=copy.deepcopy(prepared_by.scheduler),
            ).sampler
            for prompt, prepared_by in ((0, pipelines[0]), (other, pipeline))
        ]
        while not samplers[0].done:
            run_together(samplers[0].unet, [one.launches() for one in samplers], sizes=sizes)
        images = to_images(pipelines[0].base, samplers[0].latents, "pil")
        assert isinstance(images, list)
        return encode_picture(images[0])

    # another adapter under the same guidance: its calls have as many rows
    settings = replace(pipelines[0].settings, attn=replace(pipelines[0].settings.attn, scale=0.3))
    second = RealCustomPipeline(pipelines[0].base, settings, pipelines[0].model, pipelines[0].image_encoder)
    for sizes in ((), PADDED):
        assert len({drawn(1, pipelines[0], sizes), drawn(2, pipelines[0], sizes), drawn(2, second, sizes)}) == 1


@pytest.mark.slow
def test_two_hundred_crowds(pipelines: list[RealCustomPipeline]) -> None:
    for seed in range(100, 300):
        check_crowd(seed, pipelines)


def test_two_adapters_and_none_share_one_call(pipelines: list[RealCustomPipeline]) -> None:
    alone = [
        Alone(
            arguments={
                "prompt": PROMPTS[0],
                "subjects": [Subject(image=PICTURES[number], word="cat")] if pipeline.model is not None else [],
                "sampling": SamplingParams(seed=number, num_inference_steps=3),
                "scheduler": "DDIMScheduler",
            },
            pipeline=pipeline,
            arrival=0,
            gives_up=None,
        ).run()
        for number, pipeline in enumerate(pipelines)
    ]
    together = [running(one).sampler for one in alone]
    for index in range(3):
        rows: list[int] = []
        steps = run_together(together[0].unet, [one.launches() for one in together], rows)
        assert len(rows) <= 2
        for one, step in zip(alone, steps, strict=True):
            assert not isinstance(step, Exception)
            torch.testing.assert_close(step.latents, one.latents[index], atol=1e-4, rtol=1e-4)
    last = [one.latents[-1] for one in alone]
    assert (last[0] - last[1]).abs().max() > 0.01 and (last[0] - last[2]).abs().max() > 0.01


def test_alone_in_the_launch_has_the_same_bits_in_any_company(pipelines: list[RealCustomPipeline]) -> None:
    def sampler(alone: bool) -> Sampler:
        subjects = [Subject(image=PICTURES[0], word="cat")]
        sampling = SamplingParams(seed=3, num_inference_steps=3)
        pipeline = pipelines[0]
        scheduler = copy.deepcopy(pipeline.scheduler)
        return pipeline.prepare(PROMPTS[0], subjects, sampling, scheduler=scheduler, alone=alone).sampler

    own, by_itself, others = sampler(True), sampler(True), [sampler(False), sampler(False)]
    for _ in range(3):
        rows: list[int] = []
        run_together(own.unet, [one.launches() for one in (others[0], own, others[1])], rows)
        by_itself.step()
    assert torch.equal(own.latents, by_itself.latents)


@pytest.mark.parametrize("number", [0, 1], ids=["guidance", "previous"])
def test_what_has_equal_shapes_is_done_at_once(
    number: int, pipelines: list[RealCustomPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many attentions, maps, masks and scores for five requests as for one; two quantities of tokens are two attentions."""
    done: Counter[str] = Counter()

    def counted(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            done[name] += 1
            return function(*args, **kwargs)

        return call

    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted("attention", attention))
    monkeypatch.setattr(MapRecorder, "record", counted("record", MapRecorder.record))
    monkeypatch.setattr("realcustom.work.influence_mask", counted("mask", influence_mask))
    monkeypatch.setattr(RealCustomModel, "score", counted("score", RealCustomModel.score))

    def step(quantities: list[float]) -> Counter[str]:
        samplers = []
        for seed, quantity in enumerate(quantities):
            subjects = [Subject(image=PICTURES[seed % 4], word="cat", scope=0.2 + 0.1 * seed)]
            sampling = SamplingParams(seed=seed, num_inference_steps=4, influence_quantity=quantity)
            scheduler = copy.deepcopy(pipelines[number].scheduler)
            samplers.append(
                pipelines[number].prepare(PROMPTS[seed % 2], subjects, sampling, scheduler=scheduler).sampler
            )
        run_together(samplers[0].unet, [sampler.launches() for sampler in samplers])
        done.clear()
        results = run_together(samplers[0].unet, [sampler.launches() for sampler in samplers])
        assert not any(isinstance(result, Exception) for result in results)
        return Counter(done)

    alone = step([0.8])
    assert alone["record"] > 1 and alone["mask"] == 1
    assert step([0.8] * 5) == alone
    two = step([0.8, 0.5, 0.8, 0.5])
    layers = len(text_cross_attentions(pipelines[0].base.unet))
    assert two == alone + Counter(attention=layers, score=1)


def test_a_fault_in_one_mask_fails_that_request_alone(pipelines: list[RealCustomPipeline]) -> None:
    samplers = [
        pipelines[0]
        .prepare(
            PROMPTS[0],
            [Subject(image=PICTURES[0], word="cat")],
            SamplingParams(seed=seed, num_inference_steps=2),
            scheduler=copy.deepcopy(pipelines[0].scheduler),
        )
        .sampler
        for seed in range(3)
    ]
    samplers[1].latents = torch.full_like(samplers[1].latents, torch.nan)
    results = run_together(samplers[0].unet, [sampler.launches() for sampler in samplers])
    assert [isinstance(result, Exception) for result in results] == [False, True, False]
    assert "not finite" in str(results[1])


@pytest.mark.parametrize("number", [0, 1], ids=["guidance", "previous"])
def test_a_call_that_fails_is_made_for_each_request_alone(number: int, pipelines: list[RealCustomPipeline]) -> None:
    """What is too much for the device's memory together is not alone; a fault of one request is that request's."""
    pipeline = pipelines[number]

    def samplers() -> list[Sampler]:
        return [
            pipeline.prepare(
                PROMPTS[0],
                [Subject(image=PICTURES[seed], word="cat")],
                SamplingParams(seed=seed, num_inference_steps=2),
                scheduler=copy.deepcopy(pipeline.scheduler),
            ).sampler
            for seed in range(3)
        ]

    alone, together, faulty = samplers(), samplers(), samplers()
    for one in alone:
        one.step()
        one.step()
    largest = 2 * len(alone[0].latents)  # rows of a request's largest call
    failed = list[int]()

    def out_of_memory(_: Any, arguments: tuple[Tensor, ...]) -> None:
        if len(arguments[0]) > largest:
            failed.append(len(arguments[0]))
            raise torch.OutOfMemoryError("planted")

    hook, rows = together[0].unet.register_forward_pre_hook(out_of_memory), list[int]()
    try:
        for _ in range(2):
            results = run_together(together[0].unet, [one.launches() for one in together], rows)
            assert not any(isinstance(result, Exception) for result in results)
    finally:
        hook.remove()
    assert failed and max(rows) <= largest  # a call that failed is not counted: its rows were computed in others
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.latents, other.latents)

    def wrong(*_: Any, **__: Any) -> Any:
        launch = yield from plain(*_, **__)
        return replace(launch, subjects=[replace(one, projections={}, cache=None) for one in launch.subjects])

    plain = faulty[1]._launch
    faulty[1]._launch = wrong  # type: ignore[method-assign]
    results = run_together(faulty[0].unet, [one.launches() for one in faulty])
    assert [isinstance(result, KeyError) for result in results] == [False, True, False]


@pytest.fixture
def engine(pipelines: list[RealCustomPipeline]) -> Iterator[Engine]:
    engine = Engine(pipelines[0], adapter={"sha256": "first"}, threads=1)
    engine.add_adapter("second", pipelines[1])
    yield engine
    engine.close()


def job(steps: int = 3, adapter: str | None = "first", **more: Any) -> GenerationJob:
    subjects = () if adapter is None else (Subject(image=PICTURES[0], word="cat"),)
    sampling = SamplingParams(seed=1, num_inference_steps=steps)
    return GenerationJob(prompt=PROMPTS[0], subjects=subjects, sampling=sampling, adapter=adapter, **more)


class Steps:
    """The steps of jobs as the engine tells of them; can hold the engine at one."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.hold: dict[tuple[str, int], threading.Event] = {}
        self.reached: dict[tuple[str, int], threading.Event] = {}

    def of(self, name: str) -> Any:
        def told(progress: Any) -> None:
            at = (name, progress.step)
            self.seen.append(at)
            if at in self.hold:
                self.reached[at].set()
                assert self.hold[at].wait(30)

        return told

    def hold_at(self, name: str, step: int) -> tuple[threading.Event, threading.Event]:
        self.reached[name, step], self.hold[name, step] = threading.Event(), threading.Event()
        return self.reached[name, step], self.hold[name, step]


def test_a_newcomer_starts_within_a_step_and_leaves_when_it_is_done(engine: Engine) -> None:
    steps = Steps()
    reached, go_on = steps.hold_at("long", 2)
    long = engine.submit(job(30), steps.of("long"))
    assert reached.wait(30)
    short = engine.submit(job(2, "second"), steps.of("short"))
    deadline = time.monotonic() + 30
    while len(engine._running) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)  # the newcomer is prepared while the others step
    go_on.set()
    assert len(short.future.result(60).images) == 1
    first = steps.seen.index(("short", 1))
    assert steps.seen[:first].count(("long", 3)) + steps.seen[:first].count(("long", 4)) <= 2
    assert not long.future.done() and ("long", 30) not in steps.seen
    assert long.future.result(60).usage.forwards > 0
    assert [step for name, step in steps.seen if name == "short"] == [1, 2]


def test_a_bug_in_one_job_fails_that_job_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(engine.pipeline.scheduler)
    step, calls = kind.step, list[Any]()

    def planted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        if self is calls[0] and len([one for one in calls if one is self]) == 2:
            raise ZeroDivisionError("planted")
        return step(self, *args, **kwargs)

    monkeypatch.setattr(kind, "step", planted)
    tickets = [engine.submit(job(4)), engine.submit(job(4, "second")), engine.submit(job(4, None))]
    found = [ticket.future.exception(60) for ticket in tickets]
    assert [type(error) for error in found].count(ZeroDivisionError) == 1
    assert [type(error) for error in found].count(type(None)) == 2


def test_places_are_free_after_many_cancellations(engine: Engine) -> None:
    chance = random.Random(0)
    for _ in range(60):
        tickets = [
            engine.submit(job(chance.choice((2, 8)), chance.choice(("first", "second", None)))) for _ in range(3)
        ]
        time.sleep(chance.random() * 0.02)
        for ticket in tickets:
            ticket.cancel()
        for ticket in tickets:
            error = ticket.future.exception(60)
            assert error is None or isinstance(error, Cancelled)
    assert len(engine.submit(job(1)).future.result(60).images) == 1
    deadline = time.monotonic() + 10
    while engine.jobs and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.jobs == 0


def test_a_deadline_that_cannot_be_met_is_said_at_once(pipelines: list[RealCustomPipeline]) -> None:
    engine = Engine(pipelines[0], adapter={"sha256": "first"}, threads=1)
    try:
        engine.submit(job(1)).future.result(60)
        for _ in range(200):
            engine.cost.learn((16, 16), 2, 3, 1.0)  # as if a step took a second
        with pytest.raises(DeadlineExceeded, match=r"takes about \d+.* alone, and has 5 s"):
            engine.submit(job(30), deadline_seconds=5.0)
        steps = Steps()
        reached, go_on = steps.hold_at("long", 1)
        long = engine.submit(job(30), steps.of("long"), deadline_seconds=200.0)
        assert reached.wait(30)
        with pytest.raises(QueueFull) as refused:
            engine.submit(job(20), deadline_seconds=16.0)
        assert 1 <= int(refused.value.headers()["Retry-After"]) <= 60
        assert engine.jobs == 1
        go_on.set()
        assert long.future.result(60).usage.forwards > 0
    finally:
        engine.close()


def test_the_cost_of_a_step_is_learned() -> None:
    cost = StepCost()
    assert not cost.known and cost.seconds((32, 32), 1, 8) == 0
    for rows in (1, 2, 4, 8, 3) * 10:
        cost.learn((32, 32), 2, 2 * rows, 2 * 0.01 + 2 * rows * 0.002)
    call, row = cost.per_call_and_row((32, 32))
    assert call == pytest.approx(0.01, rel=1e-3) and row == pytest.approx(0.002, rel=1e-3)
    assert cost.full_rows((32, 32)) == 95
    assert cost.per_call_and_row((64, 64))[1] == pytest.approx(0.008, rel=1e-3)  # not seen: by its cells


def test_the_sizes_whose_cost_is_known_are_bounded_and_read_while_others_are_learned() -> None:
    cost = StepCost()
    for side in range(1, KNOWN_SIZES + 20):
        cost.learn((side, side), 1, side, 0.1)
        reading = iter(cost._sums)
        next(reading)
        cost.learn((1, side), 1, 1, 0.1)
        list(reading)  # of another thread, which the first's learning does not disturb
    assert len(cost._sums) == KNOWN_SIZES and (1, KNOWN_SIZES + 19) in cost._sums and (1, 1) not in cost._sums


def test_where_batching_is_cheap_many_fit_before_a_deadline() -> None:
    cost, size = StepCost(), (64, 64)
    for rows in (1, 2, 4, 8):
        cost.learn(size, 1, rows, 0.1 + 0.001 * rows)  # as on a GPU: a call costs a hundred rows
    job = Load(size=size, calls=50, rows=100)  # 5.1 s alone
    check_time(job, [job] * 10, 9.0, cost)  # 6.1 s together
    with pytest.raises(QueueFull, match=r"about 15\.3 s"):
        check_time(job, [replace(job, alone=True)] * 2, 9.0, cost)
    with pytest.raises(QueueFull):
        check_time(job, [replace(job, size=(32, 32))] * 10, 6.5, cost)  # other sizes take turns
    with pytest.raises(QueueFull):
        check_time(job, [job] * 200, 9.0, cost)  # rows cost a little too
    with pytest.raises(DeadlineExceeded):
        check_time(job, [], 3.0, cost)


@dataclass
class Plain:
    """What an order reads of a job."""

    left: float
    whole: float
    submitted: float = 0.0
    owner: str = ""
    deadline: float = math.inf


def test_a_short_job_passes_long_ones_and_a_long_one_never_starves(pipelines: list[RealCustomPipeline]) -> None:
    def make(steps: int, submitted: float, owner: str = "", deadline: float = 1e6) -> Running:
        prepared = pipelines[2].prepare(
            PROMPTS[0],
            [],
            SamplingParams(seed=1, num_inference_steps=steps, height=32, width=32),
            scheduler=copy.deepcopy(pipelines[2].scheduler),
        )
        ticket = Ticket(GenerationJob(prompt="", sampling=SamplingParams(seed=1), owner=owner), deadline)
        ticket.submitted = submitted
        forwards = prepared.sampler.forwards_left()
        return Running(ticket=ticket, sampler=prepared.sampler, forwards=forwards)

    cost = StepCost()
    for rows in (2, 4, 8):
        cost.learn((16, 16), 1, rows, 0.1 + 0.1 * rows)
    order = LargestStretch()
    long = [make(50, 0.0) for _ in range(3)]
    short = make(4, 100.0)
    assert order.choose([*long, short], cost, 101.0)[0] is not short or long[0].sampler.position  # both have waited
    late = order.choose([*(make(50, 100.0) for _ in range(3)), make(4, 100.0)], cost, 101.0)
    assert len(late) == 1 and late[0].sampler.start.steps == 4  # it leads, and long ones would slow it down
    assert len(order.choose(long, cost, 1.0)) == 3
    urgent = make(50, 100.0, deadline=120.0)  # of 15 s
    assert order.choose([make(4, 0.0), urgent], cost, 100.5)[0] is urgent
    hopeless = make(50, 0.0, deadline=101.0)
    assert order.choose([hopeless, make(4, 100.0)], cost, 100.99)[0] is not hopeless
    crowd = [make(4, 0.0, owner="a") for _ in range(9)]
    other = make(4, 50.0, owner="b")
    assert other in order.choose([*crowd, other], cost, 60.0)
    too_late = make(4, 50.0, owner="c", deadline=60.1)
    room = LargestStretch(max_cells=2 * too_late.rows * math.prod(too_late.size))
    assert room.choose([*crowd, too_late], cost, 60.0) == crowd[:2]


def test_a_call_has_so_many_cells_at_most(pipelines: list[RealCustomPipeline]) -> None:
    def make(side: int) -> Running:
        prepared = pipelines[2].prepare(
            PROMPTS[0],
            [],
            SamplingParams(seed=1, num_inference_steps=4, height=side, width=side),
            scheduler=copy.deepcopy(pipelines[2].scheduler),
        )
        ticket = Ticket(GenerationJob(prompt="", sampling=SamplingParams(seed=1)), 1e6)
        return Running(ticket=ticket, sampler=prepared.sampler, forwards=prepared.sampler.forwards_left())

    small, large = [make(32) for _ in range(4)], [make(64) for _ in range(4)]
    (height, width), rows = small[0].size, small[0].rows
    order = LargestStretch(max_cells=4 * rows * height * width)
    assert len(order.choose(small, StepCost(), 1.0)) == 4
    assert len(order.choose(large, StepCost(), 1.0)) == 1  # of four times the cells
    assert len(LargestStretch(max_cells=1).choose(small, StepCost(), 1.0)) == 1  # alone, where not even one fits


def test_settings_that_the_tests_rely_on(pipelines: list[RealCustomPipeline]) -> None:
    first, second, _ = pipelines
    assert first.settings.mask.source is MaskSource.GUIDANCE and second.settings.mask.source is MaskSource.PREVIOUS
    assert second.settings.guidance.mode is GuidanceMode.DIRECT

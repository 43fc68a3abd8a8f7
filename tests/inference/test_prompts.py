"""Encoded prompts are kept within their bytes, and what is drawn with a kept one has the same bits."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.inference.jobs import GenerationJob
from realcustom.inference.prompts import PromptCache
from realcustom.sampler import Sampler
from realcustom.sampling import SamplingParams

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
PROMPT = "a cat in the snow"


def job(prompt: str = PROMPT, words: tuple[str, ...] = ("cat",), **sampling: Any) -> GenerationJob:
    return GenerationJob(
        prompt=prompt,
        subjects=tuple(Subject(image=PICTURE, word=word) for word in words),
        sampling=SamplingParams(seed=3, num_inference_steps=2, **sampling),
    )


def drawn(sampler: Sampler) -> torch.Tensor:
    while not sampler.done:
        sampler.step()
    return sampler.latents


@pytest.mark.parametrize(
    "one",
    [
        job(),
        job(words=()),
        job(words=("cat", "snow"), n=2),
        job(negative_prompt="a dog"),
        job(clip_skip=1),
        job(prompt="a cat " * 60, long_prompt=True),
    ],
    ids=["subject", "no subject", "two of each", "negative", "clip_skip", "long"],
)
def test_a_kept_prompt_draws_the_same_bits(tiny_pipeline: RealCustomPipeline, one: GenerationJob) -> None:
    cache, encoded = PromptCache(10**9), list[int]()
    hook = tiny_pipeline.base.text_encoder.register_forward_hook(lambda *_: encoded.append(1))
    try:
        first = drawn(cache.prepare(tiny_pipeline, one, copy.deepcopy(tiny_pipeline.scheduler)).sampler)
        before = len(encoded)
        again = drawn(cache.prepare(tiny_pipeline, one, copy.deepcopy(tiny_pipeline.scheduler)).sampler)
    finally:
        hook.remove()
    plain = tiny_pipeline.prepare(one.prompt, one.subjects, one.sampling).sampler
    assert torch.equal(first, again) and torch.equal(first, drawn(plain))
    assert cache.hits == 1 and len(encoded) == before > 0


def test_a_new_prompt_encodes_no_empty_text_again(tiny_pipeline: RealCustomPipeline) -> None:
    cache, encoded = PromptCache(10**9), list[int]()
    hook = tiny_pipeline.base.text_encoder.register_forward_hook(lambda *_: encoded.append(1))
    asked = [job(), job(prompt="a dog and a cat"), job(negative_prompt="a dog"), job(words=(), negative_prompt="a hat")]
    try:
        found = [cache.prepare(tiny_pipeline, one, copy.deepcopy(tiny_pipeline.scheduler)).sampler for one in asked]
        assert len(encoded) == 2 + 1 + 1 + 1 and cache.hits == 0
        own = [tiny_pipeline.prepare(one.prompt, one.subjects, one.sampling).sampler for one in asked]
    finally:
        hook.remove()
    for one, other in zip(found, own, strict=True):
        assert torch.equal(one.rows.prompt_embeds, other.rows.prompt_embeds)
        assert torch.equal(one.rows.negative_prompt_embeds, other.rows.negative_prompt_embeds)


def test_other_texts_are_others(tiny_pipeline: RealCustomPipeline) -> None:
    cache = PromptCache(10**9)
    for one in (job(), job(negative_prompt="a dog"), job(clip_skip=1), job("a cat in space")):
        cache.prepare(tiny_pipeline, one, copy.deepcopy(tiny_pipeline.scheduler))
    assert cache.hits == 0


def test_those_not_used_for_longest_go(tiny_pipeline: RealCustomPipeline) -> None:
    def ask(*prompts: str) -> int:
        before = cache.hits
        for prompt in prompts:
            cache.prepare(tiny_pipeline, job(prompt), copy.deepcopy(tiny_pipeline.scheduler))
        return cache.hits - before

    cache = PromptCache(10**9)
    ask("a cat")
    each = cache.held_bytes // 2  # the prompt, and the empty text of the unconditional branch
    cache = PromptCache(3 * each)
    assert ask("a cat", "the cat", "a cat", "cat in snow") == 1  # "the cat" goes
    assert cache.held_bytes == 3 * each
    assert ask("a cat", "cat in snow") == 2 and ask("the cat") == 0
    cache = PromptCache(1)
    assert ask("a cat", "a cat") == 0 and cache.held_bytes == 0

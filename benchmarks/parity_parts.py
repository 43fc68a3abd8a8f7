"""Comparisons of single functions with the release's, on random tensors; each gives its relative differences."""

from __future__ import annotations

import itertools
import types
from typing import Any

import torch
from diffusers import EulerDiscreteScheduler
from parity_release import Release
from torch import Tensor

from realcustom.guidance import Branch, Weights, combine
from realcustom.mask import influence_mask
from realcustom.presets import released_sdxl
from realcustom.projector import make_projector
from realcustom.released_solver import ReleasedSolver
from realcustom.schedule import make_scheduler
from realcustom.settings import (
    GuidanceMode,
    GuidanceSettings,
    MaskNorm,
    MaskSelect,
    MaskSettings,
    Projector,
    WordMatching,
)
from realcustom.words import TargetWordNotFound, TargetWordTruncated, find_word
from tests.support.tiny import tiny_tokenizer

GRIDS = ((8, 12), (8, 12), (4, 6), (4, 6), (4, 6), (2, 3))
PROMPTS = (
    "a toy dog on grass",
    "a dog and a cat and a dog",
    "hotdog in the snow",
    "the star, with a hat in space",
    "a category of cat",
    "toys on grass toys",
    "a plushie on the grass " + "in the snow " * 20 + "with a plushie hat",
)
PHRASES = ("dog", "cat", "toy", "toy dog", "grass", "star", "plushie", "a", "hat", "horse", "in space")


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-12))


def seeded(number: int) -> torch.Generator:
    """A generator of random tensors."""
    return torch.Generator().manual_seed(number)


def masks(release: Release) -> list[float]:
    """Each norm and selection of its mask generation, on softmaxed maps of six layers."""
    generate = release.module("mask_generation").mask_generation
    word = torch.zeros(1, 77)
    word[0, 3:5] = 1
    layers = [torch.randn(2, 4, 77, h, w, generator=seeded(i)).mul(2).softmax(2) for i, (h, w) in enumerate(GRIDS)]
    maps = [(layer.mean(1) * word[..., None, None]).sum(1, keepdim=True) for layer in layers]
    norms = {
        "max_norm": MaskNorm.MAX,
        "min_max_norm": MaskNorm.MINMAX,
        "min_max_per_channel": MaskNorm.MINMAX_PER_LAYER,
        "": MaskNorm.NONE,
    }
    found = []
    for (key, norm), select, binary, scope in itertools.product(
        norms.items(), MaskSelect, (False, True), (0.2, 0.25, 0.6)
    ):
        if norm is MaskNorm.NONE and select is MaskSelect.THRESHOLD:
            continue  # needs a norm: the raw map's values are all below any threshold
        mode = [key, *(["threshold"] if select is MaskSelect.THRESHOLD else []), *(["binary"] if binary else [])]
        theirs = generate([layer.clone() for layer in layers], [], word, scope, *GRIDS[0], mask_mode=mode)
        settings = MaskSettings(norm=norm, select=select, binary=binary, eps=1e-6)
        found.append(relative(influence_mask(maps, scope, settings, grid=GRIDS[0]), theirs))
    return found


def guidance(release: Release) -> list[float]:
    """Its five modes, with and without rescaling."""
    cascade = release.module("inference_utils").classifier_free_guidance_image_prompt_cascade
    text, image, null = (torch.randn(3, 4, 8, 12, generator=seeded(i)) for i in range(3))
    mask = (torch.rand(3, 1, 8, 12, generator=seeded(3)) > 0.5).float()
    modes = {
        "none": (GuidanceMode.CASCADE, 0.0, False),
        "none_direct": (GuidanceMode.DIRECT, 0.0, False),
        "naive": (GuidanceMode.CASCADE, 0.7, True),
        "naive_global": (GuidanceMode.CASCADE, 0.7, False),
        "naive_global_direct": (GuidanceMode.DIRECT, 0.7, False),
    }
    found = []
    for name, (mode, rescale, by_mask) in modes.items():
        theirs = cascade(text, image, null, 7.5, 12.5, rescale, name, mask)
        settings = GuidanceSettings(mode=mode, guidance_rescale=rescale, rescale_by_mask=by_mask)
        predictions = {Branch.UNCONDITIONAL: null, Branch.GUIDANCE: text, Branch.GENERATION: image}
        found.append(relative(combine(predictions, Weights(settings=settings, has_subjects=True), mask), theirs))
    return found


def projectors(release: Release) -> list[float]:
    """Its two projectors, with their weights under their names in ours."""
    own = release.module("models.projectors")
    tokens = [torch.randn(2, count, 128, generator=seeded(count)) for count in (16, 16, 16, 16, 64)]
    found = []
    for kind, theirs, shallow in (
        (Projector.HIGHRES, own.ProjectorHighResMinAttn(128, 48), 0),
        (Projector.SHALLOW_V1_COMPAT, own.ProjectorHighResShallowMinAttnV1(128, 48), 3),
    ):
        ours = make_projector(kind, 128, 48, 4, shallow)
        assert ours is not None
        ours.load_state_dict(theirs.state_dict())  # strictly: the names are the same
        *before, deep, local = tokens[3 - shallow :]
        with torch.no_grad():
            expected = theirs([*before, deep, local])
            found.append(relative(ours(torch.cat([deep, *before, local], 1)), expected))
    return found


def word_search(release: Release) -> list[float]:
    """0 where both find the same tokens of a phrase, or neither any; else 1."""
    tokenizer = tiny_tokenizer()
    model = types.SimpleNamespace(device="cpu")
    text_model = types.SimpleNamespace(tokenizers=[tokenizer] * 2, models=[model] * 2)
    length = release.module("models.text").TextModel.get_vaild_token_length
    text_model.get_vaild_token_length = types.MethodType(length, text_model)
    found = []
    for prompt, phrase in itertools.product(PROMPTS, PHRASES):
        try:
            ours = list(find_word(tokenizer, prompt, phrase, match=WordMatching.RELEASE_COMPAT).positions)
        except (TargetWordNotFound, TargetWordTruncated):  # the release goes on with a mask of zeros
            ours = []
        found.append(float(ours != release.word_tokens(text_model, prompt, phrase)))
    return found


def sdxl_schedule() -> EulerDiscreteScheduler:
    """SDXL's own scheduler."""
    return EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def solvers(release: Release, steps: int) -> tuple[Any, ReleasedSolver]:
    """The release's solver and ours, from SDXL's betas."""
    betas = release.module("schedulers.utils").get_betas("squared_linear", 1000)
    theirs = release.module("schedulers.dpm_s").DPMSolverSingleStepScheduler(1000, steps, betas)
    ours: ReleasedSolver = make_scheduler(sdxl_schedule(), released_sdxl().sampler)
    ours.set_timesteps(steps)
    return theirs, ours


def timesteps(release: Release) -> list[float]:
    """As shares of the 1000 that there are."""
    pairs = (solvers(release, steps) for steps in range(1, 51))
    return [float((theirs.timesteps - ours.timesteps).abs().max()) / 1000 for theirs, ours in pairs]


def solver(release: Release) -> list[float]:
    """Both solvers on the same smooth function of their own latents."""
    found = []
    for steps in (10, 25, 30):
        theirs, ours = solvers(release, steps)
        expected = latents = torch.randn(2, 4, 8, 8, generator=seeded(0))
        for index, timestep in enumerate(ours.timesteps):
            noise = [0.5 * x + 0.3 * torch.sin(2 * x + timestep / 300) for x in (expected, latents)]
            step = theirs.step(noise[0], "epsilon", timestep, expected)
            expected = step.pred_original_sample if index == steps - 1 else step.prev_sample  # what it decodes
            latents = ours.step(noise[1], timestep, latents, return_dict=False)[0]
            found.append(relative(latents, expected))
    return found

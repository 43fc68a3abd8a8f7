"""One call of a pipeline, from its arguments to its images: checked, read, made into rows, denoised, decoded.

Letters: B images, P prompts, c h w latent, S image tokens, Di image width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from realcustom.arguments import OUTPUT_TYPES, Subject, generators_for, read_schedule, settings_with, warn_of_idle
from realcustom.attention import check_unpatched
from realcustom.base import Base
from realcustom.callbacks import Callback, run_steps, tensor_inputs
from realcustom.conditioning import encode_text
from realcustom.control_inputs import make_controls
from realcustom.errors import UsageError
from realcustom.image_inputs import ImageInputs
from realcustom.output import RealCustomOutput, to_images
from realcustom.prompts import CallText, TextInputs, read_text, warn_of_text
from realcustom.rows import make_rows, match_words
from realcustom.sampler import Sampler
from realcustom.sampling import SamplingParams
from realcustom.schedule import set_timesteps, step_arguments
from realcustom.settings import MethodSettings, Uncond
from realcustom.sizes import PictureSizes
from realcustom.start import make_start
from realcustom.words import WordMatch

if TYPE_CHECKING:
    from realcustom.diffusion_pipeline import RealCustomPipeline

NO_ADAPTER = "subjects need an adapter: give one to from_pretrained(adapter=...)"


@dataclass(frozen=True, kw_only=True)
class Call:
    """A call's arguments; `RealCustomPipeline.__call__` says what they mean."""

    prompt: str | Sequence[str] | None
    subjects: Sequence[Subject] | Sequence[Sequence[Subject]]
    sampling: SamplingParams
    text: TextInputs = field(default_factory=TextInputs)
    images: ImageInputs = field(default_factory=ImageInputs)
    sizes: PictureSizes = field(default_factory=PictureSizes)
    generator: torch.Generator | Sequence[torch.Generator] | None = None  # wins over `sampling.seed`
    eta: float | None = None
    timesteps: Sequence[int] | None = None
    sigmas: Sequence[float] | None = None
    latents: Tensor | None = None  # (B, c, h, w)
    output_type: str = "pil"
    callback: Callback | None = None
    callback_inputs: Sequence[str] | None = None  # the tensors that it gets


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A call that is ready for its first step."""

    sampler: Sampler
    words: list[list[str]]  # of each image, the subjects' words as found


@torch.no_grad()
def draw(pipe: RealCustomPipeline, call: Call) -> RealCustomOutput:
    """`sampling.n` images of each prompt, image i from seed + i. Raises as `RealCustomPipeline.__call__`."""
    if not isinstance(call.output_type, str) or call.output_type not in OUTPUT_TYPES:
        raise UsageError(f"output_type is 'pil', 'np', 'pt' or 'latent', got {call.output_type!r}")
    callback_inputs = tensor_inputs(call.callback, call.callback_inputs, pipe.base.is_sdxl)
    pipe._interrupt, pipe._clip_skip = False, call.sampling.clip_skip
    prepared = prepare(pipe, call)
    pipe._begin(prepared.sampler)
    masks = [step.masks for step in run_steps(pipe, prepared.sampler, call.callback, callback_inputs)]
    drawn = to_images(pipe.base, prepared.sampler.latents, call.output_type)
    pipe.base.pipeline.maybe_free_model_hooks()
    return RealCustomOutput(
        images=drawn,
        masks=[mask for mask in masks if mask is not None] if call.sampling.return_masks else None,
        words=prepared.words,
    )


@torch.no_grad()
def prepare(pipe: RealCustomPipeline, call: Call, *, scheduler: Any = None, alone: bool = False) -> Prepared:
    """All that comes before the steps: text and subjects encoded, noise drawn. Samplers of one base can run together.

    Args:
        scheduler: of this call alone; None = the pipeline's own, which the next call sets anew.
        alone: the steps share no UNet call with others.
    """
    call = _checked(pipe.base, call)
    text, subjects = read_text(pipe.base, call.prompt, call.subjects, call.sampling, call.text)
    settings = settings_with(pipe.settings, call.sampling)
    if any(subjects) and pipe.image_encoder is None:
        raise UsageError(NO_ADAPTER)
    matches = match_words(text, settings, subjects)  # first: a wrong word is reported before any forward
    warn_of_idle(settings, subjects, call.sampling)
    warn_of_text(text, call.sampling)
    check_unpatched(pipe.base.unet, has_adapter=pipe.model is not None)
    scheduler = pipe.scheduler if scheduler is None else scheduler
    sampler = _make_sampler(pipe, call, settings, text, subjects, matches, scheduler, alone=alone)
    words = [[match.phrase for match in row] for row in matches for _ in range(call.sampling.n)]
    return Prepared(sampler=sampler, words=words)


def _checked(base: Base, call: Call) -> Call:
    """With the size of its pictures, and its schedule as lists. Raises UsageError for what is wrong without a prompt."""
    call.sampling.check()
    call.images.check(base)
    call.sizes.check(base.is_sdxl)
    sampling = call.images.sized(base, call.sampling)
    timesteps, sigmas = read_schedule(sampling, call.timesteps, call.sigmas, call.eta)
    return replace(call, sampling=sampling, timesteps=timesteps, sigmas=sigmas)


def _make_sampler(
    pipe: RealCustomPipeline,
    call: Call,
    settings: MethodSettings,
    text: CallText,
    subjects: Sequence[Sequence[Subject]],
    matches: Sequence[Sequence[WordMatch]],
    scheduler: Any,
    *,
    alone: bool,
) -> Sampler:
    """What is computed once: schedule, start, text, subjects."""
    base, sampling = pipe.base, call.sampling
    generators = generators_for(call.generator, sampling.seed, len(subjects) * sampling.n)
    steps = settings.sampler.num_inference_steps
    set_timesteps(scheduler, steps, base.device, call.timesteps, call.sigmas)
    extra = step_arguments(scheduler, generators, call.eta)
    controls = make_controls(
        base, call.images, pipe.controlnet, pipe.t2i_adapter, prompts=len(subjects), sampling=sampling
    )
    start = make_start(
        base,
        call.images,
        sampling,
        scheduler,
        prompts=len(subjects),
        steps=len(call.timesteps or call.sigmas or range(steps)),
        generators=generators,
        latents=call.latents,
    )
    own, negative = encode_text(text, settings.base.sdxl_pooled)
    rows = make_rows(
        base,
        settings,
        sampling,
        text=own,
        negative=negative,
        subjects=subjects,
        matches=matches,
        tokens=[[_tokens(pipe, subject) for subject in row] for row in subjects],
        black=_black_tokens(pipe, settings) if any(subjects) else None,
        latents=start.latents,
        sizes=call.sizes,
    )
    return Sampler(
        unet=base.unet,
        model=pipe.model,
        scheduler=scheduler,
        start=start,
        rows=rows,
        guidance=settings.guidance,
        mask=settings.mask,
        use_mask=sampling.use_mask,
        return_masks=sampling.return_masks,
        step_arguments=extra,
        controls=controls,
        plain_rescale=sampling.guidance_rescale or 0.0,
        alone=alone,
    )


def _tokens(pipe: RealCustomPipeline, subject: Subject) -> Tensor:
    """The subject's tokens (S, Di)."""
    assert pipe.image_encoder is not None and pipe.model is not None
    settings = pipe.settings.image_encoder
    return pipe._encoded.tokens(subject.image, subject.mask, pipe.model, pipe.image_encoder, settings, pipe.base.device)


def _black_tokens(pipe: RealCustomPipeline, settings: MethodSettings) -> Tensor | None:
    """The image tokens of the unconditional branch, (S, Di), if the settings give it any."""
    assert pipe.image_encoder is not None and pipe.model is not None
    if settings.guidance.uncond is not Uncond.NEGATIVE_TEXT_BLACK_IMAGE_MASKED:
        return None
    return pipe._encoded.black(pipe.model, pipe.image_encoder, pipe.base.dtype)

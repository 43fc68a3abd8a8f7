"""`RealCustomPipeline`: a prompt, a picture of a subject and the word that names it in; images out."""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from realcustom.base import Base, decode_latents, encode_prompts, load_base
from realcustom.checkpoint import load_adapter
from realcustom.image_encoder import ImageEncoder
from realcustom.model import RealCustomModel
from realcustom.reference import prepare_reference
from realcustom.sampler import Rows, Sampler, check_scheduler
from realcustom.settings import MethodSettings, Occurrence, SamplerSettings, TimestepSpacing
from realcustom.words import find_word, word_mask

OWN_SCHEDULER = "base"
SCHEDULERS = {"ddim": "DDIMScheduler", "dpmpp_single": "DPMSolverSinglestepScheduler"}  # short names of settings
CACHED_SUBJECTS = 64  # encoded references that a pipeline keeps, least recently used go first

Callback = Callable[["RealCustomPipeline", int, Any, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A picture of a subject, and the word of the prompt that is narrowed to it."""

    image: Image.Image
    word: str
    occurrence: Occurrence | int | str | None = None  # all, first, last or a number from 0; None = as the adapter says
    scope: float | None = None  # influence scope of this subject; None = the call's
    mask: Image.Image | None = None  # where the subject is in its picture, for adapters with `reference: crop`


@dataclass(frozen=True, kw_only=True)
class RealCustomOutput:
    """What a call returns."""

    images: list[Image.Image] | np.ndarray | Tensor  # as `output_type` says; (B, H, W, 3) in [0, 1], or latents
    masks: list[Tensor] | None  # per step (B, U, H*, W*) in [0, 1]
    words: list[list[str]]  # per image, each subject's word as it was found


class RealCustomPipeline:
    """Subject-driven text-to-image generation with a frozen base model and a trained adapter.

    Assign `scheduler` to change the sampler; it then wins over the adapter's settings.
    """

    def __init__(
        self,
        base: Base,
        settings: MethodSettings,
        model: RealCustomModel | None = None,
        image_encoder: ImageEncoder | None = None,
    ) -> None:
        self.base, self.settings, self.model, self.image_encoder = base, settings, model, image_encoder
        self._scheduler: Any = None
        self._encoded: OrderedDict[bytes, Tensor] = OrderedDict()

    @classmethod
    def from_pretrained(
        cls,
        base: str,
        adapter: str | Path | None = None,
        image_encoder: str | None = None,
        device: torch.device | str | None = None,
        torch_dtype: torch.dtype | None = None,
    ) -> RealCustomPipeline:
        """Load a base model and an adapter.

        Args:
            base: diffusers folder or hub id of an SD 1.x-shaped model.
            adapter: path or storage URI of an adapter checkpoint; None = plain text-to-image.
            image_encoder: folder or hub id; None = the adapter's own, which must then be a hub id.
            device: None = CUDA where there is one.
            torch_dtype: of the models' weights; None = float32. Maps, scores and gates are float32 always.
        Raises:
            ValueError: something is not what it should be; the message says what and what to do.
            FileNotFoundError: no adapter there.
        """
        dtype = torch_dtype or torch.float32
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        checkpoint = None if adapter is None else load_adapter(adapter)
        loaded = load_base(base, device, dtype)
        if checkpoint is None:
            return cls(loaded, MethodSettings())
        encoder = ImageEncoder.from_pretrained(
            _encoder_to_load(checkpoint.image_encoder, image_encoder), checkpoint.settings.image_encoder, device, dtype
        )
        for what, trained_with, here in (
            ("base model", checkpoint.base, loaded.identity),
            ("image encoder", checkpoint.image_encoder, encoder.identity),
        ):
            if trained_with.rpartition("@")[2] != here.rpartition("@")[2]:
                warnings.warn(f"the adapter was trained with the {what} {trained_with}, this is {here}", stacklevel=2)
        model = RealCustomModel(loaded.unet, checkpoint.settings, encoder.embed_dim)
        model.load_adapter_state_dict(checkpoint.tensors)
        return cls(loaded, checkpoint.settings, model.requires_grad_(False).eval(), encoder)

    @property
    def scheduler(self) -> Any:
        """The scheduler that was assigned, or the one that the adapter's settings name."""
        if self._scheduler is None:
            self._scheduler = make_scheduler(self.base.scheduler, self.settings.sampler)
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        check_scheduler(scheduler)
        self._scheduler = scheduler

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        subjects: Sequence[Subject] | Sequence[Sequence[Subject]] = (),
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        subject_guidance_scale: float | None = None,
        influence_scope: float | None = None,
        influence_quantity: float | None = None,
        mask_reuse_after: int | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_images_per_prompt: int = 1,
        latents: Tensor | None = None,
        use_mask: bool = True,
        output_type: str = "pil",
        return_masks: bool = False,
        callback_on_step_end: Callback | None = None,
    ) -> RealCustomOutput:
        """Generate images. An argument of None means "as the adapter's settings say".

        Args:
            prompt: one prompt or several; several are drawn as one batch.
            subjects: of the prompt; for several prompts, a list for each (they may differ in number).
            height, width: pixels, multiples of the VAE's factor; None = the base model's own size.
            guidance_scale: w_t; subject_guidance_scale: w_i (in direct mode the only weight).
            influence_scope: gamma_scope, ratio of the mask's pixels kept; influence_quantity: gamma_num, ratio of tokens.
            mask_reuse_after: steps with a fresh mask; then the last one stays.
            negative_prompt: takes the place of the empty text.
            generator: one, or one per image.
            latents: starting noise (B, c, h, w), standard normal; None = drawn from `generator`.
            use_mask: False = the subjects act everywhere, for comparison.
            output_type: "pil", "np", "pt" or "latent".
            callback_on_step_end: (pipeline, step, timestep, {"latents", "mask"}) -> dict; may return new "latents".
        Raises:
            TargetWordNotFound, TargetWordTruncated: the word is not usable; the message names the prompt's words.
            ValueError: any other argument that cannot be used.
        """
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type is 'pil', 'np', 'pt' or 'latent', got {output_type!r}")
        prompts, per_prompt = _pair(prompt, subjects)
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {num_images_per_prompt}")
        settings = _with_arguments(
            self.settings, guidance_scale, subject_guidance_scale, influence_scope, influence_quantity, mask_reuse_after
        )
        words, names = self._words(prompts, per_prompt, settings)  # first: a wrong word costs no forward
        scheduler = self.scheduler
        steps = settings.sampler.num_inference_steps if num_inference_steps is None else num_inference_steps
        if steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {steps}")
        scheduler.set_timesteps(steps, device=self.base.device)
        repeat = num_images_per_prompt
        rows = self._rows(prompts, negative_prompt, per_prompt, words, settings, repeat)
        rows.latents = self._starting_latents(len(prompts) * repeat, height, width, generator, latents)
        rows.latents = rows.latents * scheduler.init_noise_sigma
        rows.generators = list(generator) if isinstance(generator, Sequence) else None
        if isinstance(generator, torch.Generator):
            rows.generators = [generator] * len(rows.latents)
        sampler = Sampler(
            model=self._model(),
            scheduler=scheduler,
            rows=rows,
            guidance=settings.guidance,
            mask=settings.mask,
            use_mask=use_mask,
            return_masks=return_masks,
        )
        masks: list[Tensor] = []
        for step in sampler.run():
            if return_masks and step.mask is not None:
                masks.append(step.mask)
            if callback_on_step_end is not None:
                tensors: dict[str, Any] = {"latents": step.latents, "mask": step.mask}
                changed = callback_on_step_end(self, step.index, step.timestep, tensors)
                sampler.rows.latents = changed.get("latents", step.latents)
        return RealCustomOutput(
            images=self._decode(sampler.rows.latents, output_type),
            masks=masks if return_masks else None,
            words=[row for row in names for _ in range(repeat)],
        )

    def _model(self) -> RealCustomModel:
        if self.model is None:  # plain text-to-image: the same loop, with nothing that acts
            plain = replace(self.settings, tokens=replace(self.settings.tokens, scoring=False))
            self.model = RealCustomModel(self.base.unet, plain, image_embed_dim=1)
        return self.model

    def _words(
        self, prompts: Sequence[str], subjects: Sequence[Sequence[Subject]], settings: MethodSettings
    ) -> tuple[Tensor, list[list[str]]]:
        """Word masks (prompts, U, T), zero for absent subjects, and each word as it was found."""
        most = max(len(row) for row in subjects)
        if most and self.image_encoder is None:
            raise ValueError("subjects need an adapter: give one to from_pretrained(adapter=...)")
        length = self.base.tokenizer.model_max_length
        masks, names = torch.zeros(len(prompts), most, length), []
        for i, (text, row) in enumerate(zip(prompts, subjects, strict=True)):
            found = [
                find_word(
                    self.base.tokenizer,
                    text,
                    subject.word,
                    settings.words.occurrence if subject.occurrence is None else _occurrence(subject.occurrence),
                    settings.words.plural,
                )
                for subject in row
            ]
            for u, match in enumerate(found):
                masks[i, u] = word_mask(match, length)
            names.append([match.phrase for match in found])
        return masks, names

    def _rows(
        self,
        prompts: Sequence[str],
        negative_prompt: str | Sequence[str] | None,
        subjects: Sequence[Sequence[Subject]],
        words: Tensor,
        settings: MethodSettings,
        repeat: int,
    ) -> Rows:
        if negative_prompt is None or isinstance(negative_prompt, str):
            negative_prompt = [negative_prompt or ""] * len(prompts)
        negative = list(negative_prompt)
        if len(negative) != len(prompts):
            raise ValueError(f"{len(negative)} negative prompts for {len(prompts)} prompts; give one, or one for each")
        most = words.shape[1]
        tokens = [[self._encode(subject) for subject in row] for row in subjects]
        shape = next((token.shape for row in tokens for token in row), torch.Size((0, 1)))
        device, dtype = self.base.device, self.base.unet.dtype
        embeds = torch.zeros(len(prompts), most, *shape, device=device, dtype=dtype)
        scopes = torch.zeros(len(prompts), most, dtype=torch.float64)
        present = torch.zeros(len(prompts), most, dtype=torch.bool, device=device)
        for i, row in enumerate(subjects):
            for u, subject in enumerate(row):
                embeds[i, u], present[i, u] = tokens[i][u], True
                scopes[i, u] = settings.mask.influence_scope if subject.scope is None else _scope(subject.scope)
        return Rows(
            latents=torch.empty(0),
            prompt_embeds=encode_prompts(self.base, prompts).repeat_interleave(repeat, 0),
            negative_prompt_embeds=encode_prompts(self.base, negative).repeat_interleave(repeat, 0),
            words=words.to(device).repeat_interleave(repeat, 0),
            image_embeds=embeds.repeat_interleave(repeat, 0),
            present=present.repeat_interleave(repeat, 0),
            influence_scope=scopes.repeat_interleave(repeat, 0),
            influence_quantity=settings.tokens.influence_quantity,
        )

    def _encode(self, subject: Subject) -> Tensor:
        """The subject's image tokens (S, Di), kept by the content of what the encoder is shown."""
        assert self.image_encoder is not None
        reference = prepare_reference(subject.image, subject.mask, self.settings.image_encoder)
        key = hashlib.sha256(f"{reference.size}".encode() + reference.tobytes()).digest()
        if key not in self._encoded:
            self._encoded[key] = self.image_encoder.encode(self.image_encoder.prepare(reference)[None])[0]
        self._encoded.move_to_end(key)
        if len(self._encoded) > CACHED_SUBJECTS:
            self._encoded.popitem(last=False)
        return self._encoded[key]

    def _starting_latents(
        self,
        count: int,
        height: int | None,
        width: int | None,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        latents: Tensor | None,
    ) -> Tensor:
        factor, default = self.base.vae_scale_factor, self.base.resolution
        sides = [default if side is None else side for side in (height, width)]
        for name, side in zip(("height", "width"), sides, strict=True):
            if side < factor or side % factor:
                raise ValueError(f"{name} must be a positive multiple of {factor} pixels, got {side}")
        if isinstance(generator, Sequence) and len(generator) != count:
            raise ValueError(f"{len(generator)} generators for {count} images; give one, or one for each")
        shape = (count, self.base.unet.config.in_channels, sides[0] // factor, sides[1] // factor)
        if latents is None:
            drawn = list(generator) if isinstance(generator, Sequence) else generator
            return randn_tensor(shape, generator=drawn, device=self.base.device, dtype=self.base.unet.dtype)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents must have shape {shape}, got {tuple(latents.shape)}")
        return latents.to(self.base.device, self.base.unet.dtype)

    def _decode(self, latents: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
        if output_type == "latent":
            return latents
        pixels = (decode_latents(self.base, latents).float() + 1) / 2  # (B, 3, H, W) in [0, 1]
        if output_type == "pt":
            return pixels
        array = pixels.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "np":
            return array
        return [Image.fromarray(image) for image in (array * 255).round().astype(np.uint8)]


def make_scheduler(own: Any, settings: SamplerSettings) -> Any:
    """The scheduler that the settings name, built from the base model's own configuration.

    Raises ValueError for a name that is not a diffusers scheduler, or one that the method is not defined on.
    """
    kind: Any = type(own)
    if settings.scheduler != OWN_SCHEDULER:
        name = SCHEDULERS.get(settings.scheduler, settings.scheduler)
        kind = getattr(diffusers, name, None)
        if kind is None or not name.endswith("Scheduler"):
            raise ValueError(
                f"sampler.scheduler '{settings.scheduler}' is not ddim, dpmpp_single, base or a scheduler of diffusers, "
                "e.g. EulerDiscreteScheduler"
            )
    changes: dict[str, Any] = {}
    if "clip_sample" in own.config or settings.scheduler != OWN_SCHEDULER:
        changes["clip_sample"] = False
    if settings.timestep_spacing is not TimestepSpacing.BASE:
        changes["timestep_spacing"] = settings.timestep_spacing.value
    scheduler = kind.from_config({**own.config, **changes})
    check_scheduler(scheduler)
    return scheduler


def _encoder_to_load(trained_with: str, given: str | None) -> str:
    if given is not None:
        return given
    if "@sha256-" in trained_with:
        raise ValueError(
            f"the adapter's image encoder is the local folder '{trained_with}': name where it is with image_encoder="
        )
    return trained_with


def _pair(
    prompt: str | Sequence[str], subjects: Sequence[Subject] | Sequence[Sequence[Subject]]
) -> tuple[list[str], list[list[Subject]]]:
    """Prompts, and a list of subjects for each."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise ValueError("give at least one prompt")
    nested = [list(row) for row in subjects if not isinstance(row, Subject)]
    flat = [subject for subject in subjects if isinstance(subject, Subject)]
    if flat and nested:
        raise ValueError("subjects are either a list, or a list of lists, one for each prompt; not both")
    if nested:
        if len(nested) != len(prompts):
            raise ValueError(f"{len(nested)} lists of subjects for {len(prompts)} prompts; give one for each")
        return prompts, nested
    if flat and len(prompts) > 1:
        raise ValueError(f"{len(prompts)} prompts need a list of subjects each: subjects=[[...], [...]]")
    return prompts, [flat for _ in prompts]


def _with_arguments(
    settings: MethodSettings,
    guidance_scale: float | None,
    subject_guidance_scale: float | None,
    influence_scope: float | None,
    influence_quantity: float | None,
    mask_reuse_after: int | None,
) -> MethodSettings:
    """The settings with a call's arguments laid over them."""

    def given(**values: float | None) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}

    return replace(
        settings,
        guidance=replace(
            settings.guidance, **given(guidance_scale=guidance_scale, subject_guidance_scale=subject_guidance_scale)
        ),
        mask=replace(settings.mask, **given(influence_scope=influence_scope, mask_reuse_after=mask_reuse_after)),
        tokens=replace(settings.tokens, **given(influence_quantity=influence_quantity)),
    )


def _occurrence(value: Occurrence | int | str) -> Occurrence | int:
    if isinstance(value, (Occurrence, int)):
        return value
    try:
        return Occurrence(value)
    except ValueError as error:
        raise ValueError(f"occurrence is 'all', 'first', 'last' or a number from 0, got {value!r}") from error


def _scope(value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"a subject's scope is a ratio from 0 to 1, got {value}")
    return value

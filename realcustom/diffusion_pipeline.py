"""`RealCustomPipeline`: a prompt, a picture of a subject and the word that names it in; images out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from realcustom import attention
from realcustom.arguments import (
    OUTPUT_TYPES,
    Subject,
    check_schedule,
    generators_for,
    settings_with,
    warn_of_idle,
)
from realcustom.base import Base, decode_latents, load_base
from realcustom.checkpoint import load_adapter
from realcustom.conditioning import encode_text
from realcustom.errors import UsageError
from realcustom.identity import same_content
from realcustom.image_encoder import ImageEncoder, load_image_encoder
from realcustom.lora import lora_scaled
from realcustom.model import RealCustomModel
from realcustom.prompts import Positions, TextInputs, read_text, warn_of_text
from realcustom.rows import SubjectCache, make_rows, match_words, starting_noise
from realcustom.sampler import Sampler
from realcustom.sampling import SamplingParams, is_whole
from realcustom.schedule import check_scheduler, make_scheduler, set_timesteps, step_arguments
from realcustom.settings import MethodSettings, Never, SamplerSettings, Uncond, without_effect
from realcustom.store import check_readable

__all__ = ["RealCustomOutput", "RealCustomPipeline", "SamplingParams", "Subject"]

NO_MORE_TEXT = TextInputs()
OWN_PARTS = ("scheduler", "image_encoder")  # our attributes whose names a stock pipeline's part may also have

Callback = Callable[["RealCustomPipeline", int, Any, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class RealCustomOutput:
    """The result of a call."""

    images: list[Image.Image] | np.ndarray | Tensor  # as `output_type` says; (B, H, W, 3) in [0, 1], or latents
    masks: list[tuple[Tensor, ...]] | None  # per step, per subject, (B, 1, H*, W*) in [0, 1]
    words: list[list[str]]  # per image, each subject's word as found in the prompt


class RealCustomPipeline:
    """Subject-driven text-to-image generation with a frozen base model and a trained adapter.

    `diffusers` is the base as a stock pipeline; all its changes to its parts take effect here, and its attributes and
    methods are available on this object: `pipe.load_lora_weights(...)`, `pipe.vae.enable_slicing()`. Assign `scheduler`
    to change the sampler; it then wins over the adapter's settings. Subjects are encoded once and cached: after
    changing the adapter's own weights make a new pipeline.
    """

    def __init__(
        self,
        base: Base,
        settings: MethodSettings,
        model: RealCustomModel | None = None,
        image_encoder: ImageEncoder | None = None,
    ) -> None:
        self.base = base  # first: other names are looked up in it
        self.settings, self.model, self.image_encoder = settings, model, image_encoder
        self._scheduler: Any = None
        self._scheduler_of: SamplerSettings | None = None  # the settings that it was built from; None = it was assigned
        self._encoded = SubjectCache()
        for sentence in without_effect(settings):
            warnings.warn(sentence, stacklevel=2)

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
            base: diffusers folder or hub id of an SD 1.x- or SDXL-shaped model.
            adapter: path or storage URI of an adapter checkpoint; None = plain text-to-image.
            image_encoder: folder or hub id (for RealCustom++ two, "SIGLIP,DINOV2"); None = the adapter's own, which must
                then be a hub id.
            device: None = CUDA where there is one.
            torch_dtype: of the models' weights; None = float32. Maps, scores and gates are always float32.
        Raises:
            UsageError: an argument is wrong; the message says which and what to do. MissingFile if the
                adapter does not exist.
        """
        dtype = torch_dtype or torch.float32
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if adapter is not None:
            check_readable(str(adapter))  # a wrong address is reported at once, an outage is retried
        checkpoint = None if adapter is None else load_adapter(adapter)
        loaded = load_base(base, device, dtype)
        if checkpoint is None:
            return cls(loaded, MethodSettings())
        encoder = load_image_encoder(
            _encoder_to_load(checkpoint.image_encoder, image_encoder), checkpoint.settings.image_encoder, device, dtype
        )
        for what, trained_with, here in (
            ("base model", checkpoint.base, loaded.identity),
            ("image encoder", checkpoint.image_encoder, encoder.identity),
        ):
            if not same_content(trained_with, here):
                warnings.warn(f"the adapter was trained with the {what} {trained_with}, this is {here}", stacklevel=2)
        model = RealCustomModel(loaded.unet, checkpoint.settings, encoder.embed_dim, local_views=encoder.local_views)
        model.load_adapter_state_dict(checkpoint.tensors)
        return cls(loaded, checkpoint.settings, model.requires_grad_(False).eval(), encoder)

    @property
    def diffusers(self) -> Any:
        """The base as a stock diffusers pipeline, of the same parts."""
        return self.base.pipeline

    def __getattr__(self, name: str) -> Any:
        # while copying or unpickling there is no base yet; our own names come here when their property has failed
        if name.startswith("__") or "base" not in self.__dict__ or name in type(self).__dict__:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return getattr(self.base.pipeline, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Replace a part of the stock pipeline (another VAE or text encoder)."""
        if "base" in self.__dict__ and name not in OWN_PARTS and name in self.base.pipeline.components:
            if name == "unet":
                raise AttributeError(
                    "the UNet holds the adapter and cannot be replaced: load the pipeline again with another base; to "
                    "compile it, pipe.unet.compile()"
                )
            setattr(self.base.pipeline, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def scheduler(self) -> Any:
        """The scheduler that was assigned, or the one that the settings name."""
        settings = self.settings.sampler
        assigned = self._scheduler is not None and self._scheduler_of is None
        if not assigned and (self._scheduler_of is None or not _same_schedule(self._scheduler_of, settings)):
            self._scheduler, self._scheduler_of = make_scheduler(self.base.scheduler, settings), settings
        return self._scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        check_scheduler(scheduler)
        self._scheduler, self._scheduler_of = scheduler, None

    def to(self, *where: torch.device | str | torch.dtype) -> RealCustomPipeline:
        """Move every model, image encoder and adapter included, to a device, a dtype or both; scores stay in float32."""
        self.base.pipeline.to(*where)
        for value in where:
            if not isinstance(value, torch.dtype):
                self._move_adapter(value)
            else:
                if self.model is not None and self.model.encoder_hidden_states_vision_projection is not None:
                    self.model.encoder_hidden_states_vision_projection.to(value)
                if self.image_encoder is not None:
                    self.image_encoder.to(value)
        self._encoded.clear()  # cached tokens are on the old device
        return self

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """diffusers' offload of whole models; the adapter's own modules and the image encoder stay on the device."""
        self.base.pipeline.enable_model_cpu_offload(gpu_id, device)
        self._move_adapter(self.base.device)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """diffusers' offload layer by layer; the adapter's own modules and the image encoder stay on the device."""
        self.base.pipeline.enable_sequential_cpu_offload(gpu_id, device)
        self._move_adapter(self.base.device)

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Raises UsageError: sliced attention has processors of its own, in which no subject can act."""
        raise UsageError(
            "attention slicing replaces the attention processors, and with them the subject's attention: leave it off "
            "(scaled-dot-product attention needs no more memory); VAE slicing and tiling, and offload, work"
        )

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        subjects: Sequence[Subject] | Sequence[Sequence[Subject]] = (),
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        subject_guidance_scale: float | None = None,
        influence_scope: float | None = None,
        influence_quantity: float | None = None,
        mask_reuse_after: int | Never | Literal["never"] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_2: str | Sequence[str] | None = None,
        negative_prompt_2: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        token_words: Sequence[Positions] | Sequence[Sequence[Positions]] | None = None,
        clip_skip: int | None = None,
        long_prompt: bool = False,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        eta: float | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        num_images_per_prompt: int = 1,
        latents: Tensor | None = None,
        use_mask: bool = True,
        output_type: str = "pil",
        return_masks: bool = False,
        callback_on_step_end: Callback | None = None,
    ) -> RealCustomOutput:
        """Generate images. An argument of None means "as the adapter's settings say".

        Args:
            prompt: one prompt or several; several are generated as one batch. None with `prompt_embeds`; beside them it
                says where the subjects' words are, and must be the text that they were made from.
            subjects: subjects of the prompt; for several prompts, a list for each (of any lengths).
            height, width: pixels, multiples of the VAE's factor; None = the base model's own size.
            guidance_scale: w_t; subject_guidance_scale: w_i (in the direct modes the only weight).
            influence_scope: gamma_scope, ratio of the mask's cells kept; influence_quantity: gamma_num, ratio of
                tokens.
            mask_reuse_after: steps with a new mask; then the last one is reused. 0 counts as 1; "never" = all steps.
            negative_prompt: used instead of the empty text.
            prompt_2, negative_prompt_2: SDXL's second text encoder reads these; the words are searched in `prompt`.
            prompt_embeds, negative_prompt_embeds: (P, T, D); SDXL also needs `pooled_prompt_embeds` (P, Dp) and
                `negative_pooled_prompt_embeds`. They are used in place of the texts.
            token_words: instead of a search, the positions of each subject's word in [0, T), BOS counted as 0:
                `[[2], [5, 6]]` for two subjects; for several prompts a list for each.
            clip_skip: use the prompt's hidden state of that many layers before the usual one.
            long_prompt: read a prompt longer than the text encoder's length in chunks of that length (T is then a
                multiple of it; SDXL's pooled text is the first chunk's); without it the rest is cut off, with a warning.
            cross_attention_kwargs: {"scale": weight of the base's LoRA}.
            generator: one, or one per image.
            eta: share of noise in a step, 0 to 1, for schedulers that take it (DDIM, TCD); None = 0.
            timesteps, sigmas: the schedule itself instead of a number of steps, for schedulers that take it.
            latents: starting noise (B, c, h, w), standard normal; None = drawn from `generator`.
            use_mask: False = the subjects act everywhere, for comparison.
            output_type: "pil", "np", "pt" or "latent".
            callback_on_step_end: (pipeline, step, timestep, {"latents", "masks"}) -> dict; may return new "latents".
        Raises:
            TargetWordNotFound, TargetWordTruncated: the word is not usable; the message names the prompt's words.
            UsageError: any other argument that cannot be used.
        """
        if not is_whole(num_images_per_prompt) or num_images_per_prompt < 1:  # said by the name that it has here
            raise UsageError(f"num_images_per_prompt is a whole number, at least 1, got {num_images_per_prompt!r}")
        sampling = SamplingParams(
            n=num_images_per_prompt,
            width=width,
            height=height,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            subject_guidance_scale=subject_guidance_scale,
            influence_scope=influence_scope,
            influence_quantity=influence_quantity,
            mask_reuse_after=mask_reuse_after,
            clip_skip=clip_skip,
            long_prompt=long_prompt,
            use_mask=use_mask,
            return_masks=return_masks,
        )
        text = TextInputs(
            prompt_2=prompt_2,
            negative_prompt_2=negative_prompt_2,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            token_words=token_words,
        )
        with lora_scaled(self.base, cross_attention_kwargs):
            return self.draw(
                prompt,
                subjects,
                sampling,
                text=text,
                generator=generator,
                eta=eta,
                timesteps=timesteps,
                sigmas=sigmas,
                latents=latents,
                output_type=output_type,
                callback_on_step_end=callback_on_step_end,
            )

    @torch.no_grad()
    def draw(
        self,
        prompt: str | Sequence[str] | None,
        subjects: Sequence[Subject] | Sequence[Sequence[Subject]],
        sampling: SamplingParams,
        *,
        text: TextInputs = NO_MORE_TEXT,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        eta: float | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callback | None = None,
    ) -> RealCustomOutput:
        """The call with its parameters in one object: `sampling.n` images of each prompt, image i from seed + i.

        Arguments and errors as `__call__`; a `generator` wins over `sampling.seed`.
        """
        if output_type not in OUTPUT_TYPES:
            raise UsageError(f"output_type is 'pil', 'np', 'pt' or 'latent', got {output_type!r}")
        sampling.check()
        check_schedule(sampling, timesteps, sigmas, eta)
        call_text, per_prompt = read_text(self.base, prompt, subjects, sampling, text)
        count = len(per_prompt) * sampling.n
        settings = settings_with(self.settings, sampling)
        if any(per_prompt) and self.image_encoder is None:
            raise UsageError("subjects need an adapter: give one to from_pretrained(adapter=...)")
        matches = match_words(call_text, settings, per_prompt)  # first: a wrong word is reported before any forward
        warn_of_idle(settings, per_prompt, sampling)
        warn_of_text(call_text, sampling)
        if self.model is not None:
            attention.check_unpatched(self.base.unet)
        generators = generators_for(generator, sampling.seed, count)
        noise = starting_noise(self.base, count, sampling, generators, latents)
        scheduler = self.scheduler
        set_timesteps(scheduler, settings.sampler.num_inference_steps, self.base.device, timesteps, sigmas)
        extra = step_arguments(scheduler, generators, eta)
        own, negative = encode_text(call_text, settings.base.sdxl_pooled)
        rows = make_rows(
            self.base,
            settings,
            sampling,
            text=own,
            negative=negative,
            subjects=per_prompt,
            matches=matches,
            tokens=[[self._tokens(subject) for subject in row] for row in per_prompt],
            black=self._black_tokens(settings) if any(per_prompt) else None,
            latents=noise * scheduler.init_noise_sigma,
        )
        sampler = Sampler(
            unet=self.base.unet,
            model=self.model,
            scheduler=scheduler,
            rows=rows,
            guidance=settings.guidance,
            mask=settings.mask,
            use_mask=sampling.use_mask,
            return_masks=sampling.return_masks,
            step_arguments=extra,
        )
        masks = []
        for step in sampler.run():
            if sampling.return_masks and step.masks is not None:
                masks.append(step.masks)
            if callback_on_step_end is not None:
                tensors: dict[str, Any] = {"latents": step.latents, "masks": step.masks}
                changed = callback_on_step_end(self, step.index, step.timestep, tensors)
                sampler.latents = (changed or {}).get("latents", step.latents)
        images = self._decode(sampler.latents, output_type)
        self.base.pipeline.maybe_free_model_hooks()
        return RealCustomOutput(
            images=images,
            masks=masks if sampling.return_masks else None,
            words=[[match.phrase for match in row] for row in matches for _ in range(sampling.n)],
        )

    def _move_adapter(self, device: torch.device | str) -> None:
        for module in () if self.model is None else self.model.own_modules():
            module.to(device)
        if self.image_encoder is not None:
            self.image_encoder.to(device)

    def _tokens(self, subject: Subject) -> Tensor:
        """The subject's tokens (S, Di)."""
        assert self.image_encoder is not None and self.model is not None
        return self._encoded.tokens(subject, self.model, self.image_encoder, self.settings)

    def _black_tokens(self, settings: MethodSettings) -> Tensor | None:
        """The image tokens of the unconditional branch, (S, Di), if the settings give it any."""
        assert self.image_encoder is not None and self.model is not None
        if settings.guidance.uncond is not Uncond.NEGATIVE_TEXT_BLACK_IMAGE_MASKED:
            return None
        return self._encoded.black(self.model, self.image_encoder, self.base.unet.dtype)

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


def _same_schedule(one: SamplerSettings, other: SamplerSettings) -> bool:
    """Whether two settings are equal except for the number of steps, which each call sets."""
    return (one.scheduler, one.timestep_spacing) == (other.scheduler, other.timestep_spacing)


def _encoder_to_load(trained_with: str, given: str | None) -> str:
    if given is not None:
        return given
    if "@sha256-" in trained_with:
        raise UsageError(
            f"the adapter's image encoder is the local folder '{trained_with}': name where it is with image_encoder="
        )
    return trained_with

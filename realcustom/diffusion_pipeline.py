"""`RealCustomPipeline`: a prompt, a picture of a subject and the word that names it in; images out."""

from __future__ import annotations

import hashlib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from realcustom import attention
from realcustom.arguments import (
    OUTPUT_TYPES,
    Subject,
    generators_for,
    latent_size,
    negative_prompts,
    pair,
    settings_with,
    warn_of_idle,
)
from realcustom.base import Base, decode_latents, encode_negative_prompts, encode_prompts, load_base
from realcustom.checkpoint import load_adapter
from realcustom.errors import UsageError
from realcustom.identity import same_content
from realcustom.image_encoder import ImageEncoder, load_image_encoder
from realcustom.model import RealCustomModel
from realcustom.reference import prepare_reference
from realcustom.sampler import Rows, Sampler
from realcustom.schedule import check_scheduler, make_scheduler
from realcustom.settings import MethodSettings, Never, SamplerSettings, TimeIdsOrder, Uncond, without_effect
from realcustom.store import check_readable
from realcustom.words import WordMatch, check_tokenizers_agree, find_word, union, word_mask

__all__ = ["RealCustomOutput", "RealCustomPipeline", "Subject"]

OWN_PARTS = ("scheduler", "image_encoder")  # attributes of ours that a stock pipeline's part may have the name of
BLACK = b"black"
CACHED_SUBJECTS = 64  # encoded references that a pipeline keeps, least recently used go first

Callback = Callable[["RealCustomPipeline", int, Any, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class RealCustomOutput:
    """What a call returns."""

    images: list[Image.Image] | np.ndarray | Tensor  # as `output_type` says; (B, H, W, 3) in [0, 1], or latents
    masks: list[tuple[Tensor, ...]] | None  # per step, per subject, (B, 1, H*, W*) in [0, 1]
    words: list[list[str]]  # per image, each subject's word as it was found


class RealCustomPipeline:
    """Subject-driven text-to-image generation with a frozen base model and a trained adapter.

    `diffusers` is the base as a stock pipeline; everything that it can do to its parts acts here too, and its attributes
    and methods can be named on this object: `pipe.load_lora_weights(...)`, `pipe.vae.enable_slicing()`. Assign
    `scheduler` to change the sampler; it then wins over the adapter's settings. Subjects are encoded once and kept: after
    changing the adapter's own weights make a new pipeline.
    """

    def __init__(
        self,
        base: Base,
        settings: MethodSettings,
        model: RealCustomModel | None = None,
        image_encoder: ImageEncoder | None = None,
    ) -> None:
        self.base = base  # first: other names are looked for in it
        self.settings, self.model, self.image_encoder = settings, model, image_encoder
        self._scheduler: Any = None
        self._scheduler_of: SamplerSettings | None = None  # what it was built from; None = it was assigned
        self._encoded: OrderedDict[bytes, Tensor] = OrderedDict()
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
            torch_dtype: of the models' weights; None = float32. Maps, scores and gates are float32 always.
        Raises:
            UsageError: something is not what it should be; the message says what and what to do. MissingFile where no
                adapter is there.
        """
        dtype = torch_dtype or torch.float32
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if adapter is not None:
            check_readable(str(adapter))  # a wrong address is said at once, an outage is waited through
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
        # while copying or unpickling there is no base yet; a name of our own comes here when its property has failed
        if name.startswith("__") or "base" not in self.__dict__ or name in type(self).__dict__:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return getattr(self.base.pipeline, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """A part of the stock pipeline (another VAE or text encoder) is replaced there."""
        if "base" in self.__dict__ and name not in OWN_PARTS and name in self.base.pipeline.components:
            if name == "unet":
                raise AttributeError(
                    "the UNet holds the adapter and cannot be replaced: load the pipeline anew with another base; to "
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
        self._encoded.clear()  # they are where the models were
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
        """Raises ValueError: sliced attention has processors of its own, in which no subject can act."""
        raise UsageError(
            "attention slicing replaces the attention processors, and with them the subject's attention: leave it off "
            "(scaled-dot-product attention needs no more memory); VAE slicing and tiling, and offload, work"
        )

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
        mask_reuse_after: int | Never | None = None,
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
            guidance_scale: w_t; subject_guidance_scale: w_i (in the direct modes the only weight).
            influence_scope: gamma_scope, ratio of the mask's cells kept; influence_quantity: gamma_num, ratio of tokens.
            mask_reuse_after: steps with a fresh mask; then the last one stays. 0 counts as 1.
            negative_prompt: takes the place of the empty text.
            generator: one, or one per image.
            latents: starting noise (B, c, h, w), standard normal; None = drawn from `generator`.
            use_mask: False = the subjects act everywhere, for comparison.
            output_type: "pil", "np", "pt" or "latent".
            callback_on_step_end: (pipeline, step, timestep, {"latents", "masks"}) -> dict; may return new "latents".
        Raises:
            TargetWordNotFound, TargetWordTruncated: the word is not usable; the message names the prompt's words.
            ValueError: any other argument that cannot be used.
        """
        if output_type not in OUTPUT_TYPES:
            raise UsageError(f"output_type is 'pil', 'np', 'pt' or 'latent', got {output_type!r}")
        if num_images_per_prompt < 1:
            raise UsageError(f"num_images_per_prompt must be at least 1, got {num_images_per_prompt}")
        prompts, per_prompt = pair(prompt, subjects)
        settings = settings_with(
            self.settings,
            guidance_scale=guidance_scale,
            subject_guidance_scale=subject_guidance_scale,
            influence_scope=influence_scope,
            influence_quantity=influence_quantity,
            mask_reuse_after=mask_reuse_after,
            num_inference_steps=num_inference_steps,
        )
        matches = self.find_words(prompts, per_prompt)  # first: a wrong word costs no forward
        warn_of_idle(settings, per_prompt, guidance_scale, influence_scope, use_mask)
        if self.model is not None:
            attention.check_processors(self.base.unet)
        count = len(prompts) * num_images_per_prompt
        generators = generators_for(generator, count)
        noise = self._starting_noise(count, height, width, generators, latents)
        scheduler = self.scheduler
        scheduler.set_timesteps(settings.sampler.num_inference_steps, device=self.base.device)
        rows = self._rows(prompts, negative_prompt, per_prompt, matches, settings, num_images_per_prompt)
        rows.generators, rows.latents = generators, noise * scheduler.init_noise_sigma
        self._size_conditions(rows, settings)
        sampler = Sampler(
            unet=self.base.unet,
            model=self.model,
            scheduler=scheduler,
            rows=rows,
            guidance=settings.guidance,
            mask=settings.mask,
            use_mask=use_mask,
            return_masks=return_masks,
        )
        masks = []
        for step in sampler.run():
            if return_masks and step.masks is not None:
                masks.append(step.masks)
            if callback_on_step_end is not None:
                tensors: dict[str, Any] = {"latents": step.latents, "masks": step.masks}
                changed = callback_on_step_end(self, step.index, step.timestep, tensors)
                sampler.rows.latents = (changed or {}).get("latents", step.latents)
        images = self._decode(sampler.rows.latents, output_type)
        self.base.pipeline.maybe_free_model_hooks()
        return RealCustomOutput(
            images=images,
            masks=masks if return_masks else None,
            words=[[match.phrase for match in row] for row in matches for _ in range(num_images_per_prompt)],
        )

    def find_words(self, prompts: Sequence[str], subjects: Sequence[Sequence[Subject]]) -> list[list[WordMatch]]:
        """Where each subject's word stands in its prompt. Raises as `find_word`, or ValueError without an adapter."""
        if any(subjects) and self.image_encoder is None:
            raise UsageError("subjects need an adapter: give one to from_pretrained(adapter=...)")
        words, tokenizer = self.settings.words, self.base.tokenizer
        found = []
        for text, row in zip(prompts, subjects, strict=True):
            if row and self.base.is_sdxl:
                first, second = self.base.tokenizers
                check_tokenizers_agree(first, second, text)
            found.append(
                [
                    union(
                        [
                            find_word(
                                tokenizer,
                                text,
                                word,
                                subject.chosen_occurrence(words.occurrence),
                                words.plural,
                                words.match,
                            )
                            for word in subject.words
                        ]
                    )
                    for subject in row
                ]
            )
        return found

    def _move_adapter(self, device: torch.device | str) -> None:
        for module in () if self.model is None else self.model.own_modules():
            module.to(device)
        if self.image_encoder is not None:
            self.image_encoder.to(device)

    def _rows(
        self,
        prompts: Sequence[str],
        negative_prompt: str | Sequence[str] | None,
        subjects: Sequence[Sequence[Subject]],
        matches: Sequence[Sequence[WordMatch]],
        settings: MethodSettings,
        repeat: int,
    ) -> Rows:
        """Everything of a call but its latents, each row `repeat` times."""
        most, length = max(len(row) for row in subjects), self.base.tokenizer.model_max_length
        tokens = [[self._encode(subject) for subject in row] for row in subjects]
        shape = next((token.shape for row in tokens for token in row), torch.Size((0, 1)))
        device = self.base.device
        embeds = torch.zeros(len(prompts), most, *shape, device=device, dtype=self.base.unet.dtype)
        words = torch.zeros(len(prompts), most, length)
        scopes = torch.zeros(len(prompts), most, dtype=torch.float64)
        present = torch.zeros(len(prompts), most, dtype=torch.bool, device=device)
        for i, row in enumerate(subjects):
            for u, subject in enumerate(row):
                embeds[i, u], present[i, u], words[i, u] = tokens[i][u], True, word_mask(matches[i][u], length)
                scopes[i, u] = settings.mask.influence_scope if subject.scope is None else subject.scope
        pooled = settings.base.sdxl_pooled
        text = encode_prompts(self.base, prompts, pooled)
        negative = encode_negative_prompts(self.base, negative_prompts(negative_prompt, len(prompts)), text, pooled)
        black = most > 0 and settings.guidance.uncond is Uncond.NEGATIVE_TEXT_BLACK_IMAGE_MASKED

        def repeated(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor.repeat_interleave(repeat, 0)

        return Rows(
            latents=torch.empty(0),
            prompt_embeds=repeated(text.hidden),
            negative_prompt_embeds=repeated(negative.hidden),
            pooled_prompt_embeds=repeated(text.pooled),
            negative_pooled_prompt_embeds=repeated(negative.pooled),
            words=repeated(words.to(device)),
            image_embeds=repeated(embeds),
            black_image_embeds=self._black_tokens() if black else None,
            present=repeated(present),
            influence_scope=repeated(scopes),
            influence_quantity=settings.tokens.influence_quantity,
        )

    def _size_conditions(self, rows: Rows, settings: MethodSettings) -> None:
        """SDXL is told the picture's size, as if it had never been cropped."""
        if not self.base.is_sdxl:
            return
        sides = [side * self.base.vae_scale_factor for side in rows.latents.shape[-2:]]
        if settings.base.time_ids_order is TimeIdsOrder.WH_COMPAT:
            sides.reverse()
        ids = rows.prompt_embeds.new_tensor([*sides, 0, 0, *sides])
        rows.time_ids = ids.expand(len(rows.latents), -1)

    def _black_tokens(self) -> Tensor:
        """The tokens (S, Di) of a black picture, which are not zeros."""
        assert self.image_encoder is not None and self.model is not None
        if BLACK not in self._encoded:
            self._encoded[BLACK] = self.model.project(self.image_encoder.encode_black())[0].to(self.base.unet.dtype)
        return self._encoded[BLACK]

    def _encode(self, subject: Subject) -> Tensor:
        """The subject's tokens (S, Di), kept by the content of what the encoder is shown."""
        assert self.image_encoder is not None and self.model is not None
        reference = prepare_reference(subject.image, subject.mask, self.settings.image_encoder)
        key = hashlib.sha256(f"{reference.size}".encode() + reference.tobytes()).digest()
        if key not in self._encoded:
            features = self.image_encoder.encode(self.image_encoder.prepare(reference)[None])
            self._encoded[key] = self.model.project(features)[0]
        self._encoded.move_to_end(key)
        if len(self._encoded) > CACHED_SUBJECTS:
            self._encoded.popitem(last=False)
        return self._encoded[key]

    def _starting_noise(
        self,
        count: int,
        height: int | None,
        width: int | None,
        generators: list[torch.Generator] | None,
        latents: Tensor | None,
    ) -> Tensor:
        size = latent_size(height, width, self.base.resolution, self.base.vae_scale_factor)
        shape = (count, self.base.unet.config.in_channels, *size)
        if latents is None:
            one = generators is not None and all(generator is generators[0] for generator in generators)
            drawn = generators[0] if one and generators is not None else generators
            return randn_tensor(shape, generator=drawn, device=self.base.device, dtype=self.base.unet.dtype)
        if tuple(latents.shape) != shape:
            raise UsageError(f"latents must have shape {shape}, got {tuple(latents.shape)}")
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


def _same_schedule(one: SamplerSettings, other: SamplerSettings) -> bool:
    """The number of steps aside, which each call sets."""
    return (one.scheduler, one.timestep_spacing) == (other.scheduler, other.timestep_spacing)


def _encoder_to_load(trained_with: str, given: str | None) -> str:
    if given is not None:
        return given
    if "@sha256-" in trained_with:
        raise UsageError(
            f"the adapter's image encoder is the local folder '{trained_with}': name where it is with image_encoder="
        )
    return trained_with

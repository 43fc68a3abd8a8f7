"""`RealCustomPipeline`: a prompt, a picture of a subject and the word that names it in; images out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from realcustom.adapter_loading import load_beside, load_parts, unchanged_if_it_fails
from realcustom.arguments import Subject
from realcustom.arrays import Picture
from realcustom.base import Base
from realcustom.callbacks import Callback, is_guided, steered
from realcustom.checkpoint import Adapter
from realcustom.compiling import compile_regions
from realcustom.control_inputs import ControlNets, T2IAdapters
from realcustom.delegation import assign_to_stock, stock_attribute
from realcustom.drawing import NO_ADAPTER, Call, Prepared, draw, prepare
from realcustom.encoded import EncodedSubject, SubjectCache, encode_subject
from realcustom.encoders import ImageEncoder
from realcustom.errors import UsageError
from realcustom.guidance import Weights
from realcustom.image_inputs import ImageInputs, ModelPictures, Pictures, Shares
from realcustom.loading import LoadOptions
from realcustom.lora import lora_scaled
from realcustom.model import RealCustomModel
from realcustom.output import RealCustomOutput
from realcustom.prompts import Positions, TextInputs
from realcustom.sampler import Sampler
from realcustom.sampling import SamplingParams, is_whole
from realcustom.saving import adapter_of, save_folder
from realcustom.schedule import SchedulerChoice
from realcustom.settings import GuidanceSettings, MethodSettings, Never, without_effect
from realcustom.sizes import PictureSizes, Size
from realcustom.warning import warn

__all__ = ["EncodedSubject", "Prepared", "RealCustomOutput", "RealCustomPipeline", "SamplingParams", "Subject"]


class RealCustomPipeline:
    """Subject-driven text-to-image generation with a frozen base model and a trained adapter.

    `diffusers` is the base as a stock pipeline; all changes to its parts take effect here. Of its attributes this object
    has those that take effect in a call: `pipe.load_lora_weights(...)`, `pipe.vae.enable_slicing()`; `delegation.py` lists
    them, and what is refused. Assign `scheduler` to change the sampler; it then wins over the adapter's settings. Subjects
    are encoded once and cached: after changing the adapter's own weights make a new pipeline.
    """

    def __init__(
        self,
        base: Base,
        settings: MethodSettings,
        model: RealCustomModel | None = None,
        image_encoder: ImageEncoder | None = None,
    ) -> None:
        self.settings, self.model, self.image_encoder = settings, model, image_encoder
        self._checkpoint: Adapter | None = None  # what the adapter was loaded from, without its tensors
        # what guides calls that show it a picture; a call moves it to the base's device and dtype
        self.controlnet: ControlNets | None = None
        self.t2i_adapter: T2IAdapters | None = None
        self._schedulers = SchedulerChoice()
        self._encoded = SubjectCache()
        # of the running call, under diffusers' names: a callback may set the first three
        self._guidance_scale = settings.guidance.guidance_scale
        self._subject_guidance_scale = settings.guidance.subject_guidance_scale
        self._interrupt = False
        self._num_timesteps = 0
        self._clip_skip: int | None = None
        self._cross_attention_kwargs: Mapping[str, Any] | None = None
        self._weights = Weights(settings=settings.guidance, has_subjects=False)
        self.base = base  # last: from here on other names are looked up in it
        for sentence in without_effect(settings):
            warn(sentence)

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path | DiffusionPipeline,
        adapter: str | Path | None = None,
        image_encoder: str | Path | None = None,
        device: torch.device | str | None = None,
        torch_dtype: torch.dtype | None = None,
        *,
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        use_safetensors: bool | None = None,
        revision: str | None = None,
        config: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        controlnet: ControlNets | None = None,
        t2i_adapter: T2IAdapters | None = None,
    ) -> RealCustomPipeline:
        """Load a base model and an adapter.

        Args:
            base: diffusers folder or hub id of an SD 1.x- or SDXL-shaped model; a single `.safetensors` or `.ckpt` file; or
                a loaded StableDiffusionPipeline or StableDiffusionXLPipeline, which is used as it is: its models are
                frozen, and with an adapter its UNet gets the adapter's layers and attention processors, which give the
                same bits without a subject.
            adapter: path or storage URI of an adapter checkpoint; None = the one that `save_pretrained` put beside the
                base, or none: plain text-to-image.
            image_encoder: folder or hub id (for RealCustom++ two, "SIGLIP,DINOV2"); None = the saved one, or the adapter's
                own, which must then be a hub id.
            device: None = CUDA where there is one; of a loaded pipeline: where it is.
            torch_dtype, dtype: of the models' weights, by diffusers' older and newer name; None = float32. Maps, scores
                and gates are always float32.
            variant, use_safetensors, revision: of the base's files, as in diffusers.
            config: folder or hub id with the configuration of a single file; None = diffusers' own guess.
            token, cache_dir, local_files_only, force_download: of downloads of the base and the image encoder.
            controlnet, t2i_adapter: loaded models that a call's `control_image` and `adapter_image` need, one or several;
                the attributes of these names can be set later, too.
        Raises:
            UsageError: an argument is wrong; the message says which and what to do; a loaded base is left as it was.
                MissingFile if the adapter does not exist.
        """
        if dtype is not None and torch_dtype is not None:
            raise UsageError("give dtype or torch_dtype, not both: they are one argument")
        dtype = torch_dtype if dtype is None else dtype
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise UsageError(f"dtype is a torch.dtype, such as torch.float16, got {dtype!r}")
        options = LoadOptions(
            variant=variant,
            use_safetensors=use_safetensors,
            revision=revision,
            config=config,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        with unchanged_if_it_fails(base):
            parts = load_parts(base, adapter, image_encoder, device, dtype, options)
            pipe = cls(parts.base, parts.settings, parts.model, parts.image_encoder)
        pipe._checkpoint = parts.checkpoint
        pipe.controlnet, pipe.t2i_adapter = controlnet, t2i_adapter
        return pipe

    def with_adapter(self, adapter: str | Path, image_encoder: str | Path | None = None) -> RealCustomPipeline:
        """A further pipeline with another adapter on the same base, whose weights both share; each can be used at any time.

        Args:
            adapter, image_encoder: as in `from_pretrained`; None = this pipeline's image encoder if the adapter was trained
                with it.
        Raises:
            UsageError: as `from_pretrained`.
        """
        with unchanged_if_it_fails(self.base.pipeline):
            parts = load_beside(self.base, adapter, image_encoder, self.image_encoder)
            pipe = type(self)(parts.base, parts.settings, parts.model, parts.image_encoder)
        pipe._checkpoint = parts.checkpoint
        pipe.controlnet, pipe.t2i_adapter = self.controlnet, self.t2i_adapter
        pipe._schedulers.assigned = self._schedulers.assigned
        return pipe

    def save_pretrained(
        self, save_directory: str | Path, *, safe_serialization: bool = True, variant: str | None = None
    ) -> None:
        """Write a folder that `from_pretrained` loads: the base as diffusers saves it, the adapter and its image encoder.

        diffusers loads the same folder as a stock pipeline.

        Args:
            safe_serialization, variant: of the base's weights, as in diffusers.
        Raises:
            UsageError: there is no adapter; or a LoRA, or a scheduler that is not diffusers', which the folder would not hold.
        """
        if self.model is None or self.image_encoder is None:
            raise UsageError("there is no adapter to save; save the base with pipe.diffusers.save_pretrained(folder)")
        scheduler, sampler = self._schedulers.to_save(self.base.scheduler, self.settings.sampler)
        settings = replace(self.settings, sampler=sampler)
        save_folder(
            save_directory,
            self.base,
            adapter_of(self.model, settings, self.base, self.image_encoder, self._checkpoint),
            self.image_encoder,
            scheduler,
            safe_serialization=safe_serialization,
            variant=variant,
        )

    @property
    def diffusers(self) -> Any:
        """The base as a stock diffusers pipeline, of the same parts."""
        return self.base.pipeline

    @property
    def held_bytes(self) -> int:
        """Bytes of the subjects' tokens that are kept for further calls, on the models' device."""
        return self._encoded.held_bytes

    def __getattr__(self, name: str) -> Any:
        # while copying or unpickling there is no base yet; our own names come here when their property has failed
        if name.startswith("__") or "base" not in self.__dict__ or name in type(self).__dict__:
            raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
        return stock_attribute(self.base.pipeline, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Replace a part of the stock pipeline (another VAE or text encoder)."""
        ours = "base" not in self.__dict__ or name in self.__dict__ or name in type(self).__dict__
        if ours or not assign_to_stock(self.base.pipeline, name, value):
            super().__setattr__(name, value)
        if name in ("image_encoder", "model") and "_encoded" in self.__dict__:
            self._encoded.clear()

    @property
    def guidance_scale(self) -> float:
        """w_t of the running call, or of the last one; a callback sets `_guidance_scale`."""
        return self._guidance_scale

    @property
    def subject_guidance_scale(self) -> float:
        """w_i of the running call, or of the last one; a callback sets `_subject_guidance_scale`."""
        return self._subject_guidance_scale

    @property
    def guidance_rescale(self) -> float:
        """phi of the running call, or of the last one."""
        return self._weights.rescale if self._weights.has_subjects else self._weights.plain_rescale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the next step has an unconditional branch."""
        return is_guided(replace(self._weights, settings=self._next_guidance()))

    @property
    def num_timesteps(self) -> int:
        """Evaluations of the running call, or of the last one."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the running call stops before its next step; a callback sets `_interrupt`."""
        return self._interrupt

    @property
    def cross_attention_kwargs(self) -> Mapping[str, Any] | None:
        """Those of the running call, or of the last one."""
        return self._cross_attention_kwargs

    @property
    def clip_skip(self) -> int | None:
        """That of the running call, or of the last one."""
        return self._clip_skip

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent cell and side, of the VAE that is there."""
        return self.base.vae_scale_factor

    @property
    def scheduler(self) -> Any:
        """The scheduler that was assigned, or the one that the settings name."""
        return self._schedulers.of(self.base.scheduler, self.settings.sampler)

    @scheduler.setter
    def scheduler(self, scheduler: Any) -> None:
        self._schedulers.assign(scheduler)

    def to(
        self,
        *where: torch.device | str | int | torch.dtype,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        silence_dtype_warnings: bool = False,
    ) -> RealCustomPipeline:
        """Move every model, image encoder and adapter included, to a device, a dtype or both; scores stay in float32."""
        self.base.pipeline.to(*where, device=device, dtype=dtype, silence_dtype_warnings=silence_dtype_warnings)
        for value in (*where, device, dtype):
            if isinstance(value, torch.dtype):
                if self.model is not None:
                    self.model.cast(value)
                if self.image_encoder is not None:
                    self.image_encoder.to(value)
            elif value is not None:
                self._move_adapter(torch.device(value))
        self._encoded.clear()  # cached tokens are on the old device
        return self

    def compile(self, *, channels_last: bool = True, **options: Any) -> None:
        """Compile the UNet's convolution blocks and feed-forwards with torch.compile; call it last, after any LoRA.

        Results differ in rounding. The first call of each size of pictures takes longer.

        Args:
            channels_last: keep the UNet's convolution weights in that memory format.
            options: of `torch.compile`: mode, backend, dynamic.
        """
        compile_regions(self.base.unet, channels_last=channels_last, **options)

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """diffusers' offload of whole models; the adapter's own modules and the image encoder stay on the device."""
        self.base.pipeline.enable_model_cpu_offload(gpu_id, device)
        self._move_adapter(self.base.device)
        self._encoded.clear()

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """diffusers' offload layer by layer; the adapter's own modules and the image encoder stay on the device."""
        self.base.pipeline.enable_sequential_cpu_offload(gpu_id, device)
        self._move_adapter(self.base.device)
        self._encoded.clear()

    def encode_subject(self, image: Picture, mask: Picture | None = None) -> EncodedSubject:
        """A subject's picture, encoded once for many calls: `Subject(image=pipe.encode_subject(image), word="dog")`.

        The value stays usable after `to`, offload and other calls, and in other pipelines with the same image encoder.

        Args:
            image, mask: those of a `Subject`.
        Raises:
            UsageError: there is no adapter, or the picture cannot be used.
        """
        if self.image_encoder is None:
            raise UsageError(NO_ADAPTER)
        subject = Subject(image=image, word="subject", mask=mask)  # its checks of a picture and a mask
        if isinstance(subject.image, EncodedSubject):
            raise UsageError("this subject is encoded already: give it to Subject(image=...)")
        return encode_subject(subject.image, subject.mask, self.image_encoder, self.settings.image_encoder)

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
        guidance_rescale: float | None = None,
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
        image: Pictures | None = None,
        strength: float | None = None,
        mask_image: Pictures | None = None,
        control_image: ModelPictures | None = None,
        controlnet_conditioning_scale: Shares = 1.0,
        control_guidance_start: Shares = 0.0,
        control_guidance_end: Shares = 1.0,
        guess_mode: bool = False,
        adapter_image: ModelPictures | None = None,
        adapter_conditioning_scale: Shares = 1.0,
        use_mask: bool = True,
        output_type: str = "pil",
        return_masks: bool = False,
        return_dict: bool = True,
        original_size: Size | None = None,
        crops_coords_top_left: Size | None = None,
        target_size: Size | None = None,
        negative_original_size: Size | None = None,
        negative_crops_coords_top_left: Size | None = None,
        negative_target_size: Size | None = None,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = None,
    ) -> RealCustomOutput:
        """Generate images. An argument of None means "as the adapter's settings say".

        Args:
            prompt: one prompt or several; several are generated as one batch. None with `prompt_embeds`; beside them it
                says where the subjects' words are, and must be the text that they were made from.
            subjects: subjects of the prompt; for several prompts, a list for each (of any lengths).
            height, width: pixels, multiples of the VAE's factor; None = the size of a given picture, else the base model's own.
            guidance_scale: w_t. Without subjects it is that of diffusers: no guidance up to 1. With subjects it weighs the
                prompt against the unconditional image in the cascade modes (1 = as the prompt says, 0 = not at all);
                docs/method.md has the formulas.
            subject_guidance_scale: w_i (in the direct modes the only weight).
            guidance_rescale: phi, from 0 to 1: the share by which a guided prediction is brought back to the standard
                deviation of the generation branch (without subjects of the text's, as in diffusers, where it is 0).
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
            image: redraw this picture (img2img), one for all prompts or one for each; it is resized to height and width.
            strength: how far: the part of the steps that is run, 0 to 1. None = as diffusers' pipeline: 0.8, SDXL 0.3; with
                mask_image 1.0, SDXL 0.9999.
            mask_image: draw anew where this is white (inpainting); elsewhere `image` stays. The size is then the base's own
                unless given. A UNet of inpainting's 9 channels reads both; for any other the picture is put back each step.
            control_image: what the ControlNets in `pipe.controlnet` see, in [0, 1]: a picture for all prompts or one for each;
                with several ControlNets a list of one for each, or for each prompt such a list.
            controlnet_conditioning_scale, control_guidance_start, control_guidance_end: weight of the ControlNets, and the
                part of the steps in which they act; for several models numbers or lists.
            guess_mode: the ControlNets guide the rows with the prompt alone, as in diffusers.
            adapter_image, adapter_conditioning_scale: the same for the T2I-adapters in `pipe.t2i_adapter`.
            use_mask: False = the subjects act everywhere, for comparison.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False = a tuple as the stock pipeline's: (images, None), for SDXL (images,).
            original_size, crops_coords_top_left, target_size and the negative ones: SDXL's conditions on the picture's size
                and crop, (height, width) and (top, left), as in diffusers; None = the size drawn, without a crop.
            callback_on_step_end: (pipeline, step, timestep, tensors) -> dict of the tensors that it changes, as in
                diffusers; its PipelineCallback classes too. It may set `pipe._interrupt`, and `pipe._guidance_scale` and
                `pipe._subject_guidance_scale` for the next steps; a guidance scale set to 1 or less ends guidance.
            callback_on_step_end_tensor_inputs: names of the tensors; None = latents and masks. With guidance
                prompt_embeds holds the unconditional rows and then the prompt's.
        Raises:
            TargetWordNotFound, TargetWordTruncated: the word is not usable; the message names the prompt's words.
            UsageError: any other argument that cannot be used.
        """
        if not is_whole(num_images_per_prompt) or num_images_per_prompt < 1:  # said by the name that it has here
            raise UsageError(f"num_images_per_prompt is a whole number, at least 1, got {num_images_per_prompt!r}")
        if not isinstance(return_dict, bool):
            raise UsageError(f"return_dict is true or false, got {return_dict!r}")
        sampling = SamplingParams(
            n=num_images_per_prompt,
            width=width,
            height=height,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            subject_guidance_scale=subject_guidance_scale,
            guidance_rescale=guidance_rescale,
            influence_scope=influence_scope,
            influence_quantity=influence_quantity,
            mask_reuse_after=mask_reuse_after,
            clip_skip=clip_skip,
            long_prompt=long_prompt,
            use_mask=use_mask,
            return_masks=return_masks,
        )
        call = Call(
            prompt=prompt,
            subjects=subjects,
            sampling=sampling,
            text=TextInputs(
                prompt_2=prompt_2,
                negative_prompt_2=negative_prompt_2,
                prompt_embeds=prompt_embeds,
                negative_prompt_embeds=negative_prompt_embeds,
                pooled_prompt_embeds=pooled_prompt_embeds,
                negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
                token_words=token_words,
            ),
            images=ImageInputs(
                image=image,
                strength=strength,
                mask_image=mask_image,
                control_image=control_image,
                controlnet_conditioning_scale=controlnet_conditioning_scale,
                control_guidance_start=control_guidance_start,
                control_guidance_end=control_guidance_end,
                guess_mode=guess_mode,
                adapter_image=adapter_image,
                adapter_conditioning_scale=adapter_conditioning_scale,
            ),
            sizes=PictureSizes(
                original_size=original_size,
                crops_coords_top_left=crops_coords_top_left,
                target_size=target_size,
                negative_original_size=negative_original_size,
                negative_crops_coords_top_left=negative_crops_coords_top_left,
                negative_target_size=negative_target_size,
            ),
            generator=generator,
            eta=eta,
            timesteps=timesteps,
            sigmas=sigmas,
            latents=latents,
            output_type=output_type,
            callback=callback_on_step_end,
            callback_inputs=callback_on_step_end_tensor_inputs,
        )
        self._cross_attention_kwargs = cross_attention_kwargs
        with lora_scaled(self.base, cross_attention_kwargs):
            output = draw(self, call)
        if return_dict:
            return output
        plain = (output.images,) if self.base.is_sdxl else (output.images, None)
        return cast(RealCustomOutput, plain)  # typed for nearly all callers; two overloads would repeat the signature

    def draw(
        self,
        prompt: str | Sequence[str] | None,
        subjects: Sequence[Subject] | Sequence[Sequence[Subject]],
        sampling: SamplingParams,
        *,
        callback_on_step_end: Callback | None = None,
    ) -> RealCustomOutput:
        """The call with its parameters in one object: `sampling.n` images of each prompt, image i from seed + i.

        Arguments and errors as `__call__`.
        """
        return draw(self, Call(prompt=prompt, subjects=subjects, sampling=sampling, callback=callback_on_step_end))

    def prepare(
        self,
        prompt: str | Sequence[str] | None,
        subjects: Sequence[Subject] | Sequence[Sequence[Subject]],
        sampling: SamplingParams,
        *,
        scheduler: Any = None,
        alone: bool = False,
    ) -> Prepared:
        """All of `draw` that comes before the steps; samplers of one base can run together.

        Args:
            scheduler: of this call alone; None = the pipeline's own, which the next call sets anew.
            alone: the steps share no UNet call with others.
            The others and the errors are those of `draw`.
        """
        call = Call(prompt=prompt, subjects=subjects, sampling=sampling)
        return prepare(self, call, scheduler=scheduler, alone=alone)

    def _begin(self, sampler: Sampler) -> None:
        """Set what a callback reads of the call."""
        self._weights = sampler.weights
        self._guidance_scale = sampler.guidance.guidance_scale
        self._subject_guidance_scale = sampler.guidance.subject_guidance_scale
        self._num_timesteps = len(sampler.start.timesteps)

    def _next_guidance(self) -> GuidanceSettings:
        """The guidance of the next step: the call's, as a callback has changed it."""
        return steered(self._weights.settings, self._guidance_scale, self._subject_guidance_scale)

    def _move_adapter(self, device: torch.device | str) -> None:
        for module in () if self.model is None else self.model.own_modules():
            module.to(device)
        if self.image_encoder is not None:
            self.image_encoder.to(device)

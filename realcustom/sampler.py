"""The denoising loop: guidance pass -> mask -> generation pass -> scheduler step (paper, section 3.3).

Every step of a batch of rows runs exactly the forwards that its guidance needs: while the mask is live, one launch with
the guidance branch, whose maps make the mask, then one with all other branches; after that a single launch.

Letters: B rows, c h w latent, T text tokens, D text width, U subjects, S image tokens, Di image width.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from realcustom import attention
from realcustom.attention import Conditioning, KeyValue, MapRecorder, SubjectTokens
from realcustom.guidance import Branch, Weights, combine
from realcustom.mask import influence_mask, warn_if_empty
from realcustom.model import RealCustomModel
from realcustom.settings import GuidanceSettings, Launches, MaskSettings


@dataclass(kw_only=True)
class Rows:
    """What is denoised together: one row per image. Rows with fewer subjects are padded with absent ones."""

    latents: Tensor  # (B, c, h, w)
    prompt_embeds: Tensor  # (B, T, D)
    negative_prompt_embeds: Tensor  # (B, T, D)
    words: Tensor  # (B, U, T): 1 at the tokens of each subject's word
    image_embeds: Tensor  # (B, U, S, Di)
    present: Tensor  # (B, U) bool: the row has this subject
    influence_scope: Tensor  # (B, U), in [0, 1]
    influence_quantity: float
    generators: Sequence[torch.Generator] | None = None  # of schedulers that draw noise

    @property
    def subjects(self) -> int:
        """U: the largest number of subjects of a row."""
        return int(self.words.shape[1])


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step leaves behind."""

    index: int
    timestep: Tensor
    latents: Tensor  # (B, c, h, w), after the step
    mask: Tensor | None  # (B, U, H*, W*) in [0, 1]; None where no mask is used


@dataclass(kw_only=True)
class Sampler:
    """Denoises rows with a frozen model under its guidance; holds what a call computes once."""

    model: RealCustomModel
    scheduler: Any  # a diffusers scheduler with its timesteps set
    rows: Rows
    guidance: GuidanceSettings
    mask: MaskSettings
    use_mask: bool = True  # False: the subjects act everywhere (mask 1)
    return_masks: bool = False  # record maps even where no branch needs them
    _mask: Tensor | None = None
    _grids: dict[int, tuple[int, int]] = field(default_factory=dict)
    _text: dict[tuple[Branch, ...], dict[Any, KeyValue]] = field(default_factory=dict)
    _visual: list[dict[Any, KeyValue]] = field(default_factory=list)

    def __post_init__(self) -> None:
        _, _, height, width = self.rows.latents.shape
        self._grids = attention.level_grids(height, width, self.model.levels)
        self._visual = [{} for _ in range(self.rows.subjects)]
        self.weights = Weights(
            mode=self.guidance.mode,
            text=self.guidance.guidance_scale,
            subject=self.guidance.subject_guidance_scale,
            has_subjects=self.rows.subjects > 0,
        )

    def run(self) -> Iterator[Step]:
        """All steps, one after another; the consumer may stop at any of them."""
        for index, timestep in enumerate(self.scheduler.timesteps):
            yield self.step(index, timestep)

    @torch.no_grad()
    def step(self, index: int, timestep: Tensor) -> Step:
        """One denoising step of all rows."""
        scaled = self.scheduler.scale_model_input(self.rows.latents, timestep)
        needed = self.weights.branches()
        predictions: dict[Branch, Tensor] = {}
        if self._mask_is_live(index, needed):
            recorder = MapRecorder(words=self.rows.words)
            predictions |= self._launch((Branch.GUIDANCE,), scaled, timestep, recorder)
            self._mask = self._build_mask(recorder)
        rest = tuple(branch for branch in needed if branch not in predictions)
        for launch in [rest] if self.guidance.launches is Launches.BATCHED else [(branch,) for branch in rest]:
            if launch:
                predictions |= self._launch(launch, scaled, timestep)
        combined = combine(predictions, self.weights)
        self.rows.latents = self._scheduler_step(combined, timestep)
        return Step(index=index, timestep=timestep, latents=self.rows.latents, mask=self._mask)

    def _mask_is_live(self, index: int, needed: Sequence[Branch]) -> bool:
        """Whether this step makes a fresh mask: somebody uses it, and it is not yet frozen."""
        used = self.rows.subjects > 0 and self.use_mask and (Branch.GENERATION in needed or self.return_masks)
        reuse_after = self.mask.mask_reuse_after
        return used and (not isinstance(reuse_after, int) or index < max(1, reuse_after))

    def _build_mask(self, recorder: MapRecorder) -> Tensor:
        mask = influence_mask(recorder.maps, self.rows.influence_scope, self.mask)
        warn_if_empty(mask, self.rows.influence_scope * self.rows.present.cpu())
        return mask * self.rows.present[..., None, None].to(mask.device)

    def _launch(
        self, branches: tuple[Branch, ...], scaled: Tensor, timestep: Tensor, recorder: MapRecorder | None = None
    ) -> dict[Branch, Tensor]:
        """One UNet call for the rows of these branches."""
        embeds = [
            self.rows.negative_prompt_embeds if branch is Branch.UNCONDITIONAL else self.rows.prompt_embeds
            for branch in branches
        ]
        conditioning = Conditioning(
            grids=self._grids,
            scale=self.model.settings.attn.scale,
            mask_resize=self.mask.mask_resize,
            recorder=recorder,
            text_cache=self._text.setdefault(branches, {}),
        )
        if Branch.GENERATION in branches:
            start = branches.index(Branch.GENERATION) * len(scaled)
            conditioning.rows = slice(start, start + len(scaled))
            conditioning.subjects = [self._subject(number, scaled, timestep) for number in range(self.rows.subjects)]
        output = self.model.unet(
            torch.cat([scaled] * len(branches)) if len(branches) > 1 else scaled,
            timestep,
            torch.cat(embeds) if len(embeds) > 1 else embeds[0],
            cross_attention_kwargs={"conditioning": conditioning},
            return_dict=False,
        )[0]
        return dict(zip(branches, output.chunk(len(branches)), strict=True))

    def _subject(self, number: int, scaled: Tensor, timestep: Tensor) -> SubjectTokens:
        """The subject's tokens as this step selects them, under this step's mask."""
        embeds = self.rows.image_embeds[:, number]  # (B, S, Di)
        words = self.rows.words[:, number]  # (B, T)
        mask = None if self._mask is None else self._mask[:, number : number + 1]  # (B, 1, H*, W*)
        if mask is None and not bool(self.rows.present[:, number].all()):
            mask = self.rows.present[:, number, None, None, None].to(scaled.dtype)
        latents = scaled
        if mask is not None and self.model.settings.tokens.mask_latent:
            latents = scaled * attention.resize_mask(
                mask, (scaled.shape[2], scaled.shape[3]), self.mask.mask_resize
            ).to(scaled.dtype)
        index, gate = self.model.score(
            self.rows.prompt_embeds,
            latents,
            embeds,
            self._alphas_cumprod(timestep).expand(len(scaled)),
            self.rows.influence_quantity,
            words,
        )
        return SubjectTokens(embeds=embeds, index=index, gate=gate, mask=mask, cache=self._visual[number])

    def _alphas_cumprod(self, timestep: Tensor) -> Tensor:
        """alphas_cumprod at the step, in variance-preserving form; a schedule between integers goes by its sigma."""
        table = self.scheduler.alphas_cumprod
        value = float(timestep)
        if value.is_integer():
            return table[int(value)].to(self.rows.latents.device)
        sigma = self.scheduler.sigmas[self.scheduler.index_for_timestep(timestep)]
        return (1 / (1 + sigma**2)).to(self.rows.latents.device)

    def _scheduler_step(self, prediction: Tensor, timestep: Tensor) -> Tensor:
        extra: dict[str, Any] = {}
        if self.rows.generators is not None and "generator" in inspect.signature(self.scheduler.step).parameters:
            extra["generator"] = list(self.rows.generators)
        return self.scheduler.step(prediction, timestep, self.rows.latents, **extra, return_dict=False)[0]


def check_scheduler(scheduler: Any) -> None:
    """Raise ValueError for a scheduler that the method is not defined on."""
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"{type(scheduler).__name__} is a flow-matching scheduler or has no alphas_cumprod; RealCustom's scores are "
            "weighted by it: use a diffusion scheduler (DDIM, DPM-Solver++, Euler, ...)"
        )
    if getattr(scheduler.config, "clip_sample", False):
        warnings.warn(
            "the scheduler clips samples (clip_sample=True): guidance is then not what the paper's eq. 13 says; the "
            "pipeline's own schedulers set clip_sample=False",
            stacklevel=2,
        )

"""The denoising loop: guidance pass -> mask -> generation pass -> scheduler step (paper, section 3.3).

Every step of a batch of rows runs exactly the forwards that its guidance needs: while the mask is updated, one UNet
call for the guidance branch, whose maps make the mask, then one for all other branches; after that a single call. With
`mask.source: previous` the maps come from a forward of the step before, and only the first step has two calls.

Letters: B rows, c h w latent, T text tokens, D text width, U subjects, S image tokens, Di image width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from realcustom import attention, maps
from realcustom.attention import SubjectTokens
from realcustom.company import joined
from realcustom.controls import Controls, StepControls
from realcustom.guidance import Branch, Weights, combine
from realcustom.launch import Launch, Steps, run_together
from realcustom.maps import MapRecorder, WordTokens
from realcustom.model import RealCustomModel
from realcustom.schedule import alphas_cumprod_at
from realcustom.settings import GuidanceSettings, Launches, MaskSettings, MaskSource, Never
from realcustom.start import Start
from realcustom.work import Masking, Scoring

Branches = tuple[Branch, ...]
T = TypeVar("T")
NO_CONTROLS = Controls()


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows that are denoised together, one per image. Rows with fewer subjects are padded with absent ones."""

    prompt_embeds: Tensor  # (B, T, D)
    negative_prompt_embeds: Tensor  # (B, T, D)
    words: Tensor  # (B, U, T): 1 at the tokens of each subject's word
    image_embeds: Tensor  # (B, U, S, Di), projected
    present: Tensor  # (B, U) bool: the row has this subject
    influence_scope: Tensor  # (B, U), in [0, 1]
    influence_quantity: float
    pooled_prompt_embeds: Tensor | None = None  # (B, P), SDXL alone, as the three below
    negative_pooled_prompt_embeds: Tensor | None = None  # (B, P)
    time_ids: Tensor | None = None  # (B, 6)
    negative_time_ids: Tensor | None = None  # (B, 6)
    black_image_embeds: Tensor | None = None  # (S, Di): image tokens of the unconditional branch, if any

    @property
    def subjects(self) -> int:
        """U: the largest number of subjects of a row."""
        return int(self.words.shape[1])


@dataclass(frozen=True, kw_only=True)
class Step:
    """The result of a step."""

    index: int
    timestep: Tensor
    latents: Tensor  # (B, c, h, w), after the step
    masks: tuple[Tensor, ...] | None  # per subject (B, 1, H*, W*) in [0, 1]; None where no mask is used


@dataclass(kw_only=True)
class Sampler:
    """Denoises rows with a frozen model under its guidance; holds tensors that a call computes once."""

    unet: UNet2DConditionModel
    model: RealCustomModel | None  # None: plain text-to-image on a UNet with any processors
    scheduler: Any  # a diffusers scheduler with its timesteps set
    start: Start
    rows: Rows
    guidance: GuidanceSettings
    mask: MaskSettings
    use_mask: bool = True  # False: the subjects act everywhere (mask 1)
    return_masks: bool = False  # record maps even where no branch needs them
    step_arguments: Mapping[str, Any] = field(default_factory=dict)  # of the scheduler's step: eta, generator
    controls: Controls = NO_CONTROLS
    plain_rescale: float = 0.0  # guidance_rescale of rows without subjects
    alone: bool = False  # its UNet calls hold no other sampler's rows
    latents: Tensor = field(init=False)  # (B, c, h, w), after the last step; a caller may replace them
    position: int = 0  # steps that are done
    _masks: tuple[Tensor, ...] | None = None
    _controls: StepControls = field(init=False)  # of the step that runs
    _recorded: MapRecorder | None = None  # maps of the last step, for the mask of the next
    _visual: dict[tuple[Branches, int], SubjectTokens] = field(default_factory=dict)  # by UNet call and subject

    def __post_init__(self) -> None:
        self.latents = self.start.latents
        self._decoupled = self.model is not None or attention.is_installed(self.unet)
        _, _, height, width = self.latents.shape
        self._levels = maps.level_grids(height, width, len(self.unet.config.block_out_channels))
        self._grids, self._mask_grid = maps.by_queries(self._levels), maps.mask_grid(self.unet, self._levels)
        present = self.rows.present  # (B, U)
        self._with_subjects = present.any(1)  # (B,)
        self._absent = [number for number in range(present.shape[1]) if not bool(present[:, number].all())]
        self.change_guidance(self.guidance)

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.position >= len(self.start.timesteps)

    def forwards_left(self) -> int:
        """Single-image UNet forwards of the steps that are left (method, section 7)."""
        branches, left = self.weights.branches(), len(self.start.timesteps) - self.position
        new_masks = max(0, self._live - self.position)
        if self.mask.source is MaskSource.PREVIOUS:
            new_masks = 1 if self._live and self.position == 0 else 0
        passes = 0 if Branch.GUIDANCE in branches else new_masks
        return (left * len(branches) + passes) * len(self.latents)

    def change_guidance(self, guidance: GuidanceSettings) -> None:
        """Use these weights from the next step on."""
        self.guidance = guidance
        self.weights = Weights(
            settings=guidance,
            has_subjects=self.rows.subjects > 0,
            all_have_subjects=bool(self._with_subjects.all()),
            plain_rescale=self.plain_rescale,
        )
        self._live = self._steps_with_new_masks()
        if self._live:
            self._layers = maps.mask_layers(self.unet, self.mask.layers, self._levels)
            self._words = WordTokens.of(self.rows.words)

    def change_text(self, embeds: Mapping[str, Tensor]) -> None:
        """Use these text embeddings from the next step on; by their names in `Rows`, of its shapes."""
        changed: dict[str, Any] = dict(embeds)
        self.rows = replace(self.rows, **changed)
        self.change_guidance(self.guidance)  # the words' keys are the text's

    def step(self) -> Step:
        """The next denoising step of all rows, in UNet calls of their own."""
        (result,) = run_together(self.unet, [self.launches()])
        if isinstance(result, Exception):
            raise result
        return result

    def launches(self) -> Steps[Step]:
        """The next denoising step of all rows: yields its UNet calls and what they need, and is sent the results."""
        index, timesteps = self.position, self.start.timesteps
        timestep = timesteps[index]
        scaled = self.scheduler.scale_model_input(self.latents, timestep)
        self._controls = self.controls.at(index, len(timesteps))
        predictions: dict[Branch, Tensor] = {}
        recorder = self._recorded
        if index < self._live or (self._live and self._masks is None):  # a callback may begin with subjects late
            if recorder is None:
                recorder = self._recorder(slice(0, len(scaled)))
                launch = yield from self._launch((Branch.GUIDANCE,), scaled, timestep, recorder, before_others=True)
                predictions[Branch.GUIDANCE] = yield launch
            self._masks = yield from self._build_masks(recorder)
        source = self._source_of_next(index)
        self._recorded = recorder if source in predictions else None
        for branches in self._branches_left(predictions):
            recorder = None
            if source is not None and source in branches:
                first = branches.index(source) * len(scaled)
                recorder = self._recorded = self._recorder(slice(first, first + len(scaled)))
            output = yield (yield from self._launch(branches, scaled, timestep, recorder))
            predictions |= zip(branches, output.chunk(len(branches)), strict=True)
        combined = combine(predictions, self.weights, self._all_masks(), self._with_subjects)
        stepped = self.scheduler.step(combined, timestep, self.latents, **self.step_arguments, return_dict=False)
        self.latents = stepped[0]
        if self.start.blend is not None:
            following = timesteps[index + 1] if index + 1 < len(timesteps) else None
            self.latents = self.start.blend.after(self.latents, self.scheduler, following)
        self.position += 1
        return Step(index=index, timestep=timestep, latents=self.latents, masks=self._masks)

    def _steps_with_new_masks(self) -> int:
        """The number of steps, from the first, that compute a new mask; 0 where no subject uses one."""
        masked = any(branch in self.weights.with_subjects() for branch in self.weights.branches())
        if self.rows.subjects == 0 or not self.use_mask or not (masked or self.return_masks):
            return 0
        steps, reuse_after = len(self.start.timesteps), self.mask.mask_reuse_after
        return steps if isinstance(reuse_after, Never) else min(steps, max(1, reuse_after))

    def _source_of_next(self, index: int) -> Branch | None:
        """The branch of this step whose maps make the mask of the next; None = the next runs a guidance pass, or no new mask."""
        if self.mask.source is MaskSource.GUIDANCE or index + 1 >= self._live:
            return None
        needed = self.weights.branches()
        return next((branch for branch in (Branch.GUIDANCE, Branch.GENERATION) if branch in needed), None)

    def _branches_left(self, predictions: Mapping[Branch, Tensor]) -> list[Branches]:
        """The UNet calls for the branches whose prediction is needed and not there yet; those with subjects come last."""
        needed, acting = self.weights.branches(), self.weights.with_subjects()
        rest = tuple(sorted((one for one in needed if one not in predictions), key=lambda one: one in acting))
        if self.guidance.launches is Launches.SEPARATE:
            return [(branch,) for branch in rest]
        return [rest] if rest else []

    def _recorder(self, rows: slice) -> MapRecorder:
        """For a UNet call of which these rows are recorded."""
        grid = self._mask_grid if self.mask.self_refine else None
        return MapRecorder(words=self._words, rows=rows, layers=self._layers, self_grid=grid)

    def _build_masks(self, recorder: MapRecorder) -> Steps[tuple[Tensor, ...]]:
        """Each subject's mask (B, 1, H*, W*) from recorded maps."""
        scope = self.rows.influence_scope
        masks: Tensor = yield Masking(
            recorder=recorder, influence_scope=scope, settings=self.mask, grid=self._mask_grid, alone=self.alone
        )
        each: tuple[Tensor, ...] = masks.split(1, 1)  # an absent subject's scope is 0, and its mask too
        return each

    def _all_masks(self) -> Tensor | None:
        """(B, U, H*, W*), for the rescaling that asks for it."""
        if self._masks is None or not self.guidance.rescale_by_mask:
            return None
        return torch.cat(self._masks, 1)

    def _launch(
        self,
        branches: Branches,
        scaled: Tensor,
        timestep: Tensor,
        recorder: MapRecorder | None,
        *,
        before_others: bool = False,
    ) -> Steps[Launch]:
        """A UNet call for the rows of these branches; those with subjects come last, so that their rows are one slice."""
        acting = tuple(branch for branch in branches if branch in self.weights.with_subjects())
        sample, count = self._unet_sample(scaled), len(scaled)
        rows = slice((len(branches) - len(acting)) * count, len(branches) * count)
        subjects = yield from self._subjects(acting, rows, sample, timestep)
        return Launch(
            sample=joined([sample] * len(branches)),
            timestep=timestep,
            grids=self._grids,
            subjects=subjects,
            recorder=recorder,
            before_others=before_others,
            decoupled=self._decoupled,
            controls=self._controls.unet_inputs(branches, scaled, timestep, self._text),
            alone=self.alone,
            **self._text(branches),
        )

    def _unet_sample(self, scaled: Tensor) -> Tensor:
        """(B, c, h, w), or with the further channels of an inpainting UNet."""
        channels = self.start.channels
        return scaled if channels is None else torch.cat([scaled, channels], 1)

    def _text(self, branches: Sequence[Branch]) -> dict[str, Any]:
        """The UNet's text inputs for the rows of these branches; a ControlNet has the same."""
        rows = self.rows
        embeds = joined(_of(branches, rows.prompt_embeds, rows.negative_prompt_embeds))
        return {"encoder_hidden_states": embeds, "added_conditions": self._added_conditions(branches)}

    def _added_conditions(self, branches: Sequence[Branch]) -> dict[str, Tensor] | None:
        rows = self.rows
        if rows.pooled_prompt_embeds is None or rows.negative_pooled_prompt_embeds is None:
            return None
        assert rows.time_ids is not None and rows.negative_time_ids is not None  # SDXL has all four
        pooled = _of(branches, rows.pooled_prompt_embeds, rows.negative_pooled_prompt_embeds)
        return {
            "text_embeds": joined(pooled),
            "time_ids": joined(_of(branches, rows.time_ids, rows.negative_time_ids)),
        }

    def _subjects(self, acting: Branches, rows: slice, sample: Tensor, timestep: Tensor) -> Steps[list[SubjectTokens]]:
        """Every subject's tokens in the rows of these branches; none if no branch has subjects."""
        if not acting:
            return []
        assert self.model is not None  # without one there are no subjects
        level = None  # the noise level that scores go by
        if self.model.adaptive_scoring is not None:
            level = alphas_cumprod_at(self.scheduler, timestep).to(sample.device)
        subjects = []
        for number in range(self.rows.subjects):
            subjects.append((yield from self._subject(acting, rows, number, sample, level)))
        return subjects

    def _subject(
        self, acting: Branches, at: slice, number: int, sample: Tensor, level: Tensor | None
    ) -> Steps[SubjectTokens]:
        """The subject's tokens in the rows of these branches, as selected in this step, with this step's mask."""
        assert self.model is not None
        rows, count = self.rows, len(acting)
        if (acting, number) not in self._visual:
            own = rows.image_embeds[:, number]  # (B, S, Di)
            black = own if rows.black_image_embeds is None else rows.black_image_embeds.expand_as(own)
            embeds = joined(_of(acting, own, black))
            self._visual[acting, number] = SubjectTokens(
                embeds=embeds,
                mask_resize=self.mask.mask_resize,
                scale=self.model.settings.attn.scale,
                projections=self.model.projections,
                cache={},
            )
        subject, index, gate = self._visual[acting, number], None, None
        mask = None if self._masks is None else self._masks[number]  # (B, 1, H*, W*)
        if mask is None and number in self._absent:
            present = rows.present[:, number, None, None, None]  # (B, 1, 1, 1)
            mask = present.to(torch.float32).expand(-1, -1, *self._mask_grid)
        mask = None if mask is None else joined([mask] * count)
        if level is not None:
            index, gate = yield Scoring(
                model=self.model,
                encoder_hidden_states=joined([rows.prompt_embeds] * count),
                latents=joined([sample] * count),
                image_embeds=subject.embeds,
                alphas_cumprod=level,
                influence_quantity=rows.influence_quantity,
                words=joined([rows.words[:, number]] * count),
                mask=mask,
                mask_resize=self.mask.mask_resize,
                alone=self.alone,
            )
        return replace(subject, rows=at, index=index, gate=gate, mask=mask)


def _of(branches: Sequence[Branch], own: T, unconditional: T) -> list[T]:
    """The UNet's inputs for each branch."""
    return [unconditional if branch is Branch.UNCONDITIONAL else own for branch in branches]

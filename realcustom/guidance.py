"""Which branches a step runs, and how their predictions combine (paper, eq. 13; special weights; rescaled modes)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from realcustom.settings import GuidanceMode, GuidanceSettings, Uncond


class Branch(enum.Enum):
    """One prediction from the same noised latent."""

    UNCONDITIONAL = "unconditional"  # null or negative text; no image, or a black one
    GUIDANCE = "guidance"  # T: text, no image; its maps make the mask
    GENERATION = "generation"  # TI: text and subjects


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The guidance of a call."""

    settings: GuidanceSettings
    has_subjects: bool  # any row of the call has one
    all_have_subjects: bool = True  # False: rows without subjects use plain classifier-free guidance
    plain_rescale: float = 0.0  # phi of rows without subjects, on which the adapter's own does not act

    @property
    def text(self) -> float:
        """w_t."""
        return self.settings.guidance_scale

    @property
    def plain(self) -> float:
        """The weight of rows without subjects: w_t, and 1 up to 1, where diffusers' pipelines use no guidance."""
        return max(self.text, 1.0)

    @property
    def subject(self) -> float:
        """w_i."""
        return self.settings.subject_guidance_scale

    @property
    def rescale(self) -> float:
        """phi; 0 without subjects."""
        return self.settings.guidance_rescale if self.has_subjects else 0.0

    def coefficients(self) -> dict[Branch, float]:
        """The combination as one weight per branch; they sum to one. A weight of zero needs no forward."""
        if not self.has_subjects:  # plain classifier-free guidance in every mode
            return {Branch.UNCONDITIONAL: 1 - self.plain, Branch.GUIDANCE: self.plain, Branch.GENERATION: 0.0}
        if self.settings.mode is GuidanceMode.DIRECT:
            return {Branch.UNCONDITIONAL: 1 - self.subject, Branch.GUIDANCE: 0.0, Branch.GENERATION: self.subject}
        return {
            Branch.UNCONDITIONAL: 1 - self.text,
            Branch.GUIDANCE: self.text - self.subject,
            Branch.GENERATION: self.subject,
        }

    def combined(self) -> tuple[Branch, ...]:
        """The branches with a weight."""
        coefficients = self.coefficients()
        return tuple(branch for branch in Branch if coefficients[branch] != 0)

    def branches(self) -> tuple[Branch, ...]:
        """The branches whose prediction is needed: those with a weight, and those whose deviation rescales."""
        needed = set(self.combined())
        if self.has_subjects and not self.all_have_subjects:
            if self.plain != 1:
                needed.add(Branch.UNCONDITIONAL)
            if Branch.GUIDANCE not in needed:
                needed.add(Branch.GENERATION)  # under a zero mask it is the guidance branch
        if self.rescale:
            needed.add(Branch.GENERATION)
            if self.settings.rescale_by_mask:
                needed.add(Branch.GUIDANCE)
        return tuple(branch for branch in Branch if branch in needed)

    def with_subjects(self) -> tuple[Branch, ...]:
        """The branches that attend to image tokens under the mask."""
        if not self.has_subjects:
            return ()
        if self.settings.uncond is Uncond.NEGATIVE_TEXT_BLACK_IMAGE_MASKED:
            return (Branch.UNCONDITIONAL, Branch.GENERATION)
        return (Branch.GENERATION,)


def combine(
    predictions: Mapping[Branch, Tensor],
    weights: Weights,
    mask: Tensor | None = None,
    has_subjects: Tensor | None = None,
) -> Tensor:
    """The guided prediction (B, c, h, w) from the branches that were run.

    Args:
        predictions: at least `weights.branches()`.
        mask: (B, U, H*, W*), the inside and outside of `rescale_by_mask`; None = inside everywhere.
        has_subjects: (B,) bool, for a call in which not all rows have subjects; None = all or none.
    """
    if not weights.has_subjects:
        return _plain(predictions, weights)
    combined = _weighted(predictions, weights)
    if weights.rescale:
        combined = _scaled(combined, _target(predictions, weights, mask), weights.rescale)
    if has_subjects is None or weights.all_have_subjects:
        return combined
    return torch.where(has_subjects[:, None, None, None], combined, _plain(predictions, weights))


def _plain(predictions: Mapping[Branch, Tensor], weights: Weights) -> Tensor:
    """Classifier-free guidance of rows without subjects, whose generation branch is the guidance branch."""
    text = predictions.get(Branch.GUIDANCE, predictions.get(Branch.GENERATION))
    assert text is not None
    if weights.plain == 1:
        return text
    null = predictions[Branch.UNCONDITIONAL]
    combined = null + weights.plain * (text - null)
    return _scaled(combined, _deviation(text), weights.plain_rescale) if weights.plain_rescale else combined


def _target(predictions: Mapping[Branch, Tensor], weights: Weights, mask: Tensor | None) -> Tensor:
    """The deviation that the result is scaled towards: the generation branch's."""
    target = _deviation(predictions[Branch.GENERATION])
    if weights.settings.rescale_by_mask and mask is not None:
        marked = (mask.amax(1, keepdim=True) > 0).float()  # (B, 1, H*, W*)
        inside = F.interpolate(marked, size=predictions[Branch.GENERATION].shape[-2:], mode="nearest") > 0
        target = torch.where(inside, target, _deviation(predictions[Branch.GUIDANCE]))
    return target


def _scaled(combined: Tensor, target: Tensor, share: float) -> Tensor:
    """The prediction, by this share brought to the target's deviation; a constant one stays."""
    own = _deviation(combined)
    factor = torch.where(own > 0, target / own.clamp(min=torch.finfo(own.dtype).tiny), 1.0)
    return (share * (combined * factor) + (1 - share) * combined).to(combined.dtype)  # in diffusers' order


def _weighted(predictions: Mapping[Branch, Tensor], weights: Weights) -> Tensor:
    """The difference form if all its branches are given (bitwise guarantees refer to it), else the weighted sum."""
    needed = weights.combined()
    if len(needed) == 1:
        return predictions[needed[0]]
    coefficients = weights.coefficients()
    if needed[0] is Branch.UNCONDITIONAL:
        null = predictions[Branch.UNCONDITIONAL]
        if len(needed) == 2:  # e0 + w (e - e0)
            return null + coefficients[needed[1]] * (predictions[needed[1]] - null)
        text, subject = predictions[Branch.GUIDANCE], predictions[Branch.GENERATION]
        return null + weights.text * (text - null) + weights.subject * (subject - text)
    text, subject = predictions[Branch.GUIDANCE], predictions[Branch.GENERATION]
    return text + weights.subject * (subject - text)


def _deviation(prediction: Tensor) -> Tensor:
    """Standard deviation of each row over channels and cells, (B, 1, 1, 1) fp32."""
    return prediction.float().std((1, 2, 3), keepdim=True)

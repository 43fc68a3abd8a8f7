"""Which branches a step runs, and how their predictions combine (paper, eq. 13; special weights)."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from realcustom.settings import GuidanceMode


class Branch(enum.Enum):
    """One prediction from the same noised latent."""

    UNCONDITIONAL = "unconditional"  # null or negative text, no image
    GUIDANCE = "guidance"  # T: text, no image; its maps make the mask
    GENERATION = "generation"  # TI: text and subjects


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The guidance of a call."""

    mode: GuidanceMode
    text: float  # w_t, guidance_scale
    subject: float  # w_i, subject_guidance_scale
    has_subjects: bool

    def coefficients(self) -> dict[Branch, float]:
        """The combination written as one weight per branch; they sum to one. A weight of zero needs no forward."""
        if not self.has_subjects:  # plain classifier-free guidance in every mode
            return {Branch.UNCONDITIONAL: 1 - self.text, Branch.GUIDANCE: self.text, Branch.GENERATION: 0.0}
        if self.mode is GuidanceMode.DIRECT:
            return {Branch.UNCONDITIONAL: 1 - self.subject, Branch.GUIDANCE: 0.0, Branch.GENERATION: self.subject}
        return {
            Branch.UNCONDITIONAL: 1 - self.text,
            Branch.GUIDANCE: self.text - self.subject,
            Branch.GENERATION: self.subject,
        }

    def branches(self) -> tuple[Branch, ...]:
        """The branches whose prediction enters, in launch order."""
        coefficients = self.coefficients()
        return tuple(branch for branch in Branch if coefficients[branch] != 0)


def combine(predictions: Mapping[Branch, Tensor], weights: Weights) -> Tensor:
    """The guided prediction from the branches that were run.

    The difference form is computed where all its branches are there (statements to the bit refer to it), the weights
    where one drops out.
    """
    needed = weights.branches()
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

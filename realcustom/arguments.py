"""What a call of the pipeline is given, checked and laid out: prompts with their subjects, settings with arguments over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from realcustom.settings import MethodSettings, Never, Occurrence

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A picture of a subject, and the word of the prompt that is narrowed to it."""

    image: Image.Image
    word: str | tuple[str, ...]  # several words share one mask, made of all their maps
    occurrence: Occurrence | int | str | None = None  # all, first, last or a number from 0; None = as the adapter says
    scope: float | None = None  # influence scope of this subject; None = the call's
    mask: Image.Image | None = None  # where the subject is in its picture, for adapters with `reference: crop`

    def __post_init__(self) -> None:
        if self.scope is not None and not 0 <= self.scope <= 1:
            raise ValueError(f"a subject's scope is a ratio from 0 to 1, got {self.scope}")
        if isinstance(self.word, list):
            object.__setattr__(self, "word", tuple(self.word))
        if not self.word:
            raise ValueError("the target word is empty; name a word of the prompt")

    @property
    def words(self) -> tuple[str, ...]:
        """The subject's words."""
        return (self.word,) if isinstance(self.word, str) else self.word

    def chosen_occurrence(self, default: Occurrence | int) -> Occurrence | int:
        """Which occurrences count. Raises ValueError for a value that says nothing."""
        if self.occurrence is None:
            return default
        if isinstance(self.occurrence, (Occurrence, int)):
            return self.occurrence
        try:
            return Occurrence(self.occurrence)
        except ValueError as error:
            raise ValueError(
                f"occurrence is 'all', 'first', 'last' or a number from 0, got {self.occurrence!r}"
            ) from error


def pair(
    prompt: str | Sequence[str], subjects: Sequence[Subject] | Sequence[Sequence[Subject]]
) -> tuple[list[str], list[list[Subject]]]:
    """Prompts, and a list of subjects for each. Raises ValueError where the numbers do not match."""
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


def negative_prompts(negative_prompt: str | Sequence[str] | None, count: int) -> list[str] | None:
    """One for each prompt; None = none was given."""
    if negative_prompt is None:
        return None
    given = [negative_prompt] * count if isinstance(negative_prompt, str) else list(negative_prompt)
    if len(given) != count:
        raise ValueError(f"{len(given)} negative prompts for {count} prompts; give one, or one for each")
    return given


def settings_with(
    settings: MethodSettings,
    *,
    guidance_scale: float | None,
    subject_guidance_scale: float | None,
    influence_scope: float | None,
    influence_quantity: float | None,
    mask_reuse_after: int | Never | None,
    num_inference_steps: int | None,
) -> MethodSettings:
    """The settings with a call's arguments laid over them; None = as the settings say."""

    def given(**values: Any) -> dict[str, Any]:
        return {name: value for name, value in values.items() if value is not None}

    return replace(
        settings,
        guidance=replace(
            settings.guidance, **given(guidance_scale=guidance_scale, subject_guidance_scale=subject_guidance_scale)
        ),
        mask=replace(settings.mask, **given(influence_scope=influence_scope, mask_reuse_after=mask_reuse_after)),
        tokens=replace(settings.tokens, **given(influence_quantity=influence_quantity)),
        sampler=replace(settings.sampler, **given(num_inference_steps=num_inference_steps)),
    )


def latent_size(height: int | None, width: int | None, default: int, factor: int) -> tuple[int, int]:
    """(h, w) of the latent for a picture of this size in pixels. Raises ValueError for a side that has no latent."""
    sides = [default if side is None else side for side in (height, width)]
    for name, side in zip(("height", "width"), sides, strict=True):
        if side < factor or side % factor:
            raise ValueError(f"{name} must be a positive multiple of {factor} pixels, got {side}")
    return sides[0] // factor, sides[1] // factor


def generators_for(
    generator: torch.Generator | Sequence[torch.Generator] | None, count: int
) -> list[torch.Generator] | None:
    """One generator per image, all the same one where one is given."""
    if generator is None:
        return None
    given = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
    if len(given) != count:
        raise ValueError(f"{len(given)} generators for {count} images; give one, or one for each")
    return given

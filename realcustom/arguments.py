"""Arguments of a pipeline call, checked and normalised: prompts with their subjects, and settings with the call's overrides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from realcustom.arrays import Picture, to_mask, to_picture
from realcustom.encoded import EncodedSubject
from realcustom.errors import UsageError
from realcustom.sampling import KNOBS, SamplingParams, is_number, is_whole
from realcustom.schedule import Generators
from realcustom.settings import GuidanceMode, GuidanceSettings, MethodSettings, Occurrence, Reference, without_effect
from realcustom.warning import warn

OUTPUT_TYPES = ("pil", "np", "pt", "latent")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A picture of a subject, and the word of the prompt that is narrowed to it."""

    # PIL, numpy (H, W, C) or torch (C, H, W), as `arrays.to_picture` says, kept as PIL; or what `pipe.encode_subject` returned
    image: Picture | EncodedSubject
    word: str | tuple[str, ...]  # several words share one mask, made of all their maps
    occurrence: Occurrence | int | str | None = None  # all, first, last or a number from 0; None = the adapter's
    scope: float | None = None  # influence scope of this subject; None = that of the call
    mask: Picture | None = None  # where the subject is in its picture, for adapters with `reference: crop`

    def __post_init__(self) -> None:
        if isinstance(self.image, EncodedSubject):
            if self.mask is not None:
                raise UsageError("this subject is encoded already: give its mask to pipe.encode_subject(image, mask)")
        else:
            object.__setattr__(self, "image", to_picture(self.image))
        if self.mask is not None:
            object.__setattr__(self, "mask", Image.fromarray(to_mask(self.mask)))
        if self.scope is not None and not (is_number(self.scope) and 0 <= self.scope <= 1):
            raise UsageError(f"a subject's scope is a ratio from 0 to 1, got {self.scope}")
        if isinstance(self.word, list):
            object.__setattr__(self, "word", tuple(self.word))
        if not self.words or not all(isinstance(word, str) for word in self.words):
            raise UsageError(f"a subject's word is one word of the prompt or several, got {self.word!r}")

    @property
    def pictures(self) -> list[Image.Image]:
        """Image and mask, as PIL."""
        return [value for value in (self.image, self.mask) if isinstance(value, Image.Image)]

    @property
    def words(self) -> tuple[str, ...]:
        """The subject's words."""
        return self.word if isinstance(self.word, tuple) else (self.word,)

    def chosen_occurrence(self, default: Occurrence | int) -> Occurrence | int:
        """Which occurrences count. Raises UsageError for an invalid value."""
        if self.occurrence is None:
            return default
        if isinstance(self.occurrence, Occurrence):
            return self.occurrence
        if is_whole(self.occurrence):
            return int(self.occurrence)
        try:
            return Occurrence(self.occurrence)
        except ValueError as error:
            raise UsageError(
                f"occurrence is 'all', 'first', 'last' or a number from 0, got {self.occurrence!r}"
            ) from error


def pair(
    prompt: str | Sequence[str], subjects: Sequence[Subject] | Sequence[Sequence[Subject]]
) -> tuple[list[str], list[list[Subject]]]:
    """Prompts, and a list of subjects for each. Raises UsageError where the numbers do not match."""
    if isinstance(subjects, Subject) or not isinstance(subjects, Sequence):
        raise UsageError(f"subjects is a list: subjects=[Subject(...)]; got a {type(subjects).__name__}")
    prompts: list[Any] = [*prompt] if isinstance(prompt, Sequence) and not isinstance(prompt, str) else [prompt]
    for text in prompts:
        if not isinstance(text, str):
            raise UsageError(f"prompt is a text or a list of texts, got {text!r}")
    if not prompts:
        raise UsageError("prompt is an empty list: give at least one prompt")
    nested = [_row(row) for row in subjects if not isinstance(row, Subject)]
    flat = [subject for subject in subjects if isinstance(subject, Subject)]
    if flat and nested:
        raise UsageError("subjects are either a list, or a list of lists, one for each prompt; not both")
    if nested:
        if len(nested) != len(prompts):
            raise UsageError(f"{len(nested)} lists of subjects for {len(prompts)} prompts; give one for each")
        return prompts, nested
    if flat and len(prompts) > 1:
        raise UsageError(f"{len(prompts)} prompts need a list of subjects each: subjects=[[...], [...]]")
    return prompts, [flat for _ in prompts]


def _row(row: Sequence[Subject]) -> list[Subject]:
    """The subjects of one prompt."""
    found: list[Any] = [*row] if isinstance(row, Sequence) and not isinstance(row, str) else [row]
    for subject in found:
        if not isinstance(subject, Subject):
            inside = "" if subject is row else f" in a {type(row).__name__}"
            raise UsageError(f"a subject is a Subject(image=..., word=...), got a {type(subject).__name__}{inside}")
    return found


def settings_with(settings: MethodSettings, sampling: SamplingParams) -> MethodSettings:
    """The settings with a call's arguments over them; None = the value of the settings.

    Warns of settings that have no effect only because of the call's arguments.
    """
    sections = {knob.section for knob in KNOBS if knob.section is not None}
    changed = replace(
        settings, **{name: replace(getattr(settings, name), **sampling.given(name)) for name in sorted(sections)}
    )
    for sentence in without_effect(changed):
        if sentence not in without_effect(settings):
            warn(sentence)
    return changed


def read_schedule(
    sampling: SamplingParams, timesteps: Sequence[int] | None, sigmas: Sequence[float] | None, eta: float | None
) -> tuple[list[int] | None, list[float] | None]:
    """Timesteps and sigmas as lists. Raises UsageError where the schedule is said twice or is none, or eta is no share."""
    given = {name: _numbers(name, values) for name, values in (("timesteps", timesteps), ("sigmas", sigmas))}
    for name, values in given.items():
        if values is not None and sampling.num_inference_steps is not None:
            steps = sampling.num_inference_steps
            raise UsageError(f"{name} are the schedule: leave num_inference_steps={steps} out")
    if eta is not None and not (is_number(eta) and 0 <= eta <= 1):
        raise UsageError(f"eta is a share of noise from 0 to 1, got {eta!r}")
    return given["timesteps"], given["sigmas"]


def _numbers(name: str, values: Any) -> list[Any] | None:
    """Of a list, an array or a tensor; None stays."""
    if values is None:
        return None
    plain = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(plain, Sequence) or not all(is_number(value) for value in plain):
        raise UsageError(f"{name} is a list of numbers, got {plain!r}")
    return list(plain)


def warn_of_idle(settings: MethodSettings, subjects: Sequence[Sequence[Subject]], sampling: SamplingParams) -> None:
    """Warn of arguments of a call that do nothing in it."""
    everywhere = all(subjects)
    if sampling.guidance_scale is not None and settings.guidance.mode is GuidanceMode.DIRECT and everywhere:
        mode = settings.guidance.mode.value
        warn(f"guidance_scale does nothing in mode {mode}: subject_guidance_scale is its weight")
    if sampling.influence_scope is not None and not sampling.use_mask:
        warn("influence_scope does nothing with use_mask=False: the subjects act everywhere")
    masks = any(subject.mask is not None for row in subjects for subject in row)
    if masks and settings.image_encoder.reference is Reference.IMAGE:
        warn("a subject's mask does nothing with reference image: the whole picture is shown")
    if any(subjects):
        _warn_of_an_ignored_prompt(settings.guidance)


def _warn_of_an_ignored_prompt(guidance: GuidanceSettings) -> None:
    """Warn of a weight of 0 that leaves the prompt out of a call with subjects (method, section 7)."""
    if guidance.mode is GuidanceMode.DIRECT and guidance.subject_guidance_scale == 0:
        warn("subject_guidance_scale 0 ignores the prompt and the subjects: the image is the unconditional one")
    elif guidance.mode is not GuidanceMode.DIRECT and guidance.guidance_scale == 0:
        warn(
            "guidance_scale 0 ignores the prompt: with subjects 1 draws it as it is, and more than 1 draws away from the "
            "unconditional image"
        )


def latent_size(height: int | None, width: int | None, default: int, factor: int) -> tuple[int, int]:
    """(h, w) of the latent for a picture of this size in pixels.

    Raises UsageError for a side that is not a multiple of the VAE's factor.
    """
    sides = [default if side is None else side for side in (height, width)]
    for name, side in zip(("height", "width"), sides, strict=True):
        if not is_whole(side) or side < factor or side % factor:
            raise UsageError(f"{name} must be a positive multiple of {factor} pixels, got {side}")
    return int(sides[0]) // factor, int(sides[1]) // factor


def generators_for(
    generator: torch.Generator | Sequence[torch.Generator] | None, seed: int | None, count: int
) -> Generators:
    """The given generators, as diffusers takes them, or, for a seed, one per image on the CPU with seed + i."""
    if generator is None:
        if seed is None:
            return None
        return [torch.Generator().manual_seed(seed + i) for i in range(count)]  # the same numbers for any device
    if isinstance(generator, torch.Generator):
        return generator
    if not isinstance(generator, Sequence) or not all(isinstance(one, torch.Generator) for one in generator):
        raise UsageError(
            f"generator is a torch.Generator, or a list with one for each image, got {generator!r}: "
            "torch.Generator().manual_seed(5)"
        )
    if len(generator) != count:
        raise UsageError(f"{len(generator)} generators for {count} images; give one, or one for each")
    return list(generator)

"""Sampling parameters of a call: the one definition of each, with its range and help.

The library's call, the verb `generate`, the HTTP schema and the engine are made from these fields. A new parameter is a
field here, an argument of `RealCustomPipeline.__call__`, and its use. Imports neither torch nor ray.
"""

from __future__ import annotations

import dataclasses
import enum
import numbers
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from realcustom.errors import UsageError
from realcustom.settings import Never

MAX_SEED = 2**53 - 1  # the largest whole number that every JSON reader keeps exact


def _knob(help: str, *, ge: float | None = None, le: float | None = None, section: str | None = None) -> dict[str, Any]:
    """Metadata of a field of `SamplingParams`.

    Args:
        help: its effect, as part of a sentence.
        ge, le: smallest and largest value.
        section: section of MethodSettings with the setting of the same name, which it overrides.
    """
    return {"help": help, "ge": ge, "le": le, "section": section}


_WEIGHT: dict[str, Any] = {"ge": 0.0, "le": 1000.0, "section": "guidance"}
_N = _knob("images; image i is drawn from seed + i", ge=1)
_SEED = _knob("drawn at random and returned if left out", ge=0, le=MAX_SEED)
_SIDE = _knob("pixels", ge=1)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Parameters of one call. None = the adapter's setting (sizes: the base model's; seed: random).

    A union's first type is what the command line and HTTP take; the others are the library's alone.
    """

    n: int = field(default=1, metadata=_N)
    seed: int | None = field(default=None, metadata=_SEED)
    width: int | None = field(default=None, metadata=_SIDE)
    height: int | None = field(default=None, metadata=_SIDE)
    negative_prompt: str | Sequence[str] | None = field(
        default=None, metadata=_knob("what the picture should not show")
    )
    num_inference_steps: int | None = field(default=None, metadata=_knob("denoising steps", ge=1, section="sampler"))
    guidance_scale: float | None = field(default=None, metadata=_knob("weight of the text", **_WEIGHT))
    subject_guidance_scale: float | None = field(default=None, metadata=_knob("weight of the subject", **_WEIGHT))
    guidance_rescale: float | None = field(
        default=None,
        metadata=_knob("how far guidance is kept from raising contrast", ge=0.0, le=1.0, section="guidance"),
    )
    influence_scope: float | None = field(
        default=None, metadata=_knob("part of the picture a subject may act on", ge=0.0, le=1.0, section="mask")
    )
    influence_quantity: float | None = field(
        default=None, metadata=_knob("part of a subject's features that act", ge=0.0, le=1.0, section="tokens")
    )
    mask_reuse_after: int | Never | Literal["never"] | None = field(
        default=None, metadata=_knob("steps with a new mask; then the last one is reused", ge=0, section="mask")
    )
    clip_skip: int | None = field(
        default=None, metadata=_knob("last layers of the text encoder that the prompt skips", ge=0)
    )
    long_prompt: bool = field(
        default=False, metadata=_knob("read a prompt that is longer than the text encoder's length in chunks")
    )
    use_mask: bool = field(default=True, metadata=_knob("false: the subject acts everywhere (for comparison)"))
    return_masks: bool = field(
        default=False, metadata=_knob("the influence mask of every subject and step, in the answer")
    )

    def __post_init__(self) -> None:
        if isinstance(self.mask_reuse_after, str) and self.mask_reuse_after == Never.NEVER.value:
            object.__setattr__(self, "mask_reuse_after", Never.NEVER)

    def check(self) -> None:
        """Raise UsageError for a value of another type, or a number that is out of its range or not finite."""
        for knob in KNOBS:
            knob.check(getattr(self, knob.name))

    def given(self, section: str) -> dict[str, Any]:
        """The parameters that override settings in a section of MethodSettings."""
        values = {knob.name: getattr(self, knob.name) for knob in KNOBS if knob.section == section}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Knob:
    """A field of `SamplingParams` for an interface: an option of the command line, a property of the HTTP schema."""

    name: str
    type: type  # bool, int, float or str
    optional: bool  # None = as the adapter's settings say
    default: Any
    help: str
    ge: float | None
    le: float | None
    section: str | None
    words: tuple[str, ...]  # values beside those of `type`

    def check(self, value: Any) -> None:
        """Raise UsageError for a number out of range, or a value of another type."""
        if (value is None and self.optional) or isinstance(value, enum.Enum) or self.type is str:
            return
        takes, name = _TYPES[self.type]
        if value is None or not takes(value):
            allowed = " or ".join([*(f"'{word}'" for word in self.words), name])
            raise UsageError(f"{self.name} is {allowed}, got {value!r}")
        if self.ge is not None and self.le is not None and not self.ge <= value <= self.le:
            raise UsageError(f"{self.name} must lie in {self.ge:g} to {self.le:g}, got {value}")
        if self.ge is not None and not value >= self.ge:
            raise UsageError(f"{self.name} must be at least {self.ge:g}, got {value}")


def is_number(value: object) -> bool:
    """Whether it is a number, numpy's included; a bool is none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Whether it is a whole number by type (3.0 is none), numpy's included."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


_TYPES: dict[type, tuple[Callable[[object], bool], str]] = {
    int: (is_whole, "a whole number"),
    float: (is_number, "a number"),
    bool: (lambda value: isinstance(value, bool), "true or false"),
}


def _knobs() -> tuple[Knob, ...]:
    hints = typing.get_type_hints(SamplingParams)
    return tuple(_knob_of(field, hints[field.name]) for field in dataclasses.fields(SamplingParams))


def _knob_of(field: dataclasses.Field[Any], hint: Any) -> Knob:
    types = typing.get_args(hint) or (hint,)
    return Knob(
        name=field.name,
        type=types[0],
        optional=type(None) in types,
        default=field.default,
        words=tuple(
            str(member.value)
            for other in types
            if isinstance(other, type) and issubclass(other, enum.Enum)
            for member in other
        ),
        **dict(field.metadata),
    )


KNOBS = _knobs()

"""Aspect-ratio buckets: the size that a picture's latents are of, by the picture's own. One rule for caches and training."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from realcustom.config import build, to_dict
from realcustom.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

Size = tuple[int, int]  # (width, height), pixels
METADATA = b"buckets"  # of the field of latents: the rule that they were made by, as JSON


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Sizes of about equal area and different aspect ratio; a picture is cut to the one that keeps most of it."""

    areas: tuple[int, ...] = ()  # sides of squares, as [512, 1024]: buckets have at most their pixels; none: no buckets
    step: int = 64  # pixels, sides of buckets are multiples of it
    max_ratio: float = 2.0  # longer side / shorter side of a bucket
    # factor; the largest area is taken into which a picture is not scaled up by more, and where there is none it is dropped
    max_enlarged: float = 1.0

    def __post_init__(self) -> None:
        if self.step < 1 or self.max_ratio < 1 or self.max_enlarged <= 0:
            raise UsageError(
                f"step={self.step} and max_ratio={self.max_ratio} must be at least 1, max_enlarged={self.max_enlarged} above 0"
            )
        for area in self.areas:
            if area < self.step:
                raise UsageError(f"areas: {area} holds no bucket, it is smaller than step={self.step}")

    @functools.cached_property
    def sizes(self) -> tuple[Size, ...]:
        """All buckets, those of the largest area first."""
        return tuple(size for group in self._groups for size in group)

    @functools.cached_property
    def _groups(self) -> tuple[tuple[Size, ...], ...]:
        """The buckets of each area."""
        return tuple(self._of_area(area) for area in sorted(set(self.areas), reverse=True))

    def _of_area(self, area: int) -> tuple[Size, ...]:
        found: list[Size] = []
        for short in range(self.step, area + 1, self.step):
            long = area * area // short // self.step * self.step
            if long <= self.max_ratio * short:
                found += [(long, short), (short, long)]
        return tuple(dict.fromkeys(found))

    def of(self, size: Size) -> Size | None:
        """The bucket of a picture; None: it would be enlarged too much."""
        number = int(self.numbers(np.array(size[:1]), np.array(size[1:]))[0])
        return None if number < 0 else self.sizes[number]

    def numbers(self, widths: np.ndarray, heights: np.ndarray) -> np.ndarray:
        """The numbers of pictures' buckets in `sizes`, (N,) int16; -1 where a picture would be enlarged too much.

        Args:
            widths: (N,) pixels.
            heights: (N,) pixels.
        """
        widths, heights = widths.astype(np.int64), heights.astype(np.int64)
        found = np.full(len(widths), -1, np.int16)
        first = 0
        for group in self._groups:
            nearest, most = np.zeros(len(widths), np.int16), np.zeros(len(widths))
            for number, (wide, high) in enumerate(group):  # one after the other: tables have very many pictures
                one, other = widths * high, heights * wide
                kept = np.minimum(one, other) / np.maximum(one, other)  # share of the picture
                nearest[kept > most] = number
                most = np.maximum(most, kept)
            sides = np.array(group)[nearest]  # (N, 2)
            enlarged = np.maximum(sides[:, 0] / widths, sides[:, 1] / heights)
            chosen = (found < 0) & (enlarged <= self.max_enlarged)
            found[chosen] = first + nearest[chosen]
            first += len(group)
        return found

    def to_metadata(self) -> str:
        """As text beside the latents that were made by the rule."""
        return json.dumps(to_dict(self))

    @classmethod
    def of_schema(cls, schema: pa.Schema) -> Buckets | None:
        """The rule that a table's latents were made by; None: all are of one size."""
        said = (schema.field("latents").metadata or {}).get(METADATA)
        return None if said is None else build(cls, json.loads(said))

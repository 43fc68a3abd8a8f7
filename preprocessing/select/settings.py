"""Settings of stage `select`."""

from __future__ import annotations

from dataclasses import dataclass

from realcustom.errors import UsageError
from realcustom.preprocessing.ranges import at_least


@dataclass(frozen=True, kw_only=True)
class SelectSettings:
    """Thresholds (null: not applied; a row whose score is null passes) and duplicates."""

    min_side: int = 256  # shorter side, pixels
    max_aspect: float = 3.0  # longer side / shorter side
    min_sharpness: float | None = None  # variance of the Laplacian on 0..255 grey values
    min_aesthetic: float | None = None  # 0..1 of a classification model; of heads.safetensors on its own scale
    min_image_text: float | None = None  # cosine of CLIP's embeddings of picture and alt text, -1..1
    max_nsfw: float | None = None  # probability, 0..1
    max_watermark: float | None = None  # probability, 0..1
    exact_duplicates: bool = True  # of pictures with equal bytes keep one
    near_duplicate_radius: int | None = (
        8  # bits of 64 that may differ in a candidate pair, 0..16; null: keep all near duplicates
    )
    near_duplicate_bits: int = 40  # bits of 256 set bits of the long hashes that may differ in a near duplicate, 0..128
    near_duplicate_color: float = 0.15  # of a near duplicate: largest difference in tint over brightness, 8 x 8 pixels
    exact_search_rows: int = 4_000_000  # rows; in a larger corpus the search is locality-sensitive: it may miss a few
    partition_rows: int = 200_000  # rows of a partition of the search: a worker takes about 4 kB for each
    evaluation_folder: str | None = None  # pictures that must not be trained on: their near duplicates are dropped

    def __post_init__(self) -> None:
        at_least(1, min_side=self.min_side, partition_rows=self.partition_rows)
        at_least(0, exact_search_rows=self.exact_search_rows)
        radius = self.near_duplicate_radius
        if radius is not None and not 0 <= radius <= 16:
            raise UsageError(f"select.near_duplicate_radius must be within 0..16 (or null), got {radius}")
        if not 0 <= self.near_duplicate_bits <= 128:
            raise UsageError(f"select.near_duplicate_bits must be within 0..128, got {self.near_duplicate_bits}")
        if self.near_duplicate_color < 0:
            raise UsageError(f"select.near_duplicate_color must be at least 0, got {self.near_duplicate_color}")
        if self.max_aspect < 1:
            raise UsageError(f"select.max_aspect is longer/shorter side and at least 1, got {self.max_aspect}")

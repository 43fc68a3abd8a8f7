"""Settings of stage `score`."""

from __future__ import annotations

from dataclasses import dataclass

from realcustom.errors import UsageError
from realcustom.preprocessing.ranges import BatchSize, at_least

# Scores of a picture that either a head on CLIP's embedding gives, or an image classification model.
JUDGED = ("aesthetic", "nsfw", "watermark")


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Scores that are computed once; no row is dropped here."""

    sharpness_side: int = 512  # longest side, pixels, at which sharpness is measured (larger pictures are scaled down)
    clip: str | None = None  # CLIPModel, hub id or folder; null: no neural score
    heads: str | None = None  # folder with heads.safetensors on CLIP's image embedding; null: image-text score only
    # Image classification models, hub id or folder, each with a label of this name, whose probability is the score.
    aesthetic: str | None = None
    nsfw: str | None = None
    watermark: str | None = None
    batch_size: int | BatchSize = 32  # pictures per forward

    def __post_init__(self) -> None:
        at_least(1, sharpness_side=self.sharpness_side, batch_size=self.batch_size)
        if self.heads is not None and self.clip is None:
            raise UsageError("score.heads needs score.clip: the heads read CLIP's image embedding")

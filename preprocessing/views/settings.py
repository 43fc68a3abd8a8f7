"""Settings of stage `views`."""

from __future__ import annotations

from dataclasses import dataclass

from realcustom.errors import UsageError
from realcustom.preprocessing.ranges import BatchSize, at_least


@dataclass(frozen=True, kw_only=True)
class ViewsSettings:
    """Records that show one subject in different pictures, found by what an image encoder sees in their crops."""

    # a DINOv2, CLIP or CLIP vision model, hub id or folder; null: the stage does not run, and records have the views that
    # `view_group` of the source gives them
    encoder: str | None = None
    neighbours: int = 4  # two records are views of each other if each is among so many nearest ones of the other
    min_similarity: float = 0.8  # cosine of the crops' vectors, -1..1
    max_similarity: float = 0.995  # at this cosine or above two crops are copies, and not linked
    partition_rows: int = 20_000  # records whose vectors a worker compares with as many at a time: it holds both
    batch_size: int | BatchSize = 32  # crops per forward

    def __post_init__(self) -> None:
        at_least(1, neighbours=self.neighbours, partition_rows=self.partition_rows, batch_size=self.batch_size)
        if not -1 <= self.min_similarity < self.max_similarity:
            raise UsageError(
                f"views.min_similarity={self.min_similarity} must be at least -1 and below "
                f"views.max_similarity={self.max_similarity}"
            )

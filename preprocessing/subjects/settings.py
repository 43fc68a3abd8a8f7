"""Settings of stage `subjects`."""

from __future__ import annotations

from dataclasses import dataclass

from realcustom.errors import UsageError
from realcustom.preprocessing.ranges import BatchSize, at_least


@dataclass(frozen=True, kw_only=True)
class SubjectsSettings:
    """Detection of each target word, its mask, and the checks a candidate has to pass."""

    # GroundingDinoForObjectDetection, hub id or folder; null, with the segmenter: the whole picture is the subject, and
    # no other setting here has an effect
    detector: str | None = None
    segmenter: str | None = None  # SamModel, hub id or folder; null where the detector is
    batch_size: int | BatchSize = 8  # pictures, and boxes, per forward
    max_text_tokens: int = 16  # padded length of the detector's text
    min_detection_score: float = 0.35  # 0..1; the detector's queries below it are rejected
    max_box_overlap: float = 0.5  # IoU with a better candidate's box for the same word above which one is rejected
    max_mask_overlap: float = 0.5  # IoU with a better candidate's mask, for any word, above which one is rejected
    max_per_word: int = 1  # subjects of one word in one picture
    min_box_side: int = 48  # shorter side of the box, pixels
    max_border_contact: float = (
        1.0  # largest share of the outline of the mask's box that is mask on the picture's border; 1: not checked
    )
    min_segmentation_score: float = 0.7  # SAM's predicted IoU, 0..1
    min_area: float = 0.02  # mask area / picture area
    max_area: float = 0.9  # mask area / picture area
    min_box_mask_iou: float = 0.6  # IoU of the detected box and the mask's own

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size, max_text_tokens=self.max_text_tokens, max_per_word=self.max_per_word)
        if (self.detector is None) != (self.segmenter is None):
            given, lacking = ("segmenter", "detector") if self.detector is None else ("detector", "segmenter")
            raise UsageError(
                f"subjects.{given} needs subjects.{lacking}: set both, or both to null (the whole picture is the subject)"
            )

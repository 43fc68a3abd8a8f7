"""Why a stage kept nothing, in one sentence: the most frequent reason, and the setting that decides it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from realcustom.preprocessing.settings import PreprocessSettings

ALL_REJECTED = "all_candidates_rejected"  # of a row; what its candidates failed is under `rejected`
# The setting that decides a reason; one that is not here depends on the data alone.
DECIDED_BY = {
    "too_small": "select.min_side",
    "aspect_ratio": "select.max_aspect",
    **{f"low_{name}": f"select.min_{name}" for name in ("sharpness", "aesthetic", "image_text")},
    **{f"high_{name}": f"select.max_{name}" for name in ("nsfw", "watermark")},
    "near_duplicate": "select.near_duplicate_radius",
    "in_evaluation_folder": "select.evaluation_folder",
    "no_target_word": "caption.word",
    "cut_caption": "caption.max_new_tokens",
    "no_detection": "subjects.min_detection_score",
    "small_box": "subjects.min_box_side",
    "low_segmentation_score": "subjects.min_segmentation_score",
    "small_mask": "subjects.min_area",
    "large_mask": "subjects.max_area",
    "border_contact": "subjects.max_border_contact",
    "box_and_mask_disagree": "subjects.min_box_mask_iou",
    "cut_subject": "encode.max_cut",
    "private_address": "ingest.private_addresses",
    "decompression_bomb": "ingest.max_pixels",
    "too_many_bytes": "ingest.max_bytes",
}


def why_nothing(stage: str, report: Mapping[str, Any], settings: PreprocessSettings) -> str:
    """`select kept none of 105 rows: 105 are too_small (select.min_side=256)`.

    Args:
        report: of a stage that kept no row, as in report.json.
    """
    if not report["in"]:
        return f"{stage} found no row in its input"
    reasons = {**report["dropped"], **report["quarantined"]}
    top = max(reasons, key=lambda reason: reasons[reason], default="")
    said = f"{stage} kept none of {report['in']} rows: {reasons.get(top, 0)} are {top}{_decided_by(top, settings)}"
    candidates = {name: number for name, number in report["rejected"].items() if name != "low_detection_score"}
    if top == ALL_REJECTED and candidates:
        most = max(candidates, key=lambda name: candidates[name])
        said += f", mostly {most}{_decided_by(most, settings)}"
    return said


def _decided_by(reason: str, settings: PreprocessSettings) -> str:
    if reason not in DECIDED_BY:
        return ""
    section, name = DECIDED_BY[reason].split(".")
    value = getattr(settings.section(section), name)
    return f" ({section}.{name}={'null' if value is None else value})"

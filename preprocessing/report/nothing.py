"""Why a stage kept nothing, or little, in one sentence: the most frequent reason, and the settings that decide it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from realcustom.preprocessing.settings import PreprocessSettings

WORDS = 5  # of a list are shown
ALL_REJECTED = "all_candidates_rejected"  # of a row; what its candidates failed is under `rejected`
# The settings that decide a reason; one that is not here depends on the data alone.
DECIDED_BY = {
    "too_small": "select.min_side",
    "aspect_ratio": "select.max_aspect",
    **{f"low_{name}": f"select.min_{name}" for name in ("sharpness", "aesthetic", "image_text")},
    **{f"high_{name}": f"select.max_{name}" for name in ("nsfw", "watermark")},
    "near_duplicate": "select.near_duplicate_radius",
    "in_evaluation_folder": "select.evaluation_folder",
    "no_target_word": "caption.word caption.nouns caption.more_nouns",
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
    top, number = _most(report)
    said = f"{stage} kept none of {report['in']} rows: {number} are {top}{_decided_by(top, settings)}"
    candidates = {name: number for name, number in report["rejected"].items() if name != "low_detection_score"}
    if top == ALL_REJECTED and candidates:
        most = max(candidates, key=lambda name: candidates[name])
        said += f", mostly {most}{_decided_by(most, settings)}"
    return said


def why_little(report: Mapping[str, Any], settings: PreprocessSettings) -> str | None:
    """`most rows are too_small (select.min_side=256)`, where a reason that settings decide has more than half of the rows.

    Args:
        report: as in report.json.
    """
    top, number = _most(report)
    decided = _decided_by(top, settings)
    return f"most rows are {top}{decided}" if decided and 2 * number > report["in"] else None


def _most(report: Mapping[str, Any]) -> tuple[str, int]:
    """The most frequent reason, and of how many rows it is."""
    reasons = {**report["dropped"], **report["quarantined"]}
    return max(reasons.items(), key=lambda reason: reason[1], default=("", 0))


def _decided_by(reason: str, settings: PreprocessSettings) -> str:
    names = DECIDED_BY.get(reason, "").split()
    return f" ({', '.join(_assigned(name, settings) for name in names)})" if names else ""


def _assigned(name: str, settings: PreprocessSettings) -> str:
    """`caption.nouns=[cat, dog]`, of a long list its first words."""
    section, field = name.split(".")
    value = getattr(settings.section(section), field)
    if isinstance(value, tuple):
        value = f"[{', '.join([*map(str, value[:WORDS]), *(['...'] if len(value) > WORDS else [])])}]"
    return f"{name}={'null' if value is None else value}"

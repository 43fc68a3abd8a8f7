"""Accuracy of the preprocessing models against the ground truth of a synthetic corpus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from realcustom import storage
from realcustom.cells import decode_mask
from realcustom.errors import UsageError
from realcustom.parquet import ParquetFile
from realcustom.sprites.inspect_zoo import IOU, box_iou, mask_iou
from realcustom.sprites.world import SIZE
from realcustom.store import Store


def read_table(directory: str, columns: list[str] | None = None) -> pa.Table:
    """All Parquet files below a stage's directory as one table, in the order of their names."""
    store = Store()
    files = [entry.uri for entry in store.list_files(directory) if entry.name.endswith(".parquet")]
    if not files:
        raise UsageError(f"no Parquet files in {directory}")
    tables = [ParquetFile(file, store) for file in files]
    return pa.concat_tables([table.read(columns or table.schema.names) for table in tables])


def read_truth(corpus: str) -> dict[str, dict[str, Any]]:
    """The truth about each picture, by uid."""
    table = ParquetFile(storage.join(corpus, "truth.parquet"), Store())
    return {row["uid"]: row for row in table.read(table.schema.names).to_pylist()}


def measure_models(captioned: pa.Table, records: pa.Table, truth: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Detection recall and precision (IoU 0.5), mask IoU and caption accuracy.

    Args:
        captioned: output of the caption stage: `uid`, `synthetic_caption`; every picture that was given to the detector.
        records: training records: `parent_uid`, `target_word`, `subject_box`, `subject_mask`.
        truth: rows of a corpus' truth, by uid.
    Returns:
        `detection_recall` of the pictures, `detection_precision` of the records, `mask_iou` averaged over the records,
        `caption_accuracy` (noun and background both correct), `caption_background`.
    """
    rows = captioned.select(["uid", "synthetic_caption"]).to_pylist()
    found, precise, mask_ious = set(), [], []
    for record in records.select(["parent_uid", "target_word", "subject_box", "subject_mask"]).to_pylist():
        true = truth[record["parent_uid"]]
        hit = record["target_word"] == true["noun"] and box_iou(record["subject_box"], true["box"]) >= IOU
        precise.append(hit)
        if hit:
            found.add(record["parent_uid"])
        bits = np.unpackbits(np.frombuffer(true["mask"], np.uint8)).reshape(SIZE, SIZE).astype(bool)
        mask = decode_mask(record["subject_mask"])
        mask_ious.append(mask_iou(mask, bits))
    captions = [((row["synthetic_caption"] or "").split(), truth[row["uid"]]) for row in rows]
    backgrounds = [true["background"] in words for words, true in captions]
    both = [true["background"] in words and true["noun"] in words for words, true in captions]
    return {
        "detection_recall": len(found) / max(1, len({row["uid"] for row in rows})),
        "detection_precision": float(np.mean(precise)) if precise else 0.0,
        "mask_iou": float(np.mean(mask_ious)) if mask_ious else 0.0,
        "caption_accuracy": float(np.mean(both)) if both else 0.0,
        "caption_background": float(np.mean(backgrounds)) if backgrounds else 0.0,
    }

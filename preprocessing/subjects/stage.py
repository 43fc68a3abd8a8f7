"""Stage `subjects`: each target word found in its picture, cut out, and written as a training record.

One picture becomes as many records as it has subjects that pass the checks; one that has none is dropped. Candidates
that the checks reject are counted by reason, separately from the rows.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from realcustom.cells import encode_mask, mask_iou
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.ledger import RowLedger, UnitResult
from realcustom.preprocessing.engine.models import Runtime, blank_pictures
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import DataError, DataFault, RowDropped, naming
from realcustom.preprocessing.pictures import decode, to_png
from realcustom.preprocessing.report.nothing import ALL_REJECTED
from realcustom.preprocessing.settings import SubjectsSettings, fixed_batch
from realcustom.preprocessing.subjects.detector import Detection, Detector, DetectorInput, box_iou
from realcustom.preprocessing.subjects.records import record_table
from realcustom.preprocessing.subjects.segmenter import Segment, Segmenter, SegmenterInput, border_contact, mask_box
from realcustom.reference import cut_out

NO_DETECTION = "no_detection"
LOW_SCORE = "low_detection_score"


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A picture, and as the models take it."""

    picture: Image.Image
    detected: DetectorInput
    segmented: SegmenterInput


@dataclass(frozen=True, kw_only=True)
class _Query:
    """A word to look for in a picture."""

    row: int
    of: _Prepared
    target: dict[str, Any]  # word, start, end


class Subjects:
    """Captioned table -> training records without caches."""

    def __init__(self, settings: SubjectsSettings, models: dict[str, str], runtime: Runtime):
        self._settings = settings
        self._models = models
        self._threads = runtime.threads
        self._detector = Detector(settings, runtime)
        self._segmenter = Segmenter(settings, runtime)

    def __call__(self, unit: Unit, table: pa.Table) -> UnitResult:
        """Find, cut out and check the subjects of every row."""
        needed = (*tables.INGESTED, *tables.CAPTION_FIELDS)
        tables.require_columns(table.schema, needed, f"subjects, unit {unit.name}")
        ledger = RowLedger(table, unit.name)
        rejected: dict[int, Counter[str]] = defaultdict(Counter)
        records: dict[int, list[dict[str, Any]]] = defaultdict(list)
        targets = table["targets"].to_pylist()
        size = fixed_batch(self._settings.batch_size)
        widths, heights = table["width"].to_pylist(), table["height"].to_pylist()
        batches = ledger.prepared_batches(
            size,
            lambda row, data: self._prepare(decode(data)),
            self._threads,
            alike=lambda row: self._detector.shape(widths[row], heights[row]),
        )
        # cut-outs are compressed beside the models too
        with ThreadPoolExecutor(self._threads) as pool:
            for batch, prepared in batches:
                with naming(ledger.batch_name(batch)):
                    queries = [
                        _Query(row=row, of=one, target=target)
                        for row, one in zip(batch, prepared, strict=True)
                        for target in targets[row]
                    ]
                    accepted: list[tuple[_Query, Detection]] = []
                    for start in range(0, len(queries), size):
                        accepted += self._detect(queries[start : start + size], rejected)
                    for query, values in self._segment(accepted, rejected):
                        records[query.row].append(values)
                    for row in batch:
                        records[row] = self._distinct(records[row], rejected[row])
                        for values in records[row]:
                            values["subject_image"] = pool.submit(values["subject_image"])

        def close(row: int) -> None:
            for values in records[row]:
                values["subject_image"] = values["subject_image"].result()
            if any(not np.isfinite([values["detection"], values["segmentation"]]).all() for values in records[row]):
                raise DataError(DataFault.NON_FINITE, "a detection or segmentation score is not finite")
            if not records[row]:
                reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(rejected[row].items()))
                raise RowDropped(NO_DETECTION if rejected[row].keys() <= {LOW_SCORE} else ALL_REJECTED, reasons)

        ledger.each(close)
        kept = [(row, values) for row in ledger.remaining() for values in records[row]]
        totals: Counter[str] = sum(rejected.values(), Counter())
        return UnitResult(
            rows_in=table.num_rows,
            table=record_table(table, kept, self._models),
            excluded=ledger.excluded,
            rejected=dict(totals),
            parent="parent_uid",
        )

    def try_batch(self, size: int) -> None:
        """Run both models on a batch of that size. Raises torch.OutOfMemoryError where one does not fit."""
        pictures = blank_pictures(size, (128, 64))  # of the greatest input that the detector makes
        self._detector(pictures, ["a subject"] * size, size)
        self._segmenter(pictures, [(0.0, 0.0, 32.0, 32.0)] * size, size)

    def _prepare(self, picture: Image.Image) -> _Prepared:
        return _Prepared(
            picture=picture, detected=self._detector.prepare(picture), segmented=self._segmenter.prepare(picture)
        )

    def _detect(self, queries: list[_Query], rejected: dict[int, Counter[str]]) -> list[tuple[_Query, Detection]]:
        """Candidates that pass the checks on boxes."""
        size = fixed_batch(self._settings.batch_size)
        words = [query.target["word"] for query in queries]
        found = self._detector.detect([query.of.detected for query in queries], words, size)
        accepted: list[tuple[_Query, Detection]] = []
        for query, detections in zip(queries, found, strict=True):
            if detections.below:
                rejected[query.row][LOW_SCORE] += detections.below
            taken: list[Detection] = []
            for detection in detections.candidates:
                reason = self._reject_box(detection, taken)
                if reason is None:
                    taken.append(detection)
                else:
                    rejected[query.row][reason] += 1
            accepted += [(query, detection) for detection in taken]
        return accepted

    def _reject_box(self, detection: Detection, better: list[Detection]) -> str | None:
        if min(detection.sides) < max(1, self._settings.min_box_side):
            return "small_box"
        if any(box_iou(detection.box, other.box) > self._settings.max_box_overlap for other in better):
            return "overlapping_box"
        return "beyond_limit" if len(better) >= self._settings.max_per_word else None

    def _segment(
        self, candidates: list[tuple[_Query, Detection]], rejected: dict[int, Counter[str]]
    ) -> list[tuple[_Query, dict[str, Any]]]:
        """The subjects of candidates whose masks pass the checks."""
        size = fixed_batch(self._settings.batch_size)
        boxes = [detection.box for _, detection in candidates]
        segments = self._segmenter.segment([query.of.segmented for query, _ in candidates], boxes, size)
        found = []
        for (query, detection), segment in zip(candidates, segments, strict=True):
            reason = self._reject_mask(detection, segment)
            if reason is not None:
                rejected[query.row][reason] += 1
                continue
            values = {
                "target": query.target,
                "subject_image": partial(_cut_out, query.of.picture, segment.mask),  # made where it stays
                "subject_mask": encode_mask(segment.mask),
                "subject_box": detection.box,
                "detection": detection.score,
                "segmentation": segment.score,
            }
            found.append((query, values))
        return found

    def _reject_mask(self, detection: Detection, segment: Segment) -> str | None:
        if not segment.mask.any():
            return "empty_mask"
        if segment.score < self._settings.min_segmentation_score:
            return "low_segmentation_score"
        area = float(segment.mask.mean())
        if area < self._settings.min_area:
            return "small_mask"
        if area > self._settings.max_area:
            return "large_mask"
        if border_contact(segment.mask) > self._settings.max_border_contact:
            return "border_contact"
        if box_iou(detection.box, mask_box(segment.mask)) < self._settings.min_box_mask_iou:
            return "box_and_mask_disagree"
        return None

    def _distinct(self, found: list[dict[str, Any]], rejected: Counter[str]) -> list[dict[str, Any]]:
        """A picture's subjects without those that show the same as a better one, also if different words found them."""
        taken: list[int] = []
        for index in sorted(range(len(found)), key=lambda index: -found[index]["detection"]):
            masks = [found[other]["subject_mask"] for other in taken]
            overlaps = mask_iou(found[index]["subject_mask"], masks)
            if overlaps.max(initial=0.0) > self._settings.max_mask_overlap:
                rejected["overlapping_mask"] += 1
            else:
                taken.append(index)
        return [found[index] for index in sorted(taken)]


def _cut_out(picture: Image.Image, mask: np.ndarray) -> bytes:
    return to_png(cut_out(picture, mask))

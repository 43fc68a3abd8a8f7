"""Stage `score`: what a picture is worth, computed once. No row is dropped here; thresholds are `select`'s.

Without `score.clip` only sharpness and the signature (perceptual hashes, colours) are computed, and no model is loaded.
"""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.compute as pc

from preprocessing import rows
from preprocessing.errors import DataError, DataFault, naming
from preprocessing.hashes import Signature, signature
from preprocessing.outcome import Outcome, RowAccount
from preprocessing.pictures import decode, sharpness
from preprocessing.settings import ComputeSettings, ScoreSettings


class Score:
    """Table of pictures -> the same with `rows.SCORE_FIELDS`."""

    def __init__(self, settings: ScoreSettings, compute: ComputeSettings, models: dict[str, str]):
        self._settings = settings
        self._models = models
        self._clip = None
        if settings.clip is not None:
            from preprocessing.clip import ClipScorer  # torch and transformers only where a model runs

            self._clip = ClipScorer(settings, compute)

    def __call__(self, unit: str, table: pa.Table) -> Outcome:
        """Score every row; one whose picture does not decode is quarantined."""
        rows.require_columns(table.schema, rows.INGESTED, f"score, unit {unit}")
        account = RowAccount(table, unit)
        scores: dict[int, dict[str, float]] = {}
        signatures: dict[int, Signature] = {}

        def measure(index: int) -> None:
            picture = decode(table["image"][index].as_py(), draft_side=self._settings.sharpness_side)
            scores[index] = {"sharpness": sharpness(picture, self._settings.sharpness_side)}
            signatures[index] = signature(picture)

        account.each(measure)
        if self._clip is not None:
            for batch, pictures in account.picture_batches(self._settings.batch_size):
                with naming(account.batch_name(batch)):
                    texts = [table["alt_text"][index].as_py() for index in batch]
                    for index, values in zip(batch, self._clip(pictures, texts), strict=True):
                        scores[index].update(values)

        def check(index: int) -> None:
            for name, value in scores[index].items():
                if not math.isfinite(value):
                    raise DataError(DataFault.NON_FINITE, f"the score {name} is {value}")

        account.each(check)
        remaining = account.remaining()
        result = rows.with_column(account.rows(), self._scores_field(), [scores[index] for index in remaining])
        for field in rows.SIGNATURE_FIELDS:
            result = rows.with_column(result, field, [getattr(signatures[index], field.name) for index in remaining])
        result = rows.with_column(result, rows.IMAGE_BYTES, pc.binary_length(result["image"]))
        return Outcome(rows_in=table.num_rows, table=result, aside=account.aside)

    def _scores_field(self) -> pa.Field:
        field = rows.SCORES
        return field.with_metadata(self._models) if self._models else field

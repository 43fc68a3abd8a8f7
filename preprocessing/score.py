"""Stage `score`: what a picture is worth, computed once. No row is dropped here; thresholds are `select`'s.

Without `score.clip` only sharpness is computed, and no model is loaded.
"""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.compute as pc

from preprocessing import rows
from preprocessing.errors import DataError, DataFault, naming
from preprocessing.outcome import Outcome, RowAccount
from preprocessing.pictures import decode, sharpness
from preprocessing.settings import ComputeSettings, ScoreSettings, fixed_batch


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
        rows.require_columns(table.schema, rows.HASHED, f"score, unit {unit}")
        account = RowAccount(table, unit)
        scores: dict[int, dict[str, float]] = {}

        def measure(index: int) -> None:
            picture = decode(table["image"][index].as_py(), draft_side=self._settings.sharpness_side)
            scores[index] = {"sharpness": sharpness(picture, self._settings.sharpness_side)}

        account.each(measure)
        if self._clip is not None:
            size = fixed_batch(self._settings.batch_size)
            for batch, pictures in account.picture_batches(size):
                with naming(account.batch_name(batch)):
                    texts = [table["alt_text"][index].as_py() for index in batch]
                    for index, values in zip(batch, self._clip(pictures, texts, size), strict=True):
                        scores[index].update(values)

        def check(index: int) -> None:
            for name, value in scores[index].items():
                if not math.isfinite(value):
                    raise DataError(DataFault.NON_FINITE, f"the score {name} is {value}")

        account.each(check)
        remaining = account.remaining()
        result = rows.with_column(account.rows(), self._scores_field(), [scores[index] for index in remaining])
        result = rows.with_column(result, rows.IMAGE_BYTES, pc.binary_length(result["image"]))
        return Outcome(rows_in=table.num_rows, table=result, aside=account.aside)

    def try_batch(self, size: int) -> None:
        """Run the model on a batch of that size. Raises torch.OutOfMemoryError where it does not fit."""
        from preprocessing.models import blank_pictures

        if self._clip is not None:
            self._clip(blank_pictures(size), ["a picture"] * size, size)

    def _scores_field(self) -> pa.Field:
        field = rows.SCORES
        return field.with_metadata(self._models) if self._models else field

"""Stage `score`: sharpness and neural scores of every picture, computed once. No row is dropped here.

Without models only sharpness is computed, and torch is not loaded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.ledger import RowLedger, UnitResult
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import DataError, DataFault, naming
from realcustom.preprocessing.pictures import decode, sharpness
from realcustom.preprocessing.settings import JUDGED, ScoreSettings, fixed_batch

if TYPE_CHECKING:
    import torch

    from realcustom.preprocessing.engine.models import Runtime


class Scorer(Protocol):
    """A model that computes scores."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the scores that it gives."""
        ...

    def prepare(self, picture: Image.Image) -> torch.Tensor:
        """The model's input for a picture; made in threads beside the model."""
        ...

    def __call__(
        self, prepared: Sequence[torch.Tensor], texts: Sequence[str | None], batch_size: int
    ) -> list[dict[str, float]]:
        """Scores by name of at most `batch_size` prepared pictures with their alt texts."""
        ...


class Score:
    """Table of pictures -> the same with `tables.SCORE_FIELDS`."""

    def __init__(self, settings: ScoreSettings, models: dict[str, str], runtime: Runtime | None):
        self._settings = settings
        self._models = models
        self._scorers: list[Scorer] = []
        self._threads = 1 if runtime is None else runtime.threads
        # torch and transformers only where a model runs
        if settings.clip is not None:
            assert runtime is not None
            from realcustom.preprocessing.score.clip import ClipScorer

            self._scorers.append(ClipScorer(settings, runtime))
        for name in JUDGED:
            model = getattr(settings, name)
            if model is not None:
                assert runtime is not None
                from realcustom.preprocessing.score.classifier import Classifier

                self._scorers.append(Classifier(name, model, runtime))
        names = [name for scorer in self._scorers for name in scorer.names]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"score.{twice} and score.heads both give the score '{twice}': set one of them to null")

    def __call__(self, unit: Unit, table: pa.Table) -> UnitResult:
        """Score every row; one whose picture does not decode is quarantined."""
        tables.require_columns(table.schema, tables.INGESTED, f"score, unit {unit.name}")
        ledger = RowLedger(table, unit.name)
        scores: dict[int, dict[str, float]] = {}

        def measure(index: int, data: bytes) -> None:
            picture = decode(data, draft_side=self._settings.sharpness_side)
            scores[index] = {"sharpness": sharpness(picture, self._settings.sharpness_side)}

        def prepare(index: int, data: bytes) -> list[torch.Tensor]:
            measure(index, data)
            picture = decode(data)
            return [scorer.prepare(picture) for scorer in self._scorers]

        if not self._scorers:
            ledger.each(lambda index: measure(index, table["image"][index].as_py()))
        else:
            size = fixed_batch(self._settings.batch_size)
            for batch, prepared in ledger.prepared_batches(size, prepare, self._threads):
                with naming(ledger.batch_name(batch)):
                    texts = [table["alt_text"][index].as_py() for index in batch]
                    for scorer, inputs in zip(self._scorers, zip(*prepared, strict=True), strict=True):
                        for index, values in zip(batch, scorer(inputs, texts, size), strict=True):
                            scores[index].update(values)

        def check(index: int) -> None:
            for name, value in scores[index].items():
                if not math.isfinite(value):
                    raise DataError(DataFault.NON_FINITE, f"the score {name} is {value}")

        ledger.each(check)
        remaining = ledger.remaining()
        result = tables.with_column(ledger.rows(), self._scores_field(), [scores[index] for index in remaining])
        result = tables.with_column(result, tables.IMAGE_BYTES, pc.binary_length(result["image"]))
        return UnitResult(rows_in=table.num_rows, table=result, excluded=ledger.excluded)

    def try_batch(self, size: int) -> None:
        """Run the models on a batch of that size. Raises torch.OutOfMemoryError where it does not fit."""
        from realcustom.preprocessing.engine.models import blank_pictures

        for scorer in self._scorers:
            scorer([scorer.prepare(picture) for picture in blank_pictures(size)], ["a picture"] * size, size)

    def _scores_field(self) -> pa.Field:
        field = tables.SCORES
        return field.with_metadata(self._models) if self._models else field

"""Stage `caption`: a synthetic caption for each picture, and the words that can name its subject."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from realcustom.preprocessing import tables
from realcustom.preprocessing.caption.nouns import Target, find_targets, plain_text
from realcustom.preprocessing.engine.ledger import RowLedger, UnitResult
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import RowDropped, RowExcluded, naming
from realcustom.preprocessing.pictures import decode
from realcustom.preprocessing.settings import CaptionPolicy, CaptionSettings, fixed_batch
from realcustom.retry import RetrySettings

if TYPE_CHECKING:
    import torch

    from realcustom.preprocessing.engine.models import Runtime

NO_TARGET_WORD = "no_target_word"
BEFORE_WORD = "a photo of the "  # a caption of `caption.word`


class Caption:
    """Table of pictures -> the same with both captions, the one to use, and its target words.

    A picture is dropped if neither caption holds a target word and `caption.word` gives none.
    """

    def __init__(
        self,
        settings: CaptionSettings,
        retries: RetrySettings,
        models: dict[str, str],
        runtime: Runtime | None,
    ):
        self._settings = settings
        self._maker = models.get("model") or settings.endpoint.model
        self._captioner = None
        self._threads = 1 if runtime is None else runtime.threads
        self._endpoint = None
        if settings.endpoint.url is not None:
            from realcustom.preprocessing.caption.endpoint import (
                EndpointCaptioner,  # an HTTP client only where one is used
            )

            self._endpoint = EndpointCaptioner(settings, retries)
        if settings.model is not None:
            from realcustom.preprocessing.caption.blip import (
                BlipCaptioner,  # torch and transformers only where a model runs
            )

            assert runtime is not None
            self._captioner = BlipCaptioner(settings, runtime)

    def __call__(self, unit: Unit, table: pa.Table) -> UnitResult:
        """Caption every row; one whose picture does not decode is quarantined."""
        tables.require_columns(table.schema, tables.INGESTED, f"caption, unit {unit.name}")
        ledger = RowLedger(table, unit.name)
        synthetic = self._synthetic(ledger) if self._endpoint is None else self._asked_for(ledger)
        alt_texts = [None if text is None else plain_text(text) for text in table["alt_text"].to_pylist()]
        chosen: dict[int, tuple[str, str, list[Target]]] = {}

        def choose(index: int) -> None:
            found = self._choose(alt_texts[index], synthetic.get(index))
            if found is None:
                raise RowDropped(NO_TARGET_WORD, f"in {alt_texts[index]!r} or {synthetic.get(index)!r}")
            chosen[index] = found

        ledger.each(choose)
        kept = ledger.remaining()
        field = tables.CAPTION_FIELDS[0]
        field = tables.made_by(field, self._maker) if self._maker is not None else field
        result = tables.with_column(ledger.rows(), field, [synthetic.get(index) for index in kept])
        result = tables.with_column(result, tables.CAPTION_FIELDS[1], [chosen[index][0] for index in kept])
        result = tables.with_column(result, tables.CAPTION_FIELDS[2], [chosen[index][1] for index in kept])
        targets = [[vars(target) for target in chosen[index][2]] for index in kept]
        result = tables.with_column(result, tables.CAPTION_FIELDS[3], targets)
        return UnitResult(rows_in=table.num_rows, table=result, excluded=ledger.excluded)

    def try_batch(self, size: int) -> None:
        """Run the model on a batch of that size. Raises torch.OutOfMemoryError where it does not fit."""
        from realcustom.preprocessing.engine.models import blank_pictures

        if self._captioner is not None:
            self._captioner.try_batch(blank_pictures(size))

    def _choose(self, alt_text: str | None, synthetic: str | None) -> tuple[str, str, list[Target]] | None:
        """Caption, its source and its targets: chosen by policy where both hold a target word, else the one that does,
        else made of `caption.word`."""
        settings = self._settings
        word = settings.word
        nouns, more = (settings.nouns, settings.more_nouns) if word is None else ((word,), ())
        sources = [("alt_text", alt_text), ("synthetic", None if synthetic is None else plain_text(synthetic))]
        if self._settings.caption_policy is CaptionPolicy.SYNTHETIC:
            sources.reverse()
        for source, text in sources:
            targets = find_targets(text, nouns, settings.max_words, more) if text else []
            if text and targets:
                return text, source, targets
        return None if word is None else _made_of(word.strip())

    def _synthetic(self, ledger: RowLedger) -> dict[int, str]:
        captioner = self._captioner
        if captioner is None:
            return {}
        captions: dict[int, str] = {}
        size = fixed_batch(self._settings.batch_size)

        def prepare(index: int, data: bytes) -> torch.Tensor:
            return captioner.prepare(decode(data))

        for batch, prepared in ledger.prepared_batches(size, prepare, self._threads):
            with naming(ledger.batch_name(batch)):
                captions.update(zip(batch, captioner.caption(prepared, size), strict=True))
        return captions

    def _asked_for(self, ledger: RowLedger) -> dict[int, str]:
        assert self._endpoint is not None
        captions: dict[int, str] = {}
        endpoint = self._settings.endpoint
        # several rounds of requests at a time, so that few requests wait for the slowest
        for batch, pictures in ledger.picture_batches(4 * endpoint.concurrency, endpoint.longest_side):
            for index, answer in zip(batch, self._endpoint(pictures), strict=True):
                if isinstance(answer, RowExcluded):
                    ledger.exclude(index, answer)
                else:
                    captions[index] = answer
        return captions


def _made_of(word: str) -> tuple[str, str, list[Target]]:
    """A caption around `caption.word`, its source and its one target."""
    return BEFORE_WORD + word, "word", [Target(word=word, start=len(BEFORE_WORD), end=len(BEFORE_WORD) + len(word))]

"""Refuses a job that would be refused when it runs: its subjects, their words, the size."""

from __future__ import annotations

import copy
import threading
from typing import Any

from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.encoded import EncodedSubject
from realcustom.errors import UsageError
from realcustom.inference.errors import RequestError, WordNotInPrompt
from realcustom.inference.jobs import GenerationJob
from realcustom.tokens import chunks_of
from realcustom.words import TargetWordNotFound, find_word


class JobCheck:
    """Checks jobs for pipelines of one base. Any thread may call.

    Args:
        tokenizer: of the base. A tokenizer's truncation is state that a call sets: this one is a copy.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._tokenizing = copy.deepcopy(tokenizer), threading.Lock()

    def __call__(self, job: GenerationJob, pipeline: RealCustomPipeline) -> None:
        """Raises RequestError where `pipeline` cannot draw the job."""
        if job.subjects and pipeline.image_encoder is None:
            raise RequestError("subjects: this server runs without an adapter, it takes none", "subjects")
        words = pipeline.settings.words
        for i, subject in enumerate(job.subjects):
            _check_encoded(subject, pipeline, f"subjects[{i}].id")
            try:
                occurrence = subject.chosen_occurrence(words.occurrence)
                with self._tokenizing:
                    chunks = chunks_of(self._tokenizer, job.prompt) if job.sampling.long_prompt else 1
                    for word in subject.words:
                        find_word(self._tokenizer, job.prompt, word, occurrence, words.plural, words.match, chunks)
            except TargetWordNotFound as error:
                raise WordNotInPrompt(str(error), f"subjects[{i}].word") from error
            except UsageError as error:  # empty, or after the last token that the text encoder reads
                raise RequestError(str(error), f"subjects[{i}].word") from error
        factor = pipeline.base.vae_scale_factor
        for name, side in (("width", job.sampling.width), ("height", job.sampling.height)):
            if side is not None and side % factor:
                raise RequestError(f"size: the {name} must be a multiple of {factor} pixels, got {side}", "size")


def _check_encoded(subject: Subject, pipeline: RealCustomPipeline, param: str) -> None:
    """Refuse a subject that was encoded for another image encoder, or prepared in another way. Raises RequestError."""
    assert pipeline.image_encoder is not None  # else there are no subjects
    if isinstance(subject.image, EncodedSubject):
        try:
            subject.image.check(pipeline.image_encoder, pipeline.settings.image_encoder)
        except UsageError as error:
            raise RequestError(
                f"{param}: this model does not see pictures as the one that the subject was encoded for; send its picture as "
                "`image` in place of the id",
                param,
            ) from error

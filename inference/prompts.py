"""Encoded prompts, kept for the next request with the same text; those not used for longest go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from torch import Tensor

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.drawing import Call, Prepared, prepare
from realcustom.inference.jobs import GenerationJob
from realcustom.prompts import TextInputs
from realcustom.sampler import Rows

EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


class PromptCache:
    """Prepares jobs; the text of one that came before is not encoded again. Of one thread.

    Args:
        max_bytes: of all encoded prompts, which are on the models' device.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.hits = 0
        self.held_bytes = 0
        self._texts: OrderedDict[Hashable, TextInputs] = OrderedDict()

    def prepare(self, pipeline: RealCustomPipeline, job: GenerationJob, scheduler: Any) -> Prepared:
        """As `RealCustomPipeline.prepare`, with the same bits whether the text was kept or not."""
        sampling, pooled = job.sampling, pipeline.settings.base.sdxl_pooled
        key = job.prompt, sampling.negative_prompt, sampling.clip_skip, sampling.long_prompt, pooled
        call = Call(prompt=job.prompt, subjects=job.subjects, sampling=sampling)
        if text := self._texts.get(key):
            self.hits += 1
            self._texts.move_to_end(key)
            call = Call(
                prompt=job.prompt if job.subjects else None,  # beside embeddings it says where the words are
                subjects=job.subjects,
                sampling=replace(sampling, negative_prompt=None, clip_skip=None, long_prompt=False),
                text=text,
            )
        prepared = prepare(pipeline, call, scheduler=scheduler, alone=job.alone)
        if text is None:
            self._keep(key, prepared.sampler.rows)
        return prepared

    def _keep(self, key: Hashable, rows: Rows) -> None:
        """Keep the text of the first row; all have the same."""
        first = {name: getattr(rows, name)[:1].clone() for name in EMBEDS if getattr(rows, name) is not None}
        self._texts[key] = TextInputs(**first)
        self.held_bytes += _nbytes(self._texts[key])
        while self.held_bytes > self.max_bytes:
            _, oldest = self._texts.popitem(last=False)
            self.held_bytes -= _nbytes(oldest)


def _nbytes(text: TextInputs) -> int:
    return sum(value.nbytes for value in vars(text).values() if isinstance(value, Tensor))

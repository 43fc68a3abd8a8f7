"""Encoded prompts, kept for the next request with the same text; those not used for longest go."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.drawing import Call, Prepared, prepare
from realcustom.inference.jobs import GenerationJob
from realcustom.prompts import TextInputs
from realcustom.sampler import Rows

OWN = ("prompt_embeds", "pooled_prompt_embeds")
NEGATIVE = ("negative_prompt_embeds", "negative_pooled_prompt_embeds")
Embeds = dict[str, Any]  # tensors by the names above


class PromptCache:
    """Prepares jobs; the texts of those that came before are not encoded again. Of one thread.

    A prompt and a negative prompt are kept each by itself: most requests have the empty one.

    Args:
        max_bytes: of all encoded texts, which are on the models' device.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.hits = 0  # jobs for which nothing was encoded
        self.held_bytes = 0
        self._texts: OrderedDict[Hashable, Embeds] = OrderedDict()

    def prepare(self, pipeline: RealCustomPipeline, job: GenerationJob, scheduler: Any) -> Prepared:
        """As `RealCustomPipeline.prepare`, with the same bits whether texts were kept or not."""
        sampling, pooled = job.sampling, pipeline.settings.base.sdxl_pooled
        # a long prompt and its negative are as long as the longer of them: they are used together or not at all
        both = (job.prompt, sampling.negative_prompt) if sampling.long_prompt else None
        keys = {
            OWN: ("own", job.prompt, sampling.clip_skip, pooled, both),
            NEGATIVE: ("negative", sampling.negative_prompt, pooled, both),
        }
        kept = {names: self._texts[key] for names, key in keys.items() if key in self._texts}
        if both is not None and len(kept) < len(keys):
            kept = {}
        for names in kept:
            self._texts.move_to_end(keys[names])
        self.hits += len(kept) == len(keys)
        prompt: str | None = job.prompt
        if OWN in kept:
            prompt = job.prompt if job.subjects else None  # beside embeddings it says where the words are
            sampling = replace(sampling, clip_skip=None, long_prompt=False)
        if NEGATIVE in kept:
            sampling = replace(sampling, negative_prompt=None)
        text = TextInputs(**{name: value for embeds in kept.values() for name, value in embeds.items()})
        call = Call(prompt=prompt, subjects=job.subjects, sampling=sampling, text=text)
        prepared = prepare(pipeline, call, scheduler=scheduler, alone=job.alone)
        for names, key in keys.items():
            if key not in self._texts:
                self._keep(key, names, prepared.sampler.rows)
        return prepared

    def _keep(self, key: Hashable, names: tuple[str, ...], rows: Rows) -> None:
        """Keep a text of the first row; all have the same."""
        self._texts[key] = {name: getattr(rows, name)[:1].clone() for name in names if getattr(rows, name) is not None}
        self.held_bytes += _nbytes(self._texts[key])
        while self.held_bytes > self.max_bytes:
            _, oldest = self._texts.popitem(last=False)
            self.held_bytes -= _nbytes(oldest)


def _nbytes(embeds: Embeds) -> int:
    return sum(value.nbytes for value in embeds.values())

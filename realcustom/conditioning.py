"""The text conditioning of a call: the prompts', and that of the unconditional branch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from realcustom.base import Base, TextFeatures, encode_prompts
from realcustom.errors import UsageError
from realcustom.prompts import CallText, zeros_for_no_negative
from realcustom.settings import PooledText


def encode_text(text: CallText, pooled: PooledText) -> tuple[TextFeatures, TextFeatures]:
    """The conditioning of the prompts and of the unconditional branch, equal to that of diffusers' pipelines.

    Without a negative prompt the latter is the empty text, or zeros if an SDXL base says so. Raises as `encode_prompts`,
    and UsageError where the two have different shapes.
    """
    base, given = text.base, text.given
    if given.prompt_embeds is not None:
        own = TextFeatures(hidden=_placed(base, given.prompt_embeds))
    else:
        assert text.prompts is not None
        own = encode_prompts(
            base, text.prompts, pooled, prompts_2=text.prompts_2, clip_skip=text.clip_skip, chunks=text.chunks
        )
    own = _with_pooled(base, own, given.pooled_prompt_embeds)
    negative = _encode_negative(text, own, pooled)
    if negative.hidden.shape != own.hidden.shape:
        raise UsageError(
            f"prompt and negative prompt need embeddings of one shape, got {tuple(own.hidden.shape)} and "
            f"{tuple(negative.hidden.shape)}; encode both with the same number of tokens"
        )
    return own, negative


def _encode_negative(text: CallText, own: TextFeatures, pooled: PooledText) -> TextFeatures:
    base, given = text.base, text.given
    if given.negative_prompt_embeds is not None:
        hidden = _placed(base, given.negative_prompt_embeds)
        return _with_pooled(base, TextFeatures(hidden=hidden), given.negative_pooled_prompt_embeds)
    if text.negative is None and zeros_for_no_negative(base):
        assert own.pooled is not None
        return TextFeatures(hidden=torch.zeros_like(own.hidden), pooled=torch.zeros_like(own.pooled))
    empty = [""] * len(own.hidden)
    negative = encode_prompts(base, text.negative or empty, pooled, prompts_2=text.negative_2, chunks=text.chunks)
    return _with_pooled(base, negative, given.negative_pooled_prompt_embeds)


def _placed(base: Base, tensor: Tensor) -> Tensor:
    return tensor.to(base.device, base.dtype)


def _with_pooled(base: Base, features: TextFeatures, pooled: Tensor | None) -> TextFeatures:
    return features if pooled is None else replace(features, pooled=_placed(base, pooled))

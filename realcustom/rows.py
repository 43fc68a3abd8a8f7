"""Rows of a call: prompts, words and subjects as the tensors that the sampler denoises together, one row per image.

Letters: B rows, P prompts, U subjects, T text tokens, S image tokens, Di image width, c h w latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from realcustom.arguments import Subject
from realcustom.base import Base, TextFeatures
from realcustom.errors import UsageError
from realcustom.prompts import CallText
from realcustom.sampler import Rows
from realcustom.sampling import SamplingParams, is_whole
from realcustom.settings import MethodSettings
from realcustom.sizes import PictureSizes
from realcustom.tokens import check_tokenizers_agree
from realcustom.words import WordMatch, find_word, union, word_mask


def match_words(
    text: CallText, settings: MethodSettings, subjects: Sequence[Sequence[Subject]]
) -> list[list[WordMatch]]:
    """Positions of each subject's word. Raises as `find_word`, or UsageError where `token_words` do not fit."""
    if text.given.token_words is not None:
        return _given_positions(text.given.token_words, subjects, text.positions)
    if text.prompts is None:
        return [[] for _ in subjects]
    found = []
    for prompt, row in zip(text.prompts, subjects, strict=True):
        if row and text.base.is_sdxl:
            first, second = text.base.tokenizers
            check_tokenizers_agree(first, second, prompt, text.chunks)
        found.append([_match(text, settings, prompt, subject) for subject in row])
    return found


def _match(text: CallText, settings: MethodSettings, prompt: str, subject: Subject) -> WordMatch:
    words, tokenizer = settings.words, text.base.tokenizer
    occurrence = subject.chosen_occurrence(words.occurrence)
    return union(
        [
            find_word(tokenizer, prompt, word, occurrence, words.plural, words.match, text.chunks)
            for word in subject.words
        ]
    )


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _given_positions(
    token_words: Sequence[Any], subjects: Sequence[Sequence[Subject]], length: int
) -> list[list[WordMatch]]:
    shape_said = (
        f"token_words is a list of positions for each subject, or such lists for each prompt, got {token_words!r}"
    )
    if not all(_is_list(entry) for entry in token_words):
        raise UsageError(shape_said)
    nested = [token_words] if all(is_whole(at) for entry in token_words for at in entry) else token_words
    if not all(_is_list(positions) for row in nested for positions in row):
        raise UsageError(shape_said)
    if [len(row) for row in nested] != [len(row) for row in subjects]:
        raise UsageError(
            f"token_words has the positions of {[len(row) for row in nested]} words, the prompts have "
            f"{[len(row) for row in subjects]} subjects; give a list of positions for each subject of each prompt"
        )
    for positions in (positions for row in nested for positions in row):
        if not positions or not all(is_whole(at) and 0 <= at < length for at in positions):
            raise UsageError(
                f"token_words are positions from 0 to {length - 1}, at least one a subject, got {positions!r}"
            )
    return [
        [
            WordMatch(phrase=", ".join(subject.words), positions=tuple(sorted({int(at) for at in positions})))
            for subject, positions in zip(row, given, strict=True)
        ]
        for row, given in zip(subjects, nested, strict=True)
    ]


def make_rows(
    base: Base,
    settings: MethodSettings,
    sampling: SamplingParams,
    *,
    text: TextFeatures,
    negative: TextFeatures,
    subjects: Sequence[Sequence[Subject]],
    matches: Sequence[Sequence[WordMatch]],
    tokens: Sequence[Sequence[Tensor]],
    black: Tensor | None,
    latents: Tensor,
    sizes: PictureSizes,
) -> Rows:
    """The rows of a call, `sampling.n` for each prompt.

    Args:
        text, negative: the conditioning of each prompt, and of its unconditional branch.
        subjects, matches, tokens: for each prompt: its subjects, their words as found, and their tokens (S, Di).
        black: (S, Di), what the unconditional branch attends to, if anything.
        latents: (B, c, h, w), for their size.
        sizes: what an SDXL base is told of the picture's size.
    """
    most, device = max(len(row) for row in subjects), base.device
    prompts, length, _ = text.hidden.shape
    shape = next((token.shape for row in tokens for token in row), torch.Size((0, 1)))
    embeds = torch.zeros(prompts, most, *shape, device=device, dtype=base.dtype)
    words = torch.zeros(prompts, most, length)
    scopes = torch.zeros(prompts, most, dtype=torch.float64)
    present = torch.zeros(prompts, most, dtype=torch.bool, device=device)
    for i, row in enumerate(subjects):
        for u, subject in enumerate(row):
            embeds[i, u], present[i, u], words[i, u] = tokens[i][u], True, word_mask(matches[i][u], length)
            scopes[i, u] = float(settings.mask.influence_scope if subject.scope is None else subject.scope)
    time_ids, negative_time_ids = _time_ids(base, settings, sizes, latents, text.hidden)

    def repeated(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor.repeat_interleave(sampling.n, 0)

    return Rows(
        prompt_embeds=repeated(text.hidden),
        negative_prompt_embeds=repeated(negative.hidden),
        pooled_prompt_embeds=repeated(text.pooled),
        negative_pooled_prompt_embeds=repeated(negative.pooled),
        time_ids=time_ids,
        negative_time_ids=negative_time_ids,
        words=repeated(words.to(device)),
        image_embeds=repeated(embeds),
        black_image_embeds=black,
        present=repeated(present),
        influence_scope=repeated(scopes),
        influence_quantity=settings.tokens.influence_quantity,
    )


def _time_ids(
    base: Base, settings: MethodSettings, sizes: PictureSizes, latents: Tensor, like: Tensor
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """SDXL's size conditioning, (B, 6), of the branches with the prompt and of the unconditional one."""
    if not base.is_sdxl:
        return None, None
    height, width = (side * base.vae_scale_factor for side in latents.shape[-2:])
    own, negative = sizes.time_ids((height, width), settings.base.time_ids_order)
    return like.new_tensor(own).expand(len(latents), -1), like.new_tensor(negative).expand(len(latents), -1)

"""A text's tokens: which characters each holds, and where the text encoder reads it.

CLIP puts text into Unicode's composed form (NFC), makes all whitespace one space, lowers the case and marks the token
that ends a word with `</w>`. The encoder's input is BOS, at most L - 2 tokens, EOS and padding: L positions, a chunk. A
long prompt is read in several, each by itself; token i of the prompt is then at position L c + 1 + i - (L - 2) c of
chunk c = i // (L - 2).
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin
from torch import Tensor

from realcustom.errors import UsageError

WORD_END = "</w>"
# the plain text, without truncation
BARE: dict[str, bool] = {"add_special_tokens": False, "truncation": False, "verbose": False}


def with_all_vectors(tokenizer: Any, text: str) -> str:
    """The text as diffusers' pipelines tokenize it: a textual inversion's token followed by its further vectors'."""
    (converted,) = TextualInversionLoaderMixin().maybe_convert_prompt([text], tokenizer)
    return str(converted)


def bare_ids(tokenizer: Any, text: str) -> list[int]:
    """The text's tokens alone, all of them, without BOS and EOS."""
    return list(tokenizer(text, **BARE).input_ids)


def tokens_per_chunk(tokenizer: Any) -> int:
    """L - 2: tokens of the prompt that the text encoder reads at once."""
    return int(tokenizer.model_max_length) - 2


def position_of(tokenizer: Any, token: int) -> int:
    """Where the text encoder reads the prompt's token of this number, from 0."""
    chunk, within = divmod(token, tokens_per_chunk(tokenizer))
    return chunk * int(tokenizer.model_max_length) + 1 + within


def chunks_of(tokenizer: Any, prompt: str) -> int:
    """The chunks that hold the whole prompt, at least 1."""
    tokens = len(bare_ids(tokenizer, with_all_vectors(tokenizer, prompt)))
    return max(1, math.ceil(tokens / tokens_per_chunk(tokenizer)))


def tokenize(tokenizer: Any, prompts: Sequence[str], chunks: int = 1) -> Tensor:
    """Token ids (P * chunks, L): each prompt's chunks one after another, padded; tokens after the last are left out."""
    begin, end = tokenizer("").input_ids
    size, rows = tokens_per_chunk(tokenizer), []
    for prompt in prompts:
        ids = bare_ids(tokenizer, with_all_vectors(tokenizer, prompt))
        for start in range(0, chunks * size, size):
            row = [begin, *ids[start : start + size], end]
            rows.append(row + [tokenizer.pad_token_id] * (size + 2 - len(row)))
    return torch.tensor(rows)


def cut_off(tokenizer: Any, prompt: str, chunks: int = 1) -> str:
    """The end of the prompt that the text encoder does not read; empty where it reads all."""
    if chunks >= chunks_of(tokenizer, prompt):
        return ""
    text = unicodedata.normalize("NFC", with_all_vectors(tokenizer, prompt))
    return text[token_spans(tokenizer, text)[chunks * tokens_per_chunk(tokenizer)][0] :]


def token_spans(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Of each token, the characters of `text` (in Unicode's composed form) that it holds: the first, and one after the last.

    Raises UsageError for a tokenizer that neither says so nor keeps the characters of the text, as CLIP's does.
    """
    if tokenizer.is_fast:
        return [(start, end) for start, end in tokenizer(text, **BARE, return_offsets_mapping=True).offset_mapping]
    # a character of a token is a byte of the text in lower case; a token that was added has its own characters
    owners = [at for at, letter in enumerate(text) if not letter.isspace() for _ in letter.lower().encode()]
    tokens, added = tokenizer.convert_ids_to_tokens(bare_ids(tokenizer, text)), tokenizer.get_added_vocab()
    spans, first = [], 0
    for token in tokens:
        last = first + len(token.encode() if token in added else token.removesuffix(WORD_END)) - 1
        if last < first or last >= len(owners):
            break
        spans.append((owners[first], owners[last] + 1))
        first = last + 1
    if len(spans) < len(tokens) or first < len(owners):
        raise UsageError(f"{type(tokenizer).__name__} changes the characters of '{text}': give a fast tokenizer")
    return spans


def check_tokenizers_agree(tokenizer: Any, tokenizer_2: Any, prompt: str, chunks: int = 1) -> None:
    """Check that a position is the same word in both of SDXL's tokenizers; their padding may differ.

    If one pads with "!", a "!" of the prompt is its padding token, which is accepted for the other's "!</w>".

    Raises:
        UsageError: they read the prompt differently; the message names the first token where they do.
    """
    read = [_read(each, prompt, chunks) for each in (tokenizer, tokenizer_2)]
    for position, (one, two) in enumerate(zip_longest(*read)):
        if one == two:
            continue
        first = "nothing" if one is None else tokenizer.convert_ids_to_tokens(one)
        second = "nothing" if two is None else tokenizer_2.convert_ids_to_tokens(two)
        if not any({first, second} == {pad, pad + WORD_END} for pad in (tokenizer.pad_token, tokenizer_2.pad_token)):
            raise UsageError(
                f"the two tokenizers read the prompt differently from token {position} on: '{first}' ({one}) and "
                f"'{second}' ({two}); rephrase it there, or give tokenizers of one vocabulary"
            )


def _read(tokenizer: Any, prompt: str, chunks: int) -> list[int]:
    begin, end = tokenizer("").input_ids
    ids = bare_ids(tokenizer, with_all_vectors(tokenizer, prompt))
    return [begin, *ids[: chunks * tokens_per_chunk(tokenizer)], end]

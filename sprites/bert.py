"""A BERT tokenizer in which each of the world's words is one token, for the models whose text part is a BERT."""

from __future__ import annotations

import string

from transformers import BertConfig, BertTokenizer

from realcustom.sprites.text import WORDS

MAX_LENGTH = 64  # tokens
BOS, ENC = "[DEC]", "[ENC]"  # BLIP's own: begin a caption, encode a caption
# Grounding DINO finds the limits of its phrases by the ids that these have in BERT's vocabulary
FIXED = {
    "[PAD]": 0,
    "[UNK]": 100,
    "[CLS]": 101,
    "[SEP]": 102,
    "[MASK]": 103,
    ".": 1012,
    "?": 1029,
    BOS: 1030,
    ENC: 1031,
}
SIZE = 1 + max(FIXED.values())


def make_bert_tokenizer() -> BertTokenizer:
    """Whole words of the world, single characters and their continuations; BERT's ids for tokens with a special meaning."""
    characters = [*string.ascii_lowercase, *string.digits]
    free = [*WORDS, *characters, *(f"##{character}" for character in characters), *string.punctuation]
    entries = [entry for entry in dict.fromkeys(free) if entry not in FIXED]
    taken = set(FIXED.values())
    places = [place for place in range(FIXED["[MASK]"] + 1, SIZE) if place not in taken]
    vocabulary = {**FIXED, **dict(zip(entries, places, strict=False))}
    used = set(vocabulary.values())
    unused = (place for place in range(SIZE) if place not in used)
    vocabulary.update({f"[unused{number}]": place for number, place in enumerate(unused)})
    ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    return BertTokenizer(
        vocab=ordered,
        do_lower_case=True,
        model_max_length=MAX_LENGTH,
        additional_special_tokens=[BOS, ENC],
    )


def bert_config(width: int, layers: int) -> BertConfig:
    """A tiny BERT without dropout."""
    return BertConfig(
        vocab_size=SIZE,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=MAX_LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )

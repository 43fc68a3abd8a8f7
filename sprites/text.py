"""The world's words: a CLIP tokenizer in which each is one token, and a text encoder that distinguishes them.

A freshly initialised CLIPTextModel gives nearly the same features for every noun; some seconds of caption
classification (the noun at the noun's token, background and place at theirs) make them distinct. It is frozen after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from realcustom.sprites.world import (
    BACKGROUNDS,
    BODY_COLOURS,
    NOUNS,
    PATTERNS,
    PLACES,
    SECOND_COLOURS,
    Scene,
    Split,
    scene,
)

MAX_LENGTH = 24  # tokens of a prompt, BOS and EOS included
WIDTH = 64  # of the text features
WORDS = (*NOUNS, *BACKGROUNDS, *PLACES, "a", "an", "the", "at", "on", "in", "of", "with", "and", "picture", "photo")
ATTRIBUTES = (*BODY_COLOURS, *SECOND_COLOURS, *PATTERNS)  # words of the diffusion model's own captions alone
BOUND = {"noun": NOUNS, "body": tuple(BODY_COLOURS), "second": tuple(SECOND_COLOURS)}
NAMES = (*NOUNS, *BACKGROUNDS, *PLACES, *ATTRIBUTES)  # the kinds of words that the text encoder learns to distinguish


def make_clip_tokenizer(words: Sequence[str] = WORDS, max_length: int = MAX_LENGTH) -> CLIPTokenizer:
    """CLIP's byte-pair rules with just the merges that make each of `words` one token; other words become letters."""
    symbols = list(_byte_symbols())
    vocabulary = symbols + [symbol + "</w>" for symbol in symbols]
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            # joined from the right: "</w>" ends up in every joined piece, so that no merge of one word breaks another
            pair = (pieces[-2], pieces[-1])
            if pair not in merges:
                merges.append(pair)
                vocabulary.append("".join(pair))
            pieces[-2:] = ["".join(pair)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    index = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    return CLIPTokenizer(vocab=index, merges=merges, model_max_length=max_length)


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A tiny CLIPTextModel with random weights, 64 wide, two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids (B, 24), padded and truncated as the pipeline does."""
    kinds = {"padding": "max_length", "truncation": True, "max_length": MAX_LENGTH, "return_tensors": "pt"}
    ids: torch.Tensor = tokenizer(captions, **kinds).input_ids
    return ids


def caption_targets(tokenizer: CLIPTokenizer, ids: torch.Tensor) -> torch.Tensor:
    """Class of each token (B, 24): the number in `NAMES` of the word that it is, -100 elsewhere."""
    targets = torch.full_like(ids, -100)
    for index, name in enumerate(NAMES):
        targets[ids == tokenizer.convert_tokens_to_ids(name + "</w>")] = index
    return targets


def bound_targets(scenes: list[Scene], described: Sequence[int | None]) -> torch.Tensor:
    """Noun, body and second colour (D, 3) of the subjects that captions describe, as numbers in `BOUND`'s lists."""
    identities = [item.subjects[who].identity for item, who in zip(scenes, described, strict=True) if who is not None]
    rows = [[kinds.index(getattr(identity, name)) for name, kinds in BOUND.items()] for identity in identities]
    return torch.tensor(rows).reshape(-1, len(BOUND))


def pretrain_text_encoder(
    steps: int = 1000, batch_size: int = 64, seed: int = 0
) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """Train the text encoder on caption classification: each named thing at its token, all of them at the last.

    Half of the captions name the attributes of a subject; these are classified at the pattern's token, so that they are
    bound to the right one of two subjects.

    Returns:
        The tokenizer and the encoder, frozen and in evaluation mode.
    """
    torch.manual_seed(seed)
    tokenizer = make_clip_tokenizer((*WORDS, *ATTRIBUTES))
    encoder = make_text_encoder(tokenizer).train()
    at_token, at_end = nn.Linear(WIDTH, len(NAMES)), nn.Linear(WIDTH, len(NAMES))
    at_pattern = nn.ModuleList(nn.Linear(WIDTH, len(kinds)) for kinds in BOUND.values())
    heads = (at_token, at_end, at_pattern)
    parameters = [*encoder.parameters(), *(parameter for head in heads for parameter in head.parameters())]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    patterns = torch.tensor([NAMES.index(name) for name in PATTERNS])
    for _, scenes in zip(range(steps), _batches(batch_size), strict=False):
        described = [i % len(item.subjects) if i % 4 < 2 else None for i, item in enumerate(scenes)]
        captions = [
            item.caption if who is None else item.attribute_caption(who)
            for item, who in zip(scenes, described, strict=True)
        ]
        ids = tokenize(tokenizer, captions)
        output = encoder(ids)
        targets = caption_targets(tokenizer, ids)
        loss = nn.functional.cross_entropy(at_token(output.last_hidden_state).flatten(0, 1), targets.flatten())
        present = torch.zeros(len(scenes), len(NAMES))
        rows, columns = torch.nonzero(targets >= 0, as_tuple=True)
        present[rows, targets[rows, columns]] = 1.0
        loss = loss + nn.functional.binary_cross_entropy_with_logits(at_end(output.pooler_output), present)
        told = output.last_hidden_state[torch.isin(targets, patterns)]  # (D, 64), one for each description
        for head, wanted in zip(at_pattern, bound_targets(scenes, described).T, strict=True):
            loss = loss + nn.functional.cross_entropy(head(told), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return tokenizer, encoder.eval().requires_grad_(False)


def _batches(size: int) -> Iterator[list[Scene]]:
    start = 10**8  # first scene; the diffusion model uses other scenes
    while True:
        yield [scene(Split.ZOO, start + i, second=0.3) for i in range(size)]
        start += size


def _byte_symbols() -> list[str]:
    """The printable replacements of all 256 bytes, in CLIP's (GPT-2's) order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]

"""The text of a call: prompts, or what stands for them, and where the subjects' words are in it.

The arguments are those of diffusers' pipelines and mean the same. Ours are `token_words`, and `long_prompt` of
`SamplingParams`.

Letters: P prompts, T positions that the UNet attends to, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from realcustom.arguments import Subject, pair
from realcustom.base import Base
from realcustom.errors import UsageError
from realcustom.sampling import SamplingParams
from realcustom.tokens import chunks_of, cut_off, tokens_per_chunk
from realcustom.warning import warn

Positions = Sequence[int]
Texts = list[str] | None


@dataclass(frozen=True, kw_only=True)
class TextInputs:
    """A call's text besides `prompt` and what `SamplingParams` holds."""

    prompt_2: str | Sequence[str] | None = None  # for SDXL's second text encoder; None = the same
    negative_prompt_2: str | Sequence[str] | None = None
    prompt_embeds: Tensor | None = None  # (P, T, D)
    negative_prompt_embeds: Tensor | None = None  # (P, T, D)
    pooled_prompt_embeds: Tensor | None = None  # (P, width of the pooled text), SDXL alone
    negative_pooled_prompt_embeds: Tensor | None = None
    # the positions in [0, T) of each subject's word, BOS counted as 0; for several prompts a list for each
    token_words: Sequence[Positions] | Sequence[Sequence[Positions]] | None = None


@dataclass(frozen=True, kw_only=True)
class CallText:
    """A call's text, checked. Each list has an entry for each of the P prompts."""

    base: Base
    prompts: Texts  # None: `given.prompt_embeds` alone
    prompts_2: Texts
    negative: Texts
    negative_2: Texts
    given: TextInputs
    clip_skip: int | None
    chunks: int  # how many times the tokenizer's length is read

    @property
    def positions(self) -> int:
        """T."""
        embeds = self.given.prompt_embeds
        return self.chunks * int(self.base.tokenizer.model_max_length) if embeds is None else int(embeds.shape[1])


def read_text(
    base: Base,
    prompt: str | Sequence[str] | None,
    subjects: Sequence[Subject] | Sequence[Sequence[Subject]],
    sampling: SamplingParams,
    given: TextInputs,
) -> tuple[CallText, list[list[Subject]]]:
    """A call's text, and each prompt's subjects.

    Raises UsageError for arguments that contradict each other, or one that is missing or has another number or shape.
    """
    _check_types(given)
    named = prompt
    if named is None:
        if given.prompt_embeds is None:
            raise UsageError("give prompt or prompt_embeds; both are None")
        named = [""] * len(given.prompt_embeds)
    prompts, per_prompt = pair(named, subjects)
    if None in base.tokenizers and not (prompt is None and sampling.negative_prompt is None):
        raise UsageError(
            "this pipeline has no tokenizer to read texts: give prompt_embeds and negative_prompt_embeds, and token_words for "
            "the subjects' words"
        )
    _check_pairs(base, prompt, any(per_prompt), sampling.negative_prompt, given)
    _check_shapes(base, len(prompts), given)
    text = CallText(
        base=base,
        prompts=None if prompt is None else prompts,
        prompts_2=_second("values of prompt_2", given.prompt_2, len(prompts)),
        negative=_each("negative prompts", sampling.negative_prompt, len(prompts)),
        negative_2=_second("values of negative_prompt_2", given.negative_prompt_2, len(prompts)),
        given=given,
        clip_skip=sampling.clip_skip,
        chunks=1,
    )
    return replace(text, chunks=_chunks(text, sampling.long_prompt)), per_prompt


def warn_of_text(text: CallText, sampling: SamplingParams) -> None:
    """Warn of text that the encoder does not read, and of arguments that do nothing."""
    first, last = text.base.tokenizer, text.base.tokenizers[-1]
    for name, prompts, tokenizer in (
        ("prompt", text.prompts if text.given.prompt_embeds is None else None, first),
        ("prompt_2", text.prompts_2, last),
        ("negative_prompt", text.negative, first),
        ("negative_prompt_2", text.negative_2, last),
    ):
        for prompt in dict.fromkeys(prompts or ()):
            if rest := cut_off(tokenizer, prompt, text.chunks):
                limit = text.chunks * tokens_per_chunk(tokenizer)
                warn(
                    f"{name} is longer than the {limit} tokens that are read; this is cut off: '{rest}' "
                    "(long_prompt reads all)"
                )
    for name in ("clip_skip", "long_prompt"):
        if getattr(sampling, name) and text.given.prompt_embeds is not None:
            warn(f"{name} does nothing with prompt_embeds")
    if text.negative_2 is not None and text.negative is None and zeros_for_no_negative(text.base):
        warn("negative_prompt_2 does nothing without negative_prompt: this base then uses zeros")


def _check_types(given: TextInputs) -> None:
    """Raise UsageError for features that are no tensor, or positions that are no list."""
    for name, value in vars(given).items():
        if value is None or not (name.endswith("_embeds") or name == "token_words"):
            continue
        if name == "token_words" and not isinstance(value, (list, tuple)):
            raise UsageError(f"token_words is a list of positions for each subject, got a {type(value).__name__}")
        if name.endswith("_embeds") and not (isinstance(value, Tensor) and value.ndim):
            raise UsageError(f"{name} is a tensor with a row for each prompt, got a {type(value).__name__}")


def _check_pairs(
    base: Base,
    prompt: str | Sequence[str] | None,
    with_subjects: bool,
    negative_prompt: str | Sequence[str] | None,
    given: TextInputs,
) -> None:
    """Raise UsageError for arguments that cannot be given together, or not without each other."""
    values = {**vars(given), "prompt": prompt, "negative_prompt": negative_prompt}
    present = {name for name, value in values.items() if value is not None}
    sdxl_only = sorted(name for name in present if name.endswith("_2") or "pooled" in name)
    if sdxl_only and not base.is_sdxl:
        raise UsageError(f"{', '.join(sdxl_only)} is for SDXL, this base is a Stable Diffusion 1.x")
    searched = with_subjects and given.token_words is None
    if present >= {"prompt", "prompt_embeds"} and not searched:
        raise UsageError(
            "give prompt or prompt_embeds, not both: beside prompt_embeds the prompt is read only to find the subjects' words"
        )
    if searched and prompt is None:
        raise UsageError(
            "prompt_embeds do not say where a subject's word is: give token_words, the positions of each subject's word "
            "(BOS is 0), or the prompt that they were made from"
        )
    for one, other in (
        ("prompt_2", "prompt_embeds"),
        ("negative_prompt", "negative_prompt_embeds"),
        ("negative_prompt_2", "negative_prompt_embeds"),
    ):
        if present >= {one, other}:
            raise UsageError(f"give {one} or {other}, not both")
    for one, other in (
        ("prompt_embeds", "pooled_prompt_embeds"),
        ("negative_prompt_embeds", "negative_pooled_prompt_embeds"),
    ):
        if base.is_sdxl and one in present and other not in present:
            raise UsageError(f"{one} needs {other}, of the same text encoders")


def _check_shapes(base: Base, count: int, given: TextInputs) -> None:
    width = int(base.unet.config.cross_attention_dim)
    for name, value in vars(given).items():
        if not isinstance(value, Tensor):
            continue
        pooled, shape = "pooled" in name, tuple(value.shape)
        if len(shape) != (2 if pooled else 3) or shape[0] != count or not (pooled or shape[2] == width):
            wanted = f"({count}, width of the pooled text)" if pooled else f"({count}, tokens, {width})"
            raise UsageError(f"{name} has shape {wanted} here, got {shape}")


def _each(what: str, value: str | Sequence[str] | None, count: int) -> Texts:
    """One for each prompt; None = none given."""
    if value is None:
        return None
    values = [value] * count if isinstance(value, str) else value
    if not isinstance(values, Sequence) or not all(isinstance(text, str) for text in values):
        raise UsageError(f"{what} are texts, one or one for each prompt, got {value!r}")
    if len(values) != count:
        raise UsageError(f"{len(values)} {what} for {count} prompts; give one, or one for each")
    return list(values)


def _second(what: str, value: str | Sequence[str] | None, count: int) -> Texts:
    """As `_each`, for the second encoder; as in diffusers an empty text means the first one's."""
    return None if isinstance(value, (str, list, tuple)) and not value else _each(what, value, count)


def zeros_for_no_negative(base: Base) -> bool:
    """Whether the unconditional branch of a base without negative prompts has zeros in place of the empty text."""
    return base.is_sdxl and bool(base.pipeline.config.get("force_zeros_for_empty_prompt", True))


def _chunks(text: CallText, long_prompt: bool) -> int:
    """As many as the longest text needs if long prompts are read, those of given embeddings, else one."""
    embeds = text.given.prompt_embeds
    if embeds is not None:
        if text.base.tokenizer is None:
            return 1
        length = int(text.base.tokenizer.model_max_length)
        encodes_negative = text.given.negative_prompt_embeds is None and not zeros_for_no_negative(text.base)
        if embeds.shape[1] % length and (text.prompts is not None or text.negative is not None or encodes_negative):
            raise UsageError(
                f"prompt_embeds of {embeds.shape[1]} tokens, not a multiple of the tokenizer's {length}, need token_words for "
                "the subjects and negative_prompt_embeds in place of a text"
            )
        return max(1, int(embeds.shape[1]) // length)
    if not long_prompt:
        return 1
    first, last = text.base.tokenizer, text.base.tokenizers[-1]
    read = [(first, text.prompts), (last, text.prompts_2), (first, text.negative), (last, text.negative_2)]
    return max(chunks_of(tokenizer, prompt) for tokenizer, prompts in read for prompt in prompts or ())

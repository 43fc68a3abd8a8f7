"""Settings of stage `caption`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from realcustom.errors import UsageError
from realcustom.preprocessing.ranges import BatchSize, at_least
from realcustom.retry import RetrySettings


class CaptionPolicy(enum.Enum):
    """Which caption is used where both the alt text and the synthetic one hold a target word."""

    ALT_TEXT = "alt_text"
    SYNTHETIC = "synthetic"


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """A large captioner behind an OpenAI-compatible endpoint.

    `model`, `prompt`, `seed` and `longest_side` are part of the fingerprint; the other settings are not.
    """

    url: str | None = None  # for example http://127.0.0.1:8000/v1; null: no endpoint
    model: str | None = None  # the model's name at the endpoint
    # instruction sent with every picture; not empty
    prompt: str = "Describe this picture in one short sentence. Name its main objects. Answer with the sentence alone."
    seed: int = 0  # sent with every request, with temperature 0
    longest_side: int = 1024  # pixels: larger pictures are sent scaled down
    concurrency: int = 16  # requests at once, of one worker
    timeout: float = 120.0  # seconds for one try
    # tries of a picture; with the waits between them four minutes, enough for a server to restart
    attempts: int = 13
    backoff: float = 1.0  # seconds before the second try, doubled for each one after it, at most 30
    key_variable: str = "CAPTION_API_KEY"  # environment variable of every worker that holds the key; unset: no key

    def __post_init__(self) -> None:
        at_least(1, longest_side=self.longest_side, concurrency=self.concurrency)
        _ = self.retries  # checks attempts and backoff
        if not self.timeout > 0:
            raise UsageError(f"timeout must be above 0 seconds, got {self.timeout}")
        if (self.url is None) != (self.model is None):
            given, lacking = ("model", "url") if self.url is None else ("url", "model")
            raise UsageError(f"caption.endpoint.{given} needs caption.endpoint.{lacking}")
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.username is not None or parts.query:  # before any message shows the URL
                raise UsageError(
                    f"caption.endpoint.url holds a name, a key or a query, and would be seen: put the key into the "
                    f"environment variable {self.key_variable}"
                )
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise UsageError(f"caption.endpoint.url must be as http://host:8000/v1, got {self.url!r}")
        if not self.prompt.strip():
            raise UsageError("caption.endpoint.prompt is empty")

    @property
    def retries(self) -> RetrySettings:
        """How often, and how soon, a picture is tried again."""
        return RetrySettings(attempts=self.attempts, backoff=self.backoff)


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """Synthetic captions and the words in a caption that can name a subject."""

    model: str | None = None  # BlipForConditionalGeneration, hub id or folder; null: alt texts only
    endpoint: EndpointSettings = field(default_factory=EndpointSettings)  # used instead of `model`
    batch_size: int | BatchSize = 16  # pictures per generation
    max_new_tokens: int = 30  # longest caption, in the captioner's tokens, at least 1; for an endpoint too
    # the target word of every picture, whatever `nouns` and `more_nouns` say; a picture whose captions lack it gets the
    # caption "a photo of the WORD"; null: each caption's own words
    word: str | None = None
    nouns: tuple[str, ...] = ()  # vocabulary of target words, the only ones; empty: the noun-phrase rule of nouns.py
    more_nouns: tuple[str, ...] = ()  # target words beside those of `nouns`, or of the rule
    max_words: int = 1  # target words taken from one caption
    caption_policy: CaptionPolicy = CaptionPolicy.ALT_TEXT

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size, max_new_tokens=self.max_new_tokens, max_words=self.max_words)
        if self.model is not None and self.endpoint.url is not None:
            raise UsageError(
                "caption.model and caption.endpoint.url are both set: set caption.model=null, or no endpoint"
            )
        if self.word is not None and not any(character.isalnum() for character in self.word):
            raise UsageError(f"caption.word is the word for the subject, as 'dog', got {self.word!r}")
        for name in ("nouns", "more_nouns"):
            if not all(noun.strip() for noun in getattr(self, name)):
                raise UsageError(f"caption.{name} holds an empty word")

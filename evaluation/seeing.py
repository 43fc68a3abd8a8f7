"""A judge that sees: a vision-language model behind an OpenAI-compatible endpoint, asked several times about each image.

Half of the questions show the two pictures in the other order, and all are asked in a shuffled order. An answer that is not
what was asked for is asked for again; a score that cannot be had is missing, never 0, and asked for again by the next run.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image

from realcustom.errors import UsageError
from realcustom.evaluation.rubrics import Rubric
from realcustom.evaluation.settings import SeeingSettings
from realcustom.http_retry import TryAgain, is_passing, no_answer, retry_after, run_in_thread, with_retries

logger = logging.getLogger(__name__)

TEMPERATURE = 0.7  # above 0, so that agreement with itself says something
LONGEST_SIDE = 1024  # pixels; larger pictures are sent scaled down
MAX_TOKENS = 1024


@dataclass(frozen=True, kw_only=True)
class Question:
    """What one image is asked about."""

    image: Image.Image
    references: tuple[Image.Image, ...]  # a real picture of each of its subjects
    prompt: str


class SeeingJudge:
    """Images -> scores of one rubric, one for each time it is asked."""

    def __init__(self, settings: SeeingSettings, rubric: Rubric) -> None:
        if settings.url is None:
            raise UsageError(f"--metric {rubric.name}@seeing needs an endpoint: set evaluate.seeing.url and .model")
        self.settings, self.rubric = settings, rubric
        self.identity = f"seeing {settings.model} {settings.asks} {TEMPERATURE} {rubric.instruction}"
        self.failed: str | None = None  # why the endpoint was given up
        self._key = os.environ.get(settings.key_variable, "").strip()

    def __call__(self, questions: Sequence[Question]) -> np.ndarray:
        """(n, asks) float64; NaN where no score could be had. Raises UsageError where the endpoint refuses the key or model."""
        return run_in_thread(self._all(questions))

    async def _all(self, questions: Sequence[Question]) -> np.ndarray:
        scores = np.full((len(questions), self.settings.asks), np.nan)
        slots = asyncio.Semaphore(self.settings.concurrency)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        places = [(index, ask) for index in range(len(questions)) for ask in range(self.settings.asks)]
        random.Random(0).shuffle(places)
        async with httpx.AsyncClient(headers=headers, timeout=self.settings.timeout, trust_env=False) as client:

            async def one(index: int, ask: int) -> None:
                async with slots:
                    scores[index, ask] = await self._score(client, self._body(questions[index], ask))

            tasks = [asyncio.create_task(one(*place)) for place in places]
            try:
                await asyncio.gather(*tasks)
            finally:  # after an error no request may still be opening a connection when the client closes
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return scores

    async def _score(self, client: httpx.AsyncClient, body: dict[str, Any]) -> float:
        if self.failed is not None:
            return float("nan")
        try:
            return await with_retries(lambda: self._try(client, body), self.settings.retries)
        except _Unreadable as error:
            logger.warning("%s: %s; the score is missing", self.rubric.name, error.what)
        except TryAgain as error:
            if self.failed is None:
                self.failed = f"{self.settings.url}: {error.what}"
                logger.warning("%s; scores that it has not given are missing", self.failed)
        return float("nan")

    async def _try(self, client: httpx.AsyncClient, body: dict[str, Any]) -> float:
        address = f"{str(self.settings.url).rstrip('/')}/chat/completions"
        try:
            async with asyncio.timeout(self.settings.timeout):
                response = await client.post(address, json=body)
        except (httpx.TransportError, httpx.DecodingError, TimeoutError) as error:
            raise TryAgain(no_answer(error)) from error
        if is_passing(response.status_code):
            raise TryAgain(f"HTTP {response.status_code}", retry_after(response.headers.get("retry-after")))
        if response.status_code != 200:
            raise UsageError(
                f"evaluate.seeing.url={self.settings.url}: HTTP {response.status_code}; model {self.settings.model}, key from "
                f"{self.settings.key_variable}"
            )
        try:
            answer = response.json()["choices"][0]["message"]["content"]
            return self.rubric.read(str(answer or ""))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _Unreadable(f"an answer cannot be read ({' '.join(str(error).split())[:120]})") from error

    def _body(self, question: Question, ask: int) -> dict[str, Any]:
        generated = [("The generated picture:", question.image)]
        shown = [(f"Reference {index}:", image) for index, image in enumerate(question.references, 1)]
        if not self.rubric.shows_reference:
            pictures = generated
        else:
            pictures = [*generated, *shown] if ask % 2 else [*shown, *generated]
        content: list[dict[str, Any]] = []
        for title, image in pictures:
            content += [{"type": "text", "text": title}, {"type": "image_url", "image_url": {"url": _data_url(image)}}]
        if "prompt_following" in self.rubric.scores:
            content.append({"type": "text", "text": f"The prompt, as a JSON string: {json.dumps(question.prompt)}"})
        return {
            "model": self.settings.model,
            "messages": [
                {"role": "system", "content": self.rubric.instruction},
                {"role": "user", "content": content},
            ],
            "temperature": TEMPERATURE,
            "max_tokens": MAX_TOKENS,
            "seed": ask,
        }


class _Unreadable(TryAgain):
    """An answer that is not what was asked for."""


def _data_url(image: Image.Image) -> str:
    image = image.convert("RGB")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

"""Two ways to generate a table's images: the pipeline in this process, batched, and a running endpoint over HTTP.

Both start case i from the noise of its own seed, so that rows differ only in their setting.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import torch
from PIL import Image

from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.errors import UsageError
from realcustom.evaluation.table import Case, Setting
from realcustom.proxies import is_loopback


@dataclass(frozen=True, kw_only=True)
class PipelineGenerator:
    """Draws a batch of cases in one call of `pipeline`."""

    pipeline: RealCustomPipeline
    num_inference_steps: int | None = None  # None = the adapter's setting

    def __call__(self, setting: Setting, cases: Sequence[Case]) -> list[Image.Image]:
        subjects = [_reference(setting, case) for case in cases]
        output = self.pipeline(
            prompt=[case.prompt for case in cases],
            subjects=[
                [] if image is None else [Subject(image=image, word=case.target_word)]
                for image, case in zip(subjects, cases, strict=True)
            ],
            num_inference_steps=self.num_inference_steps,
            generator=[torch.Generator().manual_seed(case.seed) for case in cases],
            use_mask=setting is not Setting.SUBJECT_WITHOUT_MASK,
        )
        return list(output.images)


@dataclass(frozen=True, kw_only=True)
class EndpointGenerator:
    """Draws cases one by one with `POST /v1/images/generations`."""

    url: str  # of the server, http://host:port
    num_inference_steps: int | None = None  # None = the adapter's setting
    api_key: str | None = None
    timeout_seconds: float = 600.0  # of one request

    def __call__(self, setting: Setting, cases: Sequence[Case]) -> list[Image.Image]:
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        trusted = not is_loopback(self.url)
        with httpx.Client(
            base_url=self.url, headers=headers, timeout=self.timeout_seconds, trust_env=trusted
        ) as client:
            return [self._draw(client, setting, case) for case in cases]

    def _draw(self, client: httpx.Client, setting: Setting, case: Case) -> Image.Image:
        request: dict[str, Any] = {"prompt": case.prompt, "seed": case.seed}
        if self.num_inference_steps is not None:
            request["num_inference_steps"] = self.num_inference_steps
        reference = _reference(setting, case)
        if reference is not None:
            request["subjects"] = [{"image": to_base64(reference), "word": case.target_word}]
            request["use_mask"] = setting is not Setting.SUBJECT_WITHOUT_MASK
        answer = client.post("/v1/images/generations", json=request)
        if answer.status_code != 200:
            raise RuntimeError(f"case {case.uid}: the endpoint answered {answer.status_code}: {answer.text[:500]}")
        data = base64.b64decode(answer.json()["data"][0]["b64_json"])
        return Image.open(io.BytesIO(data)).convert("RGB")


def _reference(setting: Setting, case: Case) -> Image.Image | None:
    """The subject's picture under `setting`."""
    if setting is Setting.ORACLE:
        raise UsageError("the oracle's images are given, not drawn")
    if setting is Setting.TEXT_TO_IMAGE:
        return None
    return case.wrong_reference if setting is Setting.WRONG_REFERENCE else case.reference


def to_base64(image: Image.Image) -> str:
    """`image` for the endpoint: base64 of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")

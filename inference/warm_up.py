"""The first steps of an engine, taken before there are requests: what is made once is made, and compiled, then."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from realcustom.compiling import needs_compiler
from realcustom.diffusion_pipeline import Subject
from realcustom.errors import UsageError
from realcustom.inference.engine import Engine
from realcustom.inference.errors import Cancelled, RequestError
from realcustom.inference.jobs import GenerationJob
from realcustom.sampling import SamplingParams

logger = logging.getLogger(__name__)
WORD = "picture"  # prompt and subject
STEPS = 2  # one with a new mask, one without
NEVER_DONE = 100  # steps of a job that is ended after its first


def warm_up(engine: Engine, pictures: Sequence[tuple[int, int]], batch_sizes: Sequence[int], max_cells: int) -> None:
    """Draw each size of pictures, and take a step of each number of rows; twice, so that the second time says what they cost.

    Afterwards nothing is compiled any more: shapes that were not seen here run uncompiled, so that no request waits for a
    compiler.

    Args:
        engine: without jobs.
        pictures: (width, height) in pixels.
        batch_sizes: numbers of rows for which the UNet is compiled; none = it is not.
        max_cells: latent cells of all rows of a UNet call at most; greater batches are left out.
    Raises:
        UsageError: a size that the base cannot draw, a step that does not fit the device's memory, or no compiler.
    """
    began, factor = time.monotonic(), engine.pipeline.base.vae_scale_factor
    for width, height in pictures:
        size = height // factor, width // factor
        fitting = [rows for rows in batch_sizes if rows * size[0] * size[1] <= max_cells]
        engine.batch_sizes[size] = sorted(fitting, reverse=True)  # the largest first: it takes the memory at once
    deadline, engine.deadline_seconds = engine.deadline_seconds, math.inf  # a first step may take long
    try:
        for _ in range(2):
            engine.forget_seconds()
            for width, height in pictures:
                _draw(engine, width, height)
                for rows in engine.batch_sizes[height // factor, width // factor]:
                    _step(engine, width, height, rows)
    finally:
        engine.deadline_seconds = deadline
    engine.may_compile = not batch_sizes
    if pictures:
        logger.info("warmed up in %.1f s", time.monotonic() - began)


def _draw(engine: Engine, width: int, height: int) -> None:
    """A whole request, with a subject where the engine takes one."""
    subjects: tuple[Subject, ...] = ()
    if engine.pipeline.image_encoder is not None:
        # some transparency, for adapters that take a subject cut out; a mask would do nothing with the others, and warn
        picture = Image.new("RGBA", (64, 64), (128, 128, 128, 254))
        subjects = (Subject(image=picture, word=WORD),)
    job = _job(engine, subjects, width=width, height=height, num_inference_steps=STEPS)
    try:
        engine.check(job)
    except RequestError as error:
        raise UsageError(f"warm_up: {error}") from error
    with _sentences(f"drawing {width}x{height}"):
        engine.submit(job).future.result()


def _step(engine: Engine, width: int, height: int, rows: int) -> None:
    """A step of so many rows: without a subject and guidance an image has one."""
    stepped = threading.Event()
    job = _job(engine, (), n=rows, width=width, height=height, guidance_scale=1.0, num_inference_steps=NEVER_DONE)
    ticket = engine.submit(job, lambda _: stepped.set())
    ticket.future.add_done_callback(lambda _: stepped.set())
    stepped.wait()
    ticket.cancel()
    with _sentences(f"a step of {rows} rows at {width}x{height}"), contextlib.suppress(Cancelled):
        ticket.future.result()


def _job(engine: Engine, subjects: tuple[Subject, ...], **sampling: Any) -> GenerationJob:
    sha256 = None if engine.adapter is None else engine.adapter["sha256"]
    return GenerationJob(prompt=WORD, subjects=subjects, sampling=SamplingParams(seed=0, **sampling), adapter=sha256)


@contextlib.contextmanager
def _sentences(what: str) -> Iterator[None]:
    """Raises UsageError for what the settings or the machine are to blame for."""
    try:
        with needs_compiler("serve.compile"):
            yield
    except torch.OutOfMemoryError as error:
        raise UsageError(
            f"{what} does not fit the device's memory: lower serve.max_batch_pixels, or leave the size out of serve.warm_up"
        ) from error

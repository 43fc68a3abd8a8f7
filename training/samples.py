"""Sample sheets: images by the adapter for held-out records, from fixed seeds."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from realcustom.base import Base
from realcustom.callbacks import Callback
from realcustom.cells import decode_mask
from realcustom.diffusion_pipeline import RealCustomPipeline, Subject
from realcustom.log import Progress
from realcustom.model import RealCustomModel
from realcustom.settings import MethodSettings, Reference
from realcustom.training.encoders import FrozenEncoders, decode_picture
from realcustom.training.features import Picture
from realcustom.training.sheets import Sheet
from realcustom.words import TargetWordNotFound, TargetWordTruncated

logger = logging.getLogger(__name__)

SIDE = 128  # pixels of a cell, at least
SEED = 0  # not a setting: the sheets of different runs can be compared


def draw_sample_sheet(
    pictures: Sequence[Picture],
    base: Base,
    model: RealCustomModel,
    encoders: FrozenEncoders,
    method: MethodSettings,
    steps: int,
    stop: Callable[[], bool] = lambda: False,
) -> Sheet | None:
    """A sheet with a row per record: its reference, the image of the base model alone, and the image with the subject.

    Both are drawn from the same noise with the record's caption, in `steps` denoising steps, at the size of the record's
    bucket. Records without a picture, or with a target word that the tokenizer cannot find, are left out with a log line.
    None where `stop`, asked after each denoising step, ends it.
    """
    # its own copy of the settings: the run's number of steps is not the adapter's
    settings = replace(method, sampler=replace(method.sampler, num_inference_steps=steps))
    pipeline = RealCustomPipeline(base, settings, model, encoders.image_encoder)
    pipeline.set_progress_bar_config(disable=True)  # a run's log has lines alone
    progress = Progress(logger, "the sample sheet, denoising steps", 2 * steps * len(pictures))

    def after_step(pipe: RealCustomPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress.advance()
        pipe._interrupt = stop()
        return {}

    logger.info("drawing the sample sheet: %d pictures in %d denoising steps each", 2 * len(pictures), steps)
    rows: list[list[Image.Image]] = []
    captions: list[tuple[str, str]] = []
    for picture in pictures:
        try:
            rows.append(_row(pipeline, encoders, picture, after_step))
            captions.append((picture.target_word, picture.caption))
        except (TargetWordNotFound, TargetWordTruncated) as error:
            logger.warning("no sample of record %s: %s", picture.uid, error)
        if pipeline.interrupt:
            logger.info("a sample sheet is left out, as the run is asked to end")
            return None
    return Sheet(png=_png(rows) if rows else b"", captions=captions)


def _row(
    pipeline: RealCustomPipeline, encoders: FrozenEncoders, picture: Picture, after_step: Callback
) -> list[Image.Image]:
    mask = None
    if picture.subject_mask is not None and encoders.settings.reference is Reference.CROP:
        mask = Image.fromarray(decode_mask(picture.subject_mask))
    subject = Subject(image=decode_picture(picture.image), word=picture.target_word, mask=mask)
    cells = [encoders.reference(picture)]
    width, height = picture.bucket or (None, None)
    for subjects in ([], [subject]):
        generator = torch.Generator().manual_seed(SEED)
        image = pipeline(
            picture.caption,
            subjects,
            generator=generator,
            height=height,
            width=width,
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=(),
        ).images[0]
        if pipeline.interrupt:
            break
        assert isinstance(image, Image.Image)  # output_type is "pil"
        cells.append(image)
    return cells


def _png(rows: Sequence[Sequence[Image.Image]]) -> bytes:
    side = max(SIDE, *(max(row[-1].size) for row in rows))
    sheet = Image.new("RGB", (len(rows[0]) * side, len(rows) * side), "white")
    for top, row in enumerate(rows):
        for left, cell in enumerate(row):
            longest = max(cell.size)
            sampling = Image.Resampling.NEAREST if longest < side else Image.Resampling.LANCZOS
            width, height = (round(side * length / longest) for length in cell.size)
            place = (left * side + (side - width) // 2, top * side + (side - height) // 2)
            sheet.paste(cell.resize((width, height), sampling), place)
    data = io.BytesIO()
    sheet.save(data, "PNG")
    return data.getvalue()

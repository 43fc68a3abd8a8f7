"""What a sample is conditioned on: dropout, augmented references, the subject's part of the loss, SDXL's sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from realcustom.base_loading import load_base
from realcustom.checkpoint import load_adapter
from realcustom.errors import UsageError
from realcustom.settings import BaseSettings, GuidanceSettings, MethodSettings, TimeIdsOrder, Uncond
from realcustom.training.augment import augment
from realcustom.training.batch import Batch
from realcustom.training.encoders import FrozenEncoders
from realcustom.training.features import Kind
from realcustom.training.geometry import error_weights, time_ids
from realcustom.training.objective import squared_error
from realcustom.training.run import make_job
from realcustom.training.settings import CurriculumPoint, Precision, TrainSettings
from realcustom.training.worker import Worker
from realcustom.training.world import World
from tests.support.tiny import tiny_pp_settings, tiny_sdxl_base, tiny_siglip_dino
from tests.support.training_corpus import fill_caches, write_pictures
from tests.support.training_runs import METHOD, SETTINGS, fit

NOT_DROPPED = replace(SETTINGS, p_drop_text=0.0, p_drop_image=0.0)


def make_worker(
    world: SimpleNamespace, output: Path, settings: TrainSettings, method: MethodSettings = METHOD, records: str = ""
) -> Worker:
    return Worker(
        make_job(records or world.pictures, str(output), world.base, world.image_encoder, method, settings), World()
    )


def batches(worker: Worker, steps: int) -> Iterator[Batch]:
    for step in range(steps):
        yield worker.batches.training(worker.order.share(step, 0, 1))


def test_both_conditions_are_dropped_together(world: SimpleNamespace, tmp_path: Path) -> None:
    worker = make_worker(world, tmp_path, replace(NOT_DROPPED, p_drop_both=0.5), records=world.caches)
    plain = make_worker(world, tmp_path, NOT_DROPPED, records=world.caches)
    empty = worker.encoders.text_features("")
    dropped = 0
    for batch, other in zip(batches(worker, 8), batches(plain, 8), strict=True):
        assert torch.equal(batch.noise, other.noise) and torch.equal(batch.timesteps, other.timesteps)
        for image, text in zip(batch.image_embeds, batch.encoder_hidden_states, strict=True):
            assert bool(image.any()) != torch.equal(text, empty)
            dropped += not image.any()
    assert 10 < dropped < 30  # of 40


def test_a_dropped_reference_is_a_black_picture_where_sampling_has_one(world: SimpleNamespace, tmp_path: Path) -> None:
    method = replace(METHOD, guidance=GuidanceSettings(uncond=Uncond.NEGATIVE_TEXT_BLACK_IMAGE_MASKED))
    worker = make_worker(world, tmp_path, replace(NOT_DROPPED, p_drop_image=1.0), method, world.caches)
    black = worker.encoders.image_encoder.encode_black()[0]
    (batch,) = batches(worker, 1)
    assert black.any() and all(torch.equal(image, black) for image in batch.image_embeds)


def test_what_full_caches_make_idle_is_not_held(world: SimpleNamespace, sdxl: SimpleNamespace, tmp_path: Path) -> None:
    """It comes back where it is needed after all."""
    method = replace(METHOD, guidance=GuidanceSettings(uncond=Uncond.NEGATIVE_TEXT_BLACK_IMAGE_MASKED))
    worker = make_worker(world, tmp_path, replace(SETTINGS, p_drop_both=0.5), method, world.caches)
    for batch in batches(worker, 3):
        assert worker.base.pipeline.vae is worker.base.text_encoder is None and "image_encoder" not in vars(
            worker.encoders
        )
        assert batch.image_embeds.any(2).all()
    assert worker.encoders.text_features("a red square").any()
    assert worker.encoders.loaded().vae is not None
    large = make_worker(sdxl, tmp_path, replace(SETTINGS, p_drop_text=0.5), records=sdxl.caches)
    (batch,) = batches(large, 1)
    assert batch.pooled_text is not None and large.base.pipeline.vae is None and large.base.text_encoder is not None


def test_an_augmented_reference_is_the_subject_smaller_and_turned() -> None:
    picture = Image.new("RGB", (64, 64), "red")
    shares, mirrored = [], set()
    picture.paste("blue", (0, 0, 32, 64))
    for number in range(40):
        moved = augment(picture, 0, 0, str(number))
        assert moved.size == picture.size and moved.tobytes() == augment(picture, 0, 0, str(number)).tobytes()
        pixels = np.asarray(moved).astype(int)
        coloured = (pixels.sum(2) < 600).mean()
        shares.append(coloured)
        left = pixels[32, 20]
        mirrored.add(bool(left[0] > left[2]))
    assert 0.2 < min(shares) < 0.35 and 0.8 < max(shares) <= 1 and mirrored == {True, False}


def test_references_are_augmented_as_the_curriculum_says(world: SimpleNamespace, tmp_path: Path) -> None:
    points = (CurriculumPoint(until_step=3, ref_aug=0.0), CurriculumPoint(until_step=4, ref_aug=1.0))
    worker = make_worker(world, tmp_path, replace(NOT_DROPPED, curriculum=points))
    for step, batch in enumerate(batches(worker, 7)):
        for number, image in zip(batch.numbers, batch.image_embeds, strict=True):
            assert torch.equal(image, worker.features.get(Kind.IMAGE, number)) == (step < 4)
        assert step < 4 or batch.image_embeds.any()
    with pytest.raises(UsageError, match="ref_aug needs the records' pictures"):
        make_worker(world, tmp_path, replace(NOT_DROPPED, curriculum=points), records=world.caches)


def test_the_subject_s_part_of_the_error_is_weighted(world: SimpleNamespace, tmp_path: Path) -> None:
    worker = make_worker(world, tmp_path, replace(NOT_DROPPED, subject_loss_weight=3.0))
    (batch,) = batches(worker, 1)
    weights = batch.error_weights
    assert weights is not None and weights.shape == (5, 1, *batch.latents.shape[2:])
    assert weights.min() == 1 and weights.max() == 3
    mask = worker.features.mask(batch.numbers[0])
    assert mask is not None
    side = mask.shape[0] // weights.shape[-1]
    blocks = mask.reshape(weights.shape[2], side, weights.shape[3], side).mean((1, 3))
    assert np.allclose(weights[0, 0], 1 + 2 * blocks)
    prediction, target = torch.randn(2, *batch.latents.shape).unbind(0)
    expected = ((prediction - target).square() * weights).sum((1, 2, 3)) / (4 * weights.sum((1, 2, 3)))
    assert torch.allclose(squared_error(prediction, target, weights), expected, rtol=1e-5)
    ones = torch.ones_like(weights)
    assert torch.allclose(squared_error(prediction, target, ones), squared_error(prediction, target), rtol=1e-6)
    (validated, _) = next(worker.batches.validation(worker.validation))
    assert validated.error_weights is None


def test_a_mask_is_cut_as_the_picture_is() -> None:
    mask = np.zeros((40, 100), bool)
    mask[:, 30:50] = True  # of the square's columns 30 to 70 the first half
    assert error_weights(mask, (20, 20), (4, 4), 2.0)[0].tolist() == [[2, 2, 1, 1]] * 4
    assert torch.equal(error_weights(None, (20, 20), (4, 4), 2.0), torch.ones(1, 4, 4))


def test_sdxl_is_told_the_sizes() -> None:
    assert time_ids((100, 40), None, (20, 20), TimeIdsOrder.HW) == [40, 100, 0, 15, 20, 20]
    assert time_ids((40, 100), None, (20, 20), TimeIdsOrder.WH_COMPAT) == [40, 100, 15, 0, 20, 20]
    mask = np.zeros((40, 100), bool)
    mask[:, 90:] = True  # the square is moved to its end
    assert time_ids((100, 40), mask, (20, 20), TimeIdsOrder.HW) == [40, 100, 0, 30, 20, 20]


@pytest.fixture(scope="module")
def sdxl(world: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    root = tmp_path_factory.mktemp("sdxl")
    base = tiny_sdxl_base(root / "base")
    loaded = load_base(base)
    write_pictures(root / "pictures", 12, side=loaded.resolution)
    encoders = FrozenEncoders(loaded, world.image_encoder, METHOD, torch.device("cpu"))
    fill_caches(root / "pictures", root / "caches", encoders, keep_image=False)
    return SimpleNamespace(
        base=base, image_encoder=world.image_encoder, pictures=str(root / "pictures"), caches=str(root / "caches")
    )


def test_an_sdxl_shaped_base_is_trained(sdxl: SimpleNamespace, tmp_path: Path) -> None:
    """From caches and from pictures alike, with its pooled text and sizes, each dropped with the text."""
    method = replace(METHOD, base=BaseSettings(time_ids_order=TimeIdsOrder.WH_COMPAT))
    settings = replace(SETTINGS, steps=8, gradient_accumulation=2)
    results = [fit(sdxl, tmp_path / name, settings, getattr(sdxl, name), method) for name in ("caches", "pictures")]
    assert results[0].loss_after < results[0].loss_before
    assert results[0].loss_after == pytest.approx(results[1].loss_after, rel=1e-4)
    assert load_adapter(results[0].adapter).base == load_base(sdxl.base).identity
    worker = make_worker(sdxl, tmp_path / "worker", replace(NOT_DROPPED, p_drop_text=0.5), method)
    (batch,) = batches(worker, 1)
    side = load_base(sdxl.base).resolution
    assert batch.time_ids is not None and batch.time_ids.tolist() == [[side, side, 0, 0, side, side]] * 5
    assert batch.pooled_text is not None
    empty = worker.encoders.text_features(""), worker.encoders.pooled_text("")
    for text, pooled in zip(batch.encoder_hidden_states, batch.pooled_text, strict=True):
        assert torch.equal(text, empty[0]) == torch.equal(pooled, empty[1])


def test_plus_plus_on_sdxl_in_bf16(sdxl: SimpleNamespace, tmp_path: Path) -> None:
    """The release's shape: projector, black references where they are dropped."""
    models = tiny_siglip_dino(tmp_path / "models")
    pp = SimpleNamespace(base=sdxl.base, image_encoder=models)
    method = replace(tiny_pp_settings(), guidance=GuidanceSettings(uncond=Uncond.NEGATIVE_TEXT_BLACK_IMAGE_MASKED))
    settings = replace(
        SETTINGS,
        steps=6,
        precision=Precision.BF16,
        base_dtype=Precision.BF16,
        gradient_checkpointing=True,
        p_drop_both=0.1,
        lr=3e-3,
    )
    result = fit(pp, tmp_path / "run", settings, sdxl.pictures, method)
    assert result.loss_after < result.loss_before

"""The diffusion model's recipe at its smallest: exact latents, resuming, the localisation term, a folder that loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from realcustom.base import load_base
from sprites import base, text, zoo_path
from sprites.resume import Checkpoint
from sprites.world import Split, draw, scene

SHORT = base.BaseSettings(steps=4, batch_size=2)


@pytest.fixture(scope="module")
def text_model() -> tuple[CLIPTokenizer, CLIPTextModel]:
    return text.pretrain_text_encoder(steps=3, batch_size=4)


def test_the_encoder_is_the_rearrangement_of_pixels() -> None:
    pixel_values = base.to_pixel_values([draw(scene(Split.EVALUATION, number)) for number in range(3)])
    assert pixel_values.shape == (3, 3, 32, 32) and pixel_values.abs().max() <= 1
    latents = base.make_vae().encode(pixel_values).latents * base.SCALING_FACTOR
    assert (latents - base.to_latents(pixel_values)).abs().max() <= 1e-5


def test_a_resumed_training_ends_at_the_same_weights(
    text_model: tuple[CLIPTokenizer, CLIPTextModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = base.train_unet(*text_model, tmp_path / "whole", SHORT, compiled=False).state_dict()

    class Killed(Exception):
        pass

    step = Checkpoint.step

    def killed(self: Checkpoint, number: int, every: int, **values: float) -> None:
        step(self, number, every=1, **values)
        if number == 1:
            raise Killed

    monkeypatch.setattr(Checkpoint, "step", killed)
    with pytest.raises(Killed):
        base.train_unet(*text_model, tmp_path / "cut", SHORT, compiled=False)
    monkeypatch.setattr(Checkpoint, "step", step)
    resumed = base.train_unet(*text_model, tmp_path / "cut", SHORT, compiled=False).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_localisation_rewards_attention_inside(text_model: tuple[CLIPTokenizer, CLIPTextModel]) -> None:
    objective = base.Objective(base.make_unet(), SHORT)
    scenes = [scene(Split.EVALUATION, number) for number in range(2)]
    _, _, inside, noun = base.batch_of(scenes, *text_model, torch.tensor([False, True]))
    assert noun.sum(1).tolist() == [1, 0]  # a dropped caption has no noun
    recorder = next(iter(objective.recorders.values()))
    crisp = (inside > 0.5).float()
    for share, expected in ((crisp.flatten(1), -1.0), (1 - crisp.flatten(1), 1.0)):
        two_heads = share.repeat_interleave(2, 0)[..., None]
        recorder.probabilities = two_heads.expand(-1, -1, text.MAX_LENGTH)
        assert objective._localisation(crisp, noun).item() == pytest.approx(expected / 2)


def test_the_shipped_folder_is_a_base_model() -> None:
    shipped = load_base(zoo_path("pipeline"))
    assert shipped.resolution == 32 and shipped.vae_scale_factor == 2
    drawing = base.to_pixel_values([draw(scene(Split.EVALUATION, 5))])
    decoded = shipped.vae.decode(shipped.vae.encode(drawing).latents).sample
    assert (decoded - drawing).abs().mean() < 0.03  # of a range of two

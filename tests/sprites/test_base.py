"""The diffusion model's recipe at its smallest: exact latents, resuming, the localisation term, a folder that loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from realcustom.base_loading import load_base
from realcustom.sprites import base, text, zoo_path
from realcustom.sprites.resume import Checkpoint
from realcustom.sprites.world import Split, draw, scene

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


def test_captions_are_dropped_or_tell_attributes_as_often_as_the_settings_say() -> None:
    scenes = [scene(Split.ZOO, number) for number in range(2000)]
    settings = base.BaseSettings(drop_caption=0.2, describe=0.5)
    captions = base.captions_of(scenes, settings, torch.Generator().manual_seed(0))
    said = list(zip(captions, scenes, strict=True))
    assert sum(caption == "" for caption in captions) / len(said) == pytest.approx(0.2, abs=0.03)
    assert sum(caption == item.caption for caption, item in said) / len(said) == pytest.approx(0.4, abs=0.03)
    assert {caption for caption, item in said if caption not in ("", item.caption)} <= {
        item.attribute_caption() for item in scenes
    }


def test_the_text_encoder_reads_attributes_of_the_right_subject() -> None:
    scenes = [next(item for number in range(99) if len((item := scene(Split.ZOO, number, second=1.0)).subjects) == 2)]
    tokenizer = text.make_clip_tokenizer((*text.WORDS, *text.ATTRIBUTES))
    for described in (0, 1):
        identity = scenes[0].subjects[described].identity
        ids = text.tokenize(tokenizer, [scenes[0].attribute_caption(described)])
        assert ids[0, -1] == tokenizer.eos_token_id  # nothing was cut off
        told = [text.NAMES[index] for index in text.caption_targets(tokenizer, ids)[0].tolist() if index >= 0]
        start = told.index(identity.body)
        assert told[start : start + 4] == [identity.body, identity.noun, identity.second, identity.pattern]
        wanted = [[kinds.index(getattr(identity, name)) for name, kinds in text.BOUND.items()]]
        assert text.bound_targets(scenes, [described]).tolist() == wanted
    assert text.bound_targets(scenes, [None]).shape == (0, 3)


def test_localisation_rewards_attention_inside(text_model: tuple[CLIPTokenizer, CLIPTextModel]) -> None:
    objective = base.Objective(base.make_unet(), SHORT)
    scenes = [scene(Split.EVALUATION, number) for number in range(2)]
    _, _, inside, noun = base.batch_of(scenes, [scenes[0].caption, ""], *text_model)
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

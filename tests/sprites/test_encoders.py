"""CLIP, its heads and the image encoder: their losses and targets, their recipes, and the shipped weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, CLIPVisionModel

from realcustom.sprites import ZOO, clip, defects, heads, image_encoder, train, zoo_path
from realcustom.sprites.text import WORDS
from realcustom.sprites.world import BACKGROUNDS, SIZE, Split, draw, scene

FIRST = 3 * 10**9  # apart from the scenes that others measure on


def picture() -> np.ndarray:
    return draw(scene(Split.EVALUATION, FIRST)).image


def test_defects_leave_their_input_alone_and_are_seen() -> None:
    image, rng = picture(), np.random.default_rng(0)
    before = image.copy()
    worse = [
        defects.blur(image, 1.0),
        defects.noise(image, 20, rng),
        defects.wash_out(image, 0.5),
        defects.add_watermark(image),
        defects.add_forbidden_sign(image, rng),
        defects.degrade(image, rng)[0],
        defects.degrade_mildly(image, np.zeros((SIZE, SIZE), bool), np.random.default_rng(4)),
    ]
    assert (image == before).all()
    for result in worse:
        assert result.shape == image.shape
        assert result.dtype == np.uint8
        assert np.abs(result.astype(int) - image).mean() > 1


def test_watermark_is_seen_on_light_and_dark() -> None:
    for level in (10, 245):
        flat = np.full((SIZE, SIZE, 3), level, np.uint8)
        assert np.ptp(defects.add_watermark(flat)) > 80


def test_contrastive_loss_is_clips_where_no_captions_coincide() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(5)
    cross = torch.nn.functional.cross_entropy
    wanted = (cross(logits, labels) + cross(logits.T, labels)) / 2
    torch.testing.assert_close(clip.contrastive_loss(logits, torch.eye(5, dtype=torch.bool)), wanted)


def test_content_is_what_a_caption_says() -> None:
    scenes = [scene(Split.ZOO, i, second=0.5) for i in range(600)]
    by_content: dict[object, set[str]] = {}
    for item in scenes:
        words = frozenset(item.caption.replace("picture of", "").replace("with", "on").split()) - {"a", "on", "and"}
        by_content.setdefault(clip.content(item), set()).add(" ".join(sorted(words)))
    assert all(len(said) == 1 for said in by_content.values())
    assert len(by_content) < len(scenes)  # some do coincide


def test_patches_know_what_lies_under_them() -> None:
    settings = image_encoder.ImageEncoderSettings(recolour=0.0, cut_out=0.0, zoom=0.0, defect=0.0, second=0.0)
    for index in range(image_encoder.FIRST_SCENE, image_encoder.FIRST_SCENE + 10):
        image, item, layout = image_encoder._example(index, settings)
        batch = image_encoder.make_batch([(image, item, layout)])
        kinds = batch.kinds.reshape(8, 8).numpy()
        assert set(np.unique(kinds)) <= {BACKGROUNDS.index(item.background), image_encoder.SUBJECT}
        inside = (layout == image_encoder.SUBJECT).reshape(8, 4, 8, 4).mean((1, 3))
        assert ((kinds == image_encoder.SUBJECT) == (inside >= 0.5)).all()
        body = image_encoder.ATTRIBUTES["body"].index(item.subjects[0].identity.body)
        assert (batch.attributes["body"] == body).all()


def test_patches_of_two_subjects_know_their_own() -> None:
    settings = image_encoder.ImageEncoderSettings(recolour=0.0, cut_out=0.0, zoom=0.0, defect=0.0, second=1.0)
    image, item, layout = image_encoder._example(image_encoder.FIRST_SCENE, settings)
    nouns = image_encoder.make_batch([(image, item, layout)]).attributes["noun"]
    wanted = {image_encoder.ATTRIBUTES["noun"].index(placed.identity.noun) for placed in item.subjects}
    assert set(nouns.unique().tolist()) == wanted | {-100}


def test_cut_out_is_centred_on_white() -> None:
    for index in range(10):
        cut = image_encoder.cut_out_on_white(draw(scene(Split.EVALUATION, FIRST + index)))
        assert cut.shape == (SIZE, SIZE, 3)
        assert (cut[[0, 0, -1, -1], [0, -1, 0, -1]] > 200).all()
        dark = np.argwhere(cut.min(2) < 128)
        assert np.abs((dark.min(0) + dark.max(0)) / 2 - 15.5).max() <= 3


def test_recipes_save_what_loads(tmp_path: Path) -> None:
    for name in ("clip", "heads", "image_encoder"):
        arguments = ["--steps", "2", "--output", str(tmp_path / "zoo"), "--work", str(tmp_path / "work")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(heads, "PICTURES", 40)
            train.main([name, *arguments])
    pixel_values = CLIPImageProcessorPil.from_pretrained(tmp_path / "zoo" / "image_encoder")(
        Image.fromarray(picture()).resize((100, 100)), return_tensors="pt"
    ).pixel_values
    hidden = CLIPVisionModel.from_pretrained(tmp_path / "zoo" / "image_encoder")(
        pixel_values, output_hidden_states=True
    ).hidden_states
    assert [state.shape for state in hidden] == [(1, 65, image_encoder.WIDTH)] * 5
    model = CLIPModel.from_pretrained(tmp_path / "zoo" / "clip")
    assert model.config.projection_dim == model.config.text_config.projection_dim == 64
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "zoo" / "clip")
    assert all(len(tokenizer(word).input_ids) == 3 for word in WORDS)
    tensors = load_file(tmp_path / "zoo" / "heads" / "heads.safetensors")
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        f"{head}.{part}": shape for head in heads.NAMES for part, shape in (("weight", (1, 64)), ("bias", (1,)))
    }


def test_heads_without_clip_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train clip first"):
        heads.train(tmp_path / "heads", tmp_path / "work")


def test_data_order_does_not_depend_on_where_training_resumes() -> None:
    settings = clip.ClipSettings(steps=3, batch_size=4)
    straight, resumed = list(clip._batches(settings, 0))[2], next(clip._batches(settings, 2))
    assert (straight[0] == resumed[0]).all()
    assert straight[1] == resumed[1]
    encoder_settings = image_encoder.ImageEncoderSettings(steps=3, batch_size=4)
    one = list(image_encoder._batches(encoder_settings, 0))[2]
    other = next(image_encoder._batches(encoder_settings, 2))
    assert (one.pixel_values == other.pixel_values).all()


@pytest.mark.skipif(not (ZOO / "heads").is_dir(), reason="the heads are not trained yet")
def test_shipped_heads_tell_defects() -> None:
    embeds, wanted = heads.embed_pictures(Path(zoo_path("clip")), FIRST, 200, Split.EVALUATION)
    tensors = load_file(zoo_path("heads") + "/heads.safetensors")
    read = {name: (embeds @ tensors[f"{name}.weight"][0] + tensors[f"{name}.bias"]).numpy() for name in heads.NAMES}
    truth = dict(zip(heads.NAMES, wanted.numpy().T, strict=True))
    for name in ("nsfw", "watermark"):
        assert ((read[name] > 0) == (truth[name] > 0.5)).mean() > 0.9
    assert np.corrcoef(read["aesthetic"], truth["aesthetic"])[0, 1] > 0.7


@pytest.mark.skipif(not (ZOO / "image_encoder").is_dir(), reason="the image encoder is not trained yet")
def test_shipped_image_encoder_carries_the_identity_in_every_patch() -> None:
    """A fresh linear reading of single background patches tells both colours of subjects that nobody was trained on."""
    train_on, test_on = (_tokens_of(Split.ZOO, 600), _tokens_of(Split.EVALUATION, 200))
    for name, floor in (("body", 0.8), ("second", 0.75), ("pattern", 0.8)):
        weight = torch.linalg.lstsq(
            torch.cat([train_on[0], torch.ones(len(train_on[0]), 1)], 1),
            torch.nn.functional.one_hot(train_on[1][name]).float(),
        ).solution
        read = torch.cat([test_on[0], torch.ones(len(test_on[0]), 1)], 1) @ weight
        assert (read.argmax(1) == test_on[1][name]).float().mean() > floor, name


def _tokens_of(split: Split, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One corner patch's token of each picture (N, WIDTH), and the attributes of its subject."""
    scenes = [scene(split, FIRST + i) for i in range(count)]
    batch = image_encoder.make_batch([(draw(item).image, item, np.zeros((SIZE, SIZE), int)) for item in scenes])
    with torch.inference_mode():
        model = CLIPVisionModel.from_pretrained(zoo_path("image_encoder"))
        tokens = model(batch.pixel_values, output_hidden_states=True).hidden_states[-2][:, 1].clone()
    return tokens, {name: values[:, 0] for name, values in batch.attributes.items()}

"""The recipes of detector, segmenter and captioner at their smallest, and the shipped weights where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from realcustom.pipeline import recipes, zoo
from realcustom.preprocessing.settings import CaptionSettings, PreprocessSettings, SubjectsSettings
from realcustom.sprites import ZOO, blip, grounding_dino, sam
from realcustom.sprites.bert import BOS, FIXED, make_bert_tokenizer
from realcustom.sprites.inspect_zoo import inspect_captioner, inspect_detector, inspect_segmenter
from realcustom.sprites.resume import Checkpoint
from realcustom.sprites.text import WORDS
from realcustom.sprites.world import SIZE, TEMPLATES, Split, draw, random_for, scene

SHIPPED = all((ZOO / name).exists() for name in ("grounding_dino", "sam", "blip"))


def test_tokenizer_knows_words_whole_and_berts_ids() -> None:
    tokenizer = make_bert_tokenizer()
    assert [tokenizer.tokenize(word) for word in WORDS] == [[word] for word in WORDS]
    assert tokenizer("A star. ?").input_ids == [101, *tokenizer.convert_tokens_to_ids(["a", "star", "."]), 1029, 102]
    assert tokenizer.tokenize("zebra") == ["z", "##e", "##b", "##r", "##a"]
    assert tokenizer.convert_tokens_to_ids(BOS) == FIXED[BOS]
    assert tokenizer.pad_token_id == 0


def test_prompt_names_phrase_of_each_box() -> None:
    tokenizer = make_bert_tokenizer()
    for number in range(20):
        item = scene(Split.EVALUATION, number, second=0.5)
        drawing = draw(item)
        prompt = grounding_dino.make_prompt(item, drawing, random_for(Split.EVALUATION, number, 2))
        batch = grounding_dino.make_batch(tokenizer, [drawing], [prompt])
        assert prompt.text.endswith(".")
        named = [placed for placed in item.subjects if placed.identity.noun in prompt.text.replace(".", "").split()]
        assert int(batch.exists.sum()) == len(named)
        for place, placed in enumerate(named):
            words = tokenizer.decode(batch.input_ids[0][batch.tokens[0, place].bool()])
            assert words.split()[-1] == placed.identity.noun
            box = drawing.boxes[item.subjects.index(placed)]
            centre, side = batch.boxes[0, place, :2], batch.boxes[0, place, 2:]
            np.testing.assert_allclose(SIZE * torch.cat([centre - side / 2, centre + side / 2]), box, atol=1e-4)


def test_matching_gives_two_boxes_two_queries() -> None:
    costs = torch.tensor([[[0.0, 0.0], [5.0, 1.0], [9.0, 9.0]]])  # both boxes want query 0
    both, one = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    assert grounding_dino.match(costs, both).tolist() == [[0, 1]]
    assert grounding_dino.match(costs, one)[0, 0] == 0


def test_generalized_iou() -> None:
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    apart = torch.tensor([0.9, 0.5, 0.2, 0.2])
    assert float(grounding_dino.generalized_iou(box, box)) == pytest.approx(1.0)
    assert float(grounding_dino.generalized_iou(box, apart)) == pytest.approx(-1 / 3, abs=1e-5)  # a gap as wide as both


def test_segmentation_loss_measures_iou() -> None:
    masks = torch.zeros(1, SIZE, SIZE)
    masks[:, :16] = 1
    logits = torch.full((1, SIZE, SIZE), -9.0)
    logits[:, :8] = 9
    _, score_loss, iou = sam.segmentation_loss(logits, torch.tensor([0.5]), masks)
    assert float(iou) == pytest.approx(0.5)
    assert float(score_loss) == pytest.approx(0.0)


def test_jittered_boxes_stay_in_picture() -> None:
    settings = sam.SegmenterSettings()
    for number in range(50):
        x0, y0, x1, y1 = sam.jitter_box((0, 14, 18, 32), random_for(Split.EVALUATION, number), settings)
        assert 0 <= x0 < x1 <= SIZE
        assert 0 <= y0 < y1 <= SIZE


def test_canonical_caption_depends_on_scene_alone() -> None:
    item = next(s for s in (scene(Split.EVALUATION, i, second=1.0) for i in range(99)) if s.template != TEMPLATES[0])
    caption = blip.canonical_caption(item)
    assert caption.startswith("a ")
    assert caption.endswith(f"on {item.background}")
    assert all(placed.identity.noun in caption for placed in item.subjects)


@pytest.mark.parametrize("name", ["grounding_dino", "sam", "blip"])
def test_recipe_saves_what_loads(name: str, tmp_path: Path) -> None:
    recipe = {"grounding_dino": grounding_dino, "sam": sam, "blip": blip}[name]
    recipe.train(tmp_path / "model", tmp_path / "work", steps=2)
    image, box = Image.fromarray(draw(scene(Split.EVALUATION, 0)).image), (2.0, 2.0, 20.0, 20.0)
    model = str(tmp_path / "model")
    if name == "grounding_dino":
        subjects = SubjectsSettings(detector=model, segmenter=model, min_detection_score=0.0)
        ((*boxes,),) = zoo.detector(PreprocessSettings(subjects=subjects))([image], ["star"])
        assert len(boxes) == grounding_dino.QUERIES
    elif name == "sam":
        subjects = SubjectsSettings(detector=model, segmenter=model)
        ((mask, score),) = zoo.segmenter(PreprocessSettings(subjects=subjects))([image], [box])
        assert mask.shape == (SIZE, SIZE)
        assert mask.dtype == bool
        assert np.isfinite(score)
    else:
        assert len(zoo.captioner(PreprocessSettings(caption=CaptionSettings(model=model)))([image, image])) == 2


def test_recipe_resumes_as_if_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = blip.CaptionerSettings(steps=3, batch_size=4)
    monkeypatch.setattr(blip, "CaptionerSettings", lambda steps: settings)
    blip.train(tmp_path / "straight", tmp_path / "one", steps=3)
    saved = Checkpoint.step

    def stop(self: Checkpoint, step: int, every: int, **values: float) -> None:
        saved(self, step, 1, **values)
        if step == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        blip.train(tmp_path / "resumed", tmp_path / "two", steps=3)
    blip.train(tmp_path / "resumed", tmp_path / "two", steps=3)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "resumed")]
    assert files[0] == files[1]


@pytest.mark.skipif(not SHIPPED, reason="the zoo is not trained yet")
def test_shipped_weights_do_their_work() -> None:
    scenes = [scene(Split.EVALUATION, 2 * 10**9 + number) for number in range(48)]
    drawings = [draw(item) for item in scenes]
    settings = recipes.sprites().preprocess
    found = inspect_detector(zoo.detector(settings), scenes, drawings)
    assert found["detection_recall"] > 0.5
    assert found["detection_precision"] > 0.5
    assert inspect_segmenter(zoo.segmenter(settings), scenes, drawings)["mask_iou"] > 0.6
    captions = inspect_captioner(zoo.captioner(settings), scenes, drawings)
    assert captions["caption_background"] > 0.8
    assert captions["caption_noun"] > 0.5

"""Every metric against a computation of its own on a few pictures; what each convention changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, Dinov2Config, Dinov2Model
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from realcustom.errors import UsageError
from realcustom.evaluation import metrics
from realcustom.evaluation.embedding import Clip, Dino
from realcustom.evaluation.metrics import Embedder, Judged, Metric, Missing
from realcustom.evaluation.settings import MetricModels
from realcustom.evaluation.suite import Photo, Photos, Suite
from realcustom.evaluation.views import GREY, Seen, View, Views
from realcustom.reference import cut_out
from realcustom.sprites import ZOO
from realcustom.store import Store
from tests.support.suites import DrawnSuite, write_suite
from tests.support.tiny_models import clip

STORE = Store()
SIDE = 32


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A DINOv2 with a processor that crops."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dino")
    config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=8)
    Dinov2Model(config).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    BitImageProcessorPil(size={"shortest_edge": 40}, crop_size=size).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> DrawnSuite:
    return write_suite(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def suite(drawn: DrawnSuite) -> Suite:
    return drawn.read()


def five(suite: Suite) -> list[Judged]:
    """Real pictures of other subjects as five images: of two prompts of a subject, twice, and of another subject."""
    own = [case for case in suite.cases if case.subject == suite.cases[0].subject]
    other = next(case for case in suite.cases if case.subject != own[0].subject)
    photos = [photo for photo in suite.photos().values() if "00.png" not in photo.uri]
    cases = [own[0], own[1], own[2], own[3], other]
    return [Judged(method="a", case=case, photo=photo) for case, photo in zip(cases, photos, strict=False)]


def embedder(model: str, output: Path, *, is_clip: bool = False, view_of: Photos | None = None) -> Embedder:
    photos = view_of or Photos(STORE)
    return Embedder(model, is_clip, str(output), Views(str(output), photos, None, STORE), "cpu", STORE)


def unit(vector: torch.Tensor) -> np.ndarray:
    values: np.ndarray = vector.detach().double().numpy()
    return np.asarray(values / np.linalg.norm(values))


def clip_by_hand(folder: str, pictures: list[Image.Image], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """CLIP's whole forward, one picture and text at a time."""
    model = CLIPModel.from_pretrained(folder).eval()
    processor, tokenizer = CLIPImageProcessorPil.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    with torch.no_grad():
        for picture, text in zip(pictures, texts, strict=True):
            tokens = tokenizer([text], truncation=True, max_length=16, return_tensors="pt")
            output = model(**tokens, pixel_values=processor(picture, return_tensors="pt").pixel_values)
            found.append((unit(output.image_embeds[0]), unit(output.text_embeds[0])))
    return np.stack([a for a, _ in found]), np.stack([b for _, b in found])


def dino_by_hand(folder: str, picture: Image.Image) -> np.ndarray:
    """Scaled, cut and normalised without the processor; the class token."""
    model = Dinov2Model.from_pretrained(folder).eval()
    scaled = picture.resize((40, 40), Image.Resampling.BICUBIC).crop((4, 4, 36, 36))
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = torch.tensor((np.asarray(scaled) / 255.0 - mean) / std, dtype=torch.float32).permute(2, 0, 1)
    with torch.no_grad():
        return unit(model(pixel_values=pixels[None]).pooler_output[0])


def opened(photo: Photo) -> Image.Image:
    with Image.open(photo.uri) as image:
        return image.convert("RGB")


def test_clip_t_and_clip_i(clip_folder: str, suite: Suite, tmp_path: Path) -> None:
    images = five(suite)
    embed = embedder(clip_folder, tmp_path, is_clip=True)
    vectors, texts = clip_by_hand(
        clip_folder, [opened(one.photo) for one in images], [one.case.prompt for one in images]
    )
    expected = (vectors * texts).sum(1)
    assert metrics.text_similarity(embed, images) == pytest.approx(expected, abs=1e-5)
    expected = [
        np.mean(
            [vector @ clip_by_hand(clip_folder, [opened(photo)], [""])[0][0] for photo in one.case.references[0].photos]
        )
        for vector, one in zip(vectors, images, strict=True)
    ]
    assert metrics.picture_similarity(embed, images, View.WHOLE) == pytest.approx(expected, abs=1e-5)


def test_dino_i(dino_folder: str, suite: Suite, tmp_path: Path) -> None:
    images = five(suite)
    found = metrics.picture_similarity(embedder(dino_folder, tmp_path), images, View.WHOLE)
    expected = [
        np.mean(
            [
                dino_by_hand(dino_folder, opened(one.photo)) @ dino_by_hand(dino_folder, opened(photo))
                for photo in one.case.references[0].photos
            ]
        )
        for one in images
    ]
    assert found == pytest.approx(expected, abs=1e-5)
    assert Dino(dino_folder, "cpu").preprocessing == "shortest side 40, bicubic, centre 32 x 32"


def test_segmented_means_cut_out_on_both_sides(dino_folder: str, suite: Suite, tmp_path: Path) -> None:
    [image, *_] = five(suite)
    photos = Photos(STORE)
    embed = embedder(dino_folder, tmp_path, view_of=photos)

    def cut(photo: Photo) -> np.ndarray:
        mask = photos.mask(photo)
        assert mask is not None
        return dino_by_hand_any(dino_folder, cut_out(opened(photo), mask))

    [found] = metrics.picture_similarity(embed, [image], View.SUBJECT)
    expected = np.mean([cut(image.photo) @ cut(photo) for photo in image.case.references[0].photos])
    assert found == pytest.approx(expected, abs=1e-5)
    [whole] = metrics.picture_similarity(embed, [image], View.WHOLE)
    assert isinstance(found, float) and isinstance(whole, float) and abs(found - whole) > 1e-4


def dino_by_hand_any(folder: str, picture: Image.Image) -> np.ndarray:
    """Of a picture of any shape: by the processor, which `test_dino_i` holds against a computation of its own."""
    return np.asarray(Dino(folder, "cpu").pictures([picture])[0])


def test_no_subject_is_no_similarity(dino_folder: str, suite: Suite, tmp_path: Path) -> None:
    [image, *_] = five(suite)
    Image.new("L", (SIDE, SIDE)).save(tmp_path / "none.mask.png")
    lost = replace(image, photo=replace(image.photo, mask=str(tmp_path / "none.mask.png")))
    assert metrics.picture_similarity(embedder(dino_folder, tmp_path), [lost], View.SUBJECT) == [0.0]


def test_the_background_view_greys_the_subject(suite: Suite, tmp_path: Path) -> None:
    photos = Photos(STORE)
    photo = suite.cases[0].references[0].given
    view = Views(str(tmp_path), photos, None, STORE).picture(Seen(photo=photo, view=View.BACKGROUND))
    mask, pixels = photos.mask(photo), np.asarray(view)
    assert mask is not None and (pixels[mask] == GREY).all()
    assert (pixels[~mask] == np.asarray(opened(photo))[~mask]).all()


def test_without_a_mask_or_a_segmenter_it_is_said(suite: Suite, tmp_path: Path) -> None:
    bare = Seen(photo=replace(suite.cases[0].references[0].given, mask=None), view=View.SUBJECT)
    with pytest.raises(UsageError, match="has no mask, and there is no segmenter"):
        Views(str(tmp_path), Photos(STORE), None, STORE).key(bare)


class LeftHalf:
    """A segmenter."""

    identity = "the left half"
    calls = 0

    def __call__(self, pictures: list[Image.Image], words: list[str]) -> list[np.ndarray]:
        self.calls += 1
        return [np.indices((picture.height, picture.width))[1] < picture.width // 2 for picture in pictures]


def test_a_segmenters_masks_are_kept(suite: Suite, tmp_path: Path) -> None:
    segmenter = LeftHalf()
    seen = Seen(photo=replace(suite.cases[0].references[0].given, mask=None), word="star", view=View.SUBJECT)
    for _ in range(2):
        views = Views(str(tmp_path), Photos(STORE), segmenter, STORE)  # type: ignore[arg-type]
        mask = views.mask(seen)
        assert mask[:, : SIDE // 2].all() and not mask[:, SIDE // 2 :].any()
    assert segmenter.calls == 1


def test_diversity_by_hand(dino_folder: str, suite: Suite, tmp_path: Path) -> None:
    images = five(suite)
    a, b, c, d, _ = (dino_by_hand(dino_folder, opened(one.photo)) for one in images)
    found = metrics.diversity(embedder(dino_folder, tmp_path), images)
    assert found[:4] == pytest.approx([1 - a @ b, 1 - a @ b, 1 - c @ d, 1 - c @ d], abs=1e-5)
    assert found[4] is None  # the only image of its prompt
    corner = np.eye(3)[[0, 1, 0]]
    assert metrics.mean_distances(corner) == [0.5, 1.0, 0.5]


def test_copying_by_hand(dino_folder: str, suite: Suite, tmp_path: Path) -> None:
    [image, *_] = five(suite)
    given, *others = image.case.references[0].photos
    own = dino_by_hand(dino_folder, opened(image.photo))
    expected = own @ dino_by_hand(dino_folder, opened(given)) - np.mean(
        [own @ dino_by_hand(dino_folder, opened(other)) for other in others]
    )
    assert metrics.copying(embedder(dino_folder, tmp_path), [image]) == pytest.approx([expected], abs=1e-5)


def test_leak_by_hand(dino_folder: str, suite: Suite, tmp_path: Path) -> None:
    images, photos = five(suite), Photos(STORE)
    views = Views(str(tmp_path), photos, None, STORE)

    def background(photo: Photo) -> np.ndarray:
        picture = views.picture(Seen(photo=photo, view=View.BACKGROUND))
        assert picture is not None
        return dino_by_hand(dino_folder, picture)

    own, other = images[0].case.references[0].given, images[4].case.references[0].given
    vector = background(images[0].photo)
    found = metrics.leak(embedder(dino_folder, tmp_path, view_of=photos), images)
    assert found[0] == pytest.approx(vector @ background(own) - vector @ background(other), abs=1e-5)


def test_company_changes_no_vector(dino_folder: str, suite: Suite) -> None:
    pictures = [opened(one.photo) for one in five(suite)]
    model = Dino(dino_folder, "cpu")
    together = model.pictures([*pictures, *pictures, *pictures, *pictures])  # 20: more than one batch
    assert (together[:5] == np.stack([model.pictures([picture])[0] for picture in pictures])).all()
    assert (together[15:] == together[:5]).all()


def test_nothing_is_computed_twice(dino_folder: str, suite: Suite, tmp_path: Path) -> None:
    images = five(suite)
    first = metrics.picture_similarity(embedder(dino_folder, tmp_path), images, View.WHOLE)
    again = embedder(dino_folder, tmp_path)
    assert metrics.picture_similarity(again, images[::-1], View.WHOLE) == first[::-1]
    metrics.diversity(again, images)
    assert again._model is None  # it was not even loaded


def test_the_names_of_metrics() -> None:
    models = MetricModels(b32=str(ZOO / "clip"))
    assert metrics.parse("clip_t@b32", models) == ("clip_t", str(ZOO / "clip"), "clip_t@b32")
    assert metrics.parse(f"dino_i@{ZOO / 'image_encoder'}", models)[2] == "dino_i@image_encoder"
    for name in ("clip_t", "lpips@b32", "clip_t@"):
        with pytest.raises(UsageError, match=r"there are clip_t, .*each with @MODEL"):
            metrics.parse(name, models)
    with pytest.raises(UsageError, match="no model folder at /nowhere"):
        metrics.parse("clip_t@/nowhere", models)


def test_a_value_that_is_no_number_is_refused_and_a_missing_one_is_not_zero(suite: Suite) -> None:
    images = five(suite)[:3]
    with pytest.raises(UsageError, match="the metric broken is nan for"):
        Metric(name="broken", convention="", compute=lambda asked: [0.5, float("nan"), 0.5]).measure(images)
    found = Metric(name="some", convention="", compute=lambda asked: [0.5, Missing.MISSING, None]).measure(images)
    assert [one.value for one in found] == [0.5, None]


def test_the_processor_in_words(clip_folder: str) -> None:
    assert Clip(clip_folder, "cpu").preprocessing == "shortest side 32, bicubic, centre 32 x 32"

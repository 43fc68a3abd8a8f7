"""The stages that run models, on tiny random ones of the classes that production uses."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from realcustom.base import encode_pixels, encode_prompts
from realcustom.base_loading import load_base
from realcustom.cells import decode_mask, encode_mask
from realcustom.dtype import Dtype
from realcustom.image_encoder import load_image_encoder
from realcustom.pixels import cut_share, subject_crop
from realcustom.preprocessing.catalogue import CAPTION, CHAIN, ENCODE, SUBJECTS
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.score.clip import load_heads
from realcustom.preprocessing.settings import (
    CaptionPolicy,
    CaptionSettings,
    EncodeSettings,
    PreprocessSettings,
    ScoreSettings,
    SelectSettings,
    SubjectsSettings,
)
from realcustom.preprocessing.subjects.detector import box_iou
from realcustom.preprocessing.subjects.segmenter import border_contact
from realcustom.record import SCHEMA, check_schema, record_uid
from realcustom.reference import prepare_reference
from realcustom.settings import ImageEncoderSettings, MethodSettings, Reference
from tests.support import tiny_models
from tests.support.corpora import jpeg, picture, png, sample, snapshot, tar_bytes
from tests.support.tiny import tiny_base, tiny_image_encoder, tiny_pp_settings, tiny_siglip_dino

SQUARE = (32, 32)
ANY = {"min_detection_score": 0.0, "min_segmentation_score": -1e9, "min_area": 0.0, "max_area": 1.0}
ANY |= {"min_box_mask_iou": 0.0, "min_box_side": 1, "max_box_overlap": 1.0, "max_mask_overlap": 1.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> PreprocessSettings:
    root = tmp_path_factory.mktemp("models")
    return PreprocessSettings(
        score=ScoreSettings(
            clip=tiny_models.clip(root / "clip"), heads=tiny_models.heads(root / "heads"), batch_size=3
        ),
        select=SelectSettings(min_side=16),
        caption=CaptionSettings(model=tiny_models.blip(root / "blip"), nouns=("toy",), batch_size=4, max_new_tokens=5),
        subjects=SubjectsSettings(
            detector=tiny_models.grounding_dino(root / "dino"),
            segmenter=tiny_models.sam(root / "sam"),
            batch_size=2,
            max_per_word=2,
            **ANY,  # type: ignore[arg-type]
        ),
        encode=EncodeSettings(
            base=tiny_base(root / "base"),
            image_encoder=tiny_image_encoder(root / "encoder"),
            resolution=32,
            dtype=Dtype.BFLOAT16,
            batch_size=4,
        ),
    )


@pytest.fixture(scope="module")
def stages(models: PreprocessSettings, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A corpus of two shards through all six stages: results by stage's name."""
    root = tmp_path_factory.mktemp("run")
    first: dict[str, bytes] = {}
    for number in range(5):
        group = "views" if number < 2 else None
        caption = ["a toy on grass", "the Toy", "", "no such noun", "toys"][number]
        first |= sample(str(number), jpeg(picture(number, (48 + 7 * number, 40))), caption, group)
    (root / "src").mkdir()
    (root / "src/a.tar").write_bytes(tar_bytes(first))
    (root / "src/b.tar").write_bytes(tar_bytes(sample("x", jpeg(picture(50)), "a toy", "views")))
    return SimpleNamespace(root=root, **run_all(root / "src", root / "out", models))


def run_all(source: Path, output: Path, settings: PreprocessSettings) -> dict[str, StageResult]:
    results: dict[str, StageResult] = {}
    directory = str(source)
    for stage in CHAIN:
        results[stage.name] = run_stage(
            stage, directory, str(output), settings, method=MethodSettings(), executor=InProcess()
        )
        directory = results[stage.name].directory
    return results


def rows_of(result: StageResult, unit: str = "a") -> pa.Table:
    return pq.read_table(Path(result.directory) / f"{unit}.parquet")


def test_every_account_closes(stages: SimpleNamespace) -> None:
    for stage in CHAIN:
        report = getattr(stages, stage.name).report
        dropped, quarantined = sum(report["dropped"].values()), sum(report["quarantined"].values())
        assert report["in"] == report["kept"] + dropped + quarantined, stage
    assert stages.ingest.report["in"] == 6


def test_runs_are_byte_identical(stages: SimpleNamespace, models: PreprocessSettings, tmp_path: Path) -> None:
    again = run_all(stages.root / "src", tmp_path, models)
    for name, result in again.items():
        assert Path(result.directory).name == Path(getattr(stages, name).directory).name
        assert snapshot(result.directory) == snapshot(getattr(stages, name).directory), name


def test_scores(stages: SimpleNamespace, models: PreprocessSettings) -> None:
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    table = rows_of(stages.score)
    assert table.schema.field("scores").metadata[b"clip"].startswith(b"clip@sha256-")
    model = CLIPModel.from_pretrained(models.score.clip).eval()
    processor = CLIPImageProcessorPil.from_pretrained(models.score.clip)
    tokenizer = AutoTokenizer.from_pretrained(models.score.clip)
    heads = load_heads(str(models.score.heads), 16)
    for row in table.to_pylist():
        image = Image.open(io.BytesIO(row["image"]))
        text = tokenizer([row["alt_text"] or ""], padding="max_length", max_length=16, return_tensors="pt")
        with torch.no_grad():
            output = model(**text, pixel_values=processor(image, return_tensors="pt").pixel_values)
        embed = torch.nn.functional.normalize(output.image_embeds, dim=-1)[0]
        aesthetic = float(embed @ torch.tensor(heads["aesthetic"][0]).float() + heads["aesthetic"][1])
        nsfw = torch.sigmoid(embed @ torch.tensor(heads["nsfw"][0]).float() + heads["nsfw"][1])
        assert row["scores"]["aesthetic"] == pytest.approx(aesthetic, abs=1e-5)
        assert row["scores"]["nsfw"] == pytest.approx(float(nsfw), abs=1e-5)
        if row["alt_text"]:
            cosine = float(output.image_embeds[0] @ output.text_embeds[0])
            assert row["scores"]["image_text"] == pytest.approx(cosine, abs=1e-5)
        else:
            assert row["scores"]["image_text"] is None
        assert row["scores"]["detection"] is None and row["scores"]["sharpness"] > 0


def test_captions(stages: SimpleNamespace) -> None:
    table = rows_of(stages.caption)
    assert table.schema.field("synthetic_caption").metadata[b"model"].startswith(b"blip@sha256-")
    by_key = {row["key"]: row for row in table.to_pylist()}
    first, second = by_key["a.tar/0.jpg"], by_key["a.tar/1.jpg"]
    assert (first["caption"], first["caption_source"]) == ("a toy on grass", "alt_text")
    assert second["targets"] == [{"word": "Toy", "start": 4, "end": 7}]
    assert all(row["synthetic_caption"] is not None for row in table.to_pylist())
    for row in table.to_pylist():
        for target in row["targets"]:
            assert row["caption"][target["start"] : target["end"]] == target["word"]
    report = stages.caption.report
    assert report["dropped"] == {"no_target_word": report["in"] - report["kept"]}


def test_an_empty_caption_is_kept_and_captioned(
    stages: SimpleNamespace, models: PreprocessSettings, tmp_path: Path
) -> None:
    selected = rows_of(stages.select).to_pylist()
    assert [row["alt_text"] for row in selected if row["key"] == "a.tar/2.jpg"] == [""]
    words = tuple("abcdefghijklmnopqrstuvwxyz") + ("toy", "car", "grass", "red", "blue", "ball", "left", "right", "on")
    policy = CaptionPolicy.SYNTHETIC
    any_word = replace(models, caption=replace(models.caption, nouns=words, caption_policy=policy, max_new_tokens=20))
    result = run_stage(CAPTION, stages.select.directory, str(tmp_path), any_word, executor=InProcess())
    row = next(row for row in rows_of(result).to_pylist() if row["key"] == "a.tar/2.jpg")
    assert row["caption_source"] == "synthetic" and row["caption"] == row["synthetic_caption"] != ""


def test_subjects_are_records(stages: SimpleNamespace) -> None:
    table = rows_of(stages.subjects)
    check_schema(table.schema)
    assert table.schema.names == SCHEMA.names and table.num_rows > stages.subjects.report["kept"] - 1
    for row in table.to_pylist():
        mask = coco.decode(row["subject_mask"]).astype(bool)
        assert mask.shape == (row["height"], row["width"]) and mask.any()
        x0, y0, x1, y1 = row["subject_box"]
        assert 0 <= x0 < x1 <= row["width"] and 0 <= y0 < y1 <= row["height"]
        crop = np.asarray(Image.open(io.BytesIO(row["subject_image"])))
        columns, lines = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        assert crop.shape[0] >= np.ptp(lines) + 1 and crop.shape[1] >= np.ptp(columns) + 1
        assert row["caption"][row["target_start"] : row["target_end"]] == row["target_word"]
        assert row["scores"]["detection"] is not None and row["scores"]["aesthetic"] is not None
    rejected = stages.subjects.report["rejected"]
    candidates = 6 * stages.subjects.report["in"]  # queries of the tiny detector
    assert sum(rejected.values()) + stages.subjects.report["rows_out"] == candidates


def test_views_of_a_group_name_each_other_within_the_unit(stages: SimpleNamespace) -> None:
    rows = rows_of(stages.subjects).to_pylist()
    parents = {row["uid"]: row["parent_uid"] for row in rows}
    grouped = [row for row in rows if row["view_uids"]]
    assert grouped
    for row in grouped:
        assert all(parents[uid] != row["parent_uid"] for uid in row["view_uids"])
        assert all(row["uid"] in next(r for r in rows if r["uid"] == uid)["view_uids"] for uid in row["view_uids"])
    for row in rows:
        siblings = [r["uid"] for r in rows if r["parent_uid"] == row["parent_uid"]]
        assert row["uid"] == record_uid(row["parent_uid"], "toy", siblings.index(row["uid"]))


def test_a_picture_without_a_subject_is_dropped_with_the_reason(
    stages: SimpleNamespace, models: PreprocessSettings, tmp_path: Path
) -> None:
    for changes, reason in (
        ({"min_detection_score": 1.1}, "no_detection"),
        ({"min_area": 1.1}, "all_candidates_rejected"),
    ):
        settings = replace(models, subjects=replace(models.subjects, **changes))  # type: ignore[arg-type]
        report = run_stage(SUBJECTS, stages.caption.directory, str(tmp_path), settings, executor=InProcess()).report
        assert report["dropped"] == {reason: report["in"]} and report["rows_out"] == 0
        empty = run_stage(
            ENCODE, settings=models, method=MethodSettings(), executor=InProcess(), output=str(tmp_path),
            input=next(str(path) for path in tmp_path.glob("subjects@*")),
        )  # fmt: skip
        assert empty.report["in"] == 0
        check_schema(rows_of(empty).schema)


def tensor(cell: dict[str, Any]) -> torch.Tensor:
    return torch.frombuffer(bytearray(cell["data"]), dtype=torch.bfloat16).reshape(cell["shape"])


def test_caches_are_what_training_would_compute(stages: SimpleNamespace, models: PreprocessSettings) -> None:
    table = rows_of(stages.encode)
    check_schema(table.schema)
    base = load_base(str(models.encode.base))
    encoder = load_image_encoder(str(models.encode.image_encoder), MethodSettings().image_encoder)
    assert table.schema.field("latents").metadata[b"model"].decode() == base.identity
    assert table.schema.field("image_features").metadata[b"model"].decode() == encoder.identity
    assert table.schema.field("subject_box").metadata[b"model"].startswith(b"dino@")  # carried on
    for row in table.to_pylist():
        image = Image.open(io.BytesIO(row["image"])).convert("RGB")
        expected = {
            "latents": encode_pixels(base, subject_crop(image, decode_mask(row["subject_mask"]), SQUARE)[None])[0],
            "text_features": encode_prompts(base, [row["caption"]]).hidden[0],
            "image_features": encoder.encode(
                encoder.prepare(prepare_reference(image, None, MethodSettings().image_encoder))[None]
            )[0],
        }
        for name, values in expected.items():
            torch.testing.assert_close(tensor(row[name]), values.bfloat16(), atol=0.02, rtol=0.02)


def test_the_square_that_is_encoded_shows_the_subject(
    stages: SimpleNamespace, models: PreprocessSettings, tmp_path: Path
) -> None:
    table = rows_of(stages.subjects).slice(0, 1)
    rows = []
    for number, (width, box) in enumerate([(96, (4, 6, 24, 26)), (96, (70, 6, 90, 26)), (200, (0, 6, 200, 26))]):
        mask = np.zeros((32, width), dtype=bool)
        mask[box[1] : box[3], box[0] : box[2]] = True
        image = Image.fromarray(np.where(mask[..., None], np.array([200, 30, 40], np.uint8), np.uint8(128)))
        rows.append(
            {**table.to_pylist()[0], "uid": f"{number:032x}", "image": png(image), "width": width, "height": 32}
        )
        rows[-1] |= {"subject_mask": encode_mask(mask), "subject_box": list(map(float, box))}
    (tmp_path / "src").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "src/records.parquet")
    only = replace(models, encode=replace(models.encode, text_features=False, image_features=False, resolution=32))
    result = run_stage(
        ENCODE, str(tmp_path / "src"), str(tmp_path), only, method=MethodSettings(), executor=InProcess()
    )
    assert result.report["dropped"] == {"cut_subject": 1} and result.report["kept"] == 2
    base = load_base(str(models.encode.base))
    middle = encode_pixels(base, subject_crop(Image.new("RGB", (32, 32), (128, 128, 128)), None, SQUARE)[None])[0]
    for row in rows_of(result, "records").to_pylist():
        assert not torch.allclose(tensor(row["latents"]), middle.bfloat16(), atol=0.02)


@pytest.mark.parametrize("size", [(96, 32), (32, 96), (97, 33), (64, 64)])
def test_the_square_moves_as_little_as_it_takes(size: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    mask = np.zeros((size[1], size[0]), dtype=bool)
    middle = (size[1] // 2, size[0] // 2)
    mask[middle[0] - 3 : middle[0] + 3, middle[1] - 3 : middle[1] + 3] = True
    centre = subject_crop(image, None, SQUARE)
    torch.testing.assert_close(subject_crop(image, mask, SQUARE), centre, rtol=0, atol=0)
    torch.testing.assert_close(subject_crop(image, ~mask & False, SQUARE), centre, rtol=0, atol=0)
    corner = np.zeros_like(mask)
    corner[:5, :5] = True
    assert cut_share(corner, SQUARE) == cut_share(mask, SQUARE) == 0.0
    assert cut_share(np.ones_like(mask), SQUARE) == pytest.approx(1 - min(size) / max(size))


def test_each_cache_can_be_left_out_and_references_cut_out(
    stages: SimpleNamespace, models: PreprocessSettings, tmp_path: Path
) -> None:
    only_image = replace(models, encode=replace(models.encode, latents=False, text_features=False))
    crop = MethodSettings(image_encoder=ImageEncoderSettings(reference=Reference.CROP))
    results = [
        run_stage(ENCODE, stages.subjects.directory, str(tmp_path), only_image, method=method, executor=InProcess())
        for method in (MethodSettings(), crop)
    ]
    whole, cut = (rows_of(result) for result in results)
    assert whole["latents"].null_count == whole["text_features"].null_count == whole.num_rows
    assert whole["image_features"].null_count == 0
    assert whole["image_features"].to_pylist() != cut["image_features"].to_pylist()
    lean = replace(models, encode=replace(models.encode, image_features=False, keep_image=False))
    table = rows_of(
        run_stage(ENCODE, stages.subjects.directory, str(tmp_path), lean, method=crop, executor=InProcess())
    )
    assert table["image"].null_count == table.num_rows and table["latents"].null_count == 0
    with pytest.raises(ValueError, match=r"keep_image=false needs encode\.latents"):
        run_stage(
            ENCODE, stages.subjects.directory, str(tmp_path), executor=InProcess(), method=crop,
            settings=replace(models, encode=replace(models.encode, keep_image=False, latents=False)),
        )  # fmt: skip


def test_two_encoders_side_by_side_are_cached(
    stages: SimpleNamespace, models: PreprocessSettings, tmp_path: Path
) -> None:
    """RealCustom++'s features, and the names of all that they depend on."""
    both, method = tiny_siglip_dino(tmp_path / "siglip_dino"), tiny_pp_settings()
    encode = replace(models.encode, latents=False, text_features=False, image_encoder=both)
    table = rows_of(
        run_stage(
            ENCODE,
            stages.subjects.directory,
            str(tmp_path),
            replace(models, encode=encode),
            method=method,
            executor=InProcess(),
        )
    )
    encoder = load_image_encoder(both, method.image_encoder)
    said = table.schema.field("image_features").metadata
    assert said[b"model"].decode() == encoder.identity and said[b"high_res"] == b"64"
    for row in table.to_pylist():
        image = prepare_reference(Image.open(io.BytesIO(row["image"])).convert("RGB"), None, method.image_encoder)
        values = encoder.encode(encoder.prepare(image)[None])[0]
        torch.testing.assert_close(tensor(row["image_features"]), values.bfloat16(), atol=0.02, rtol=0.02)


def test_heads_that_do_not_fit_are_refused(models: PreprocessSettings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"aesthetic\.weight is \(1, 16\), score\.clip embeds in 32 dimensions"):
        load_heads(str(models.score.heads), 32)
    with pytest.raises(ValueError, match=r"score\.heads: no file at"):
        load_heads(str(tmp_path), 16)


def test_box_iou() -> None:
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0.0 == box_iou((0, 0, 0, 0), (0, 0, 0, 0))


def test_border_contact() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[5:10, 5:15] = True
    assert border_contact(mask) == 0
    assert border_contact(np.roll(mask, -5, axis=0)) == pytest.approx(10 / 30)  # its upper side is cut
    assert border_contact(np.ones((4, 6), dtype=bool)) == 1


def test_subjects_that_the_border_cuts_are_rejected_by_name(
    stages: SimpleNamespace, models: PreprocessSettings, tmp_path: Path
) -> None:
    limited = replace(models, subjects=replace(models.subjects, max_border_contact=0.0))
    result = run_stage(SUBJECTS, stages.caption.directory, str(tmp_path), limited, executor=InProcess())
    before, after = stages.subjects.report, result.report
    lost = after["rejected"].get("border_contact", 0)
    assert lost > 0 and after["rows_out"] == before["rows_out"] - lost
    assert after["in"] == after["kept"] + sum(after["dropped"].values())
    for path in Path(result.directory).glob("*.parquet"):
        for row in pq.read_table(path).to_pylist():
            assert border_contact(coco.decode(row["subject_mask"]).astype(bool)) == 0

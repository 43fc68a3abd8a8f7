"""Pictures of two subjects through the stages, with the small models that ship, against what was drawn."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

from realcustom.pipeline.recipes import sprites
from realcustom.preprocessing.catalogue import CAPTION, INGEST, SUBJECTS
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.settings import PreprocessSettings
from realcustom.preprocessing.subjects.detector import box_iou
from realcustom.sprites import ZOO
from realcustom.sprites.corpus import jpeg_bytes
from realcustom.sprites.world import NOUNS, Drawing, Scene, Split, draw, scene
from tests.support.corpora import sample, tar_bytes

pytestmark = pytest.mark.skipif(not (ZOO / "grounding_dino").exists(), reason="the small models are not there")

SCENES = 16


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Scene, Drawing]]:
    scenes = [scene(Split.EVALUATION, number, second=1.0) for number in range(SCENES)]
    return [(item, draw(item)) for item in scenes]


@pytest.fixture(scope="module")
def settings() -> PreprocessSettings:
    recipe = sprites().preprocess
    return replace(recipe, caption=replace(recipe.caption, model=None, max_words=3))


def captioned(folder: Path, drawings: list[Drawing], captions: list[str], settings: PreprocessSettings) -> StageResult:
    """Through `ingest` and `caption`."""
    members: dict[str, bytes] = {}
    for number, (drawing, caption) in enumerate(zip(drawings, captions, strict=True)):
        members |= sample(f"{number:04}", jpeg_bytes(drawing.image), caption)
    (folder / "source").mkdir()
    (folder / "source/s.tar").write_bytes(tar_bytes(members))
    ingested = run_stage(INGEST, str(folder / "source"), str(folder), settings, executor=InProcess())
    return run_stage(CAPTION, ingested.directory, str(folder), settings, executor=InProcess())


def subjects(
    pictures: StageResult, settings: PreprocessSettings
) -> tuple[StageResult, dict[int, list[dict[str, Any]]]]:
    """`subjects` of what `captioned` gave: its result, and the records of each drawing by its number."""
    result = run_stage(
        SUBJECTS, pictures.directory, str(Path(pictures.directory).parent), settings, executor=InProcess()
    )
    rows = pq.read_table(Path(pictures.directory) / "s.parquet").to_pylist()
    numbers = {row["uid"]: int(row["key"].removeprefix("s.tar/").removesuffix(".jpg")) for row in rows}
    records: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in pq.read_table(Path(result.directory) / "s.parquet").to_pylist():
        records[numbers[row["parent_uid"]]].append(row)
    return result, records


def overlap(first: dict[str, Any], second: dict[str, Any]) -> float:
    """IoU of the masks of two records."""
    masks = [coco.decode(row["subject_mask"]).astype(bool) for row in (first, second)]
    return float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


def test_each_named_subject_is_a_record_with_its_box(
    drawn: list[tuple[Scene, Drawing]], settings: PreprocessSettings, tmp_path: Path
) -> None:
    pictures = captioned(tmp_path, [drawing for _, drawing in drawn], [item.caption for item, _ in drawn], settings)
    result, records = subjects(pictures, settings)
    for number, (item, drawing) in enumerate(drawn):
        truth = {placed.identity.noun: box for placed, box in zip(item.subjects, drawing.boxes, strict=True)}
        rows = records[number]
        assert len({row["target_word"] for row in rows}) == len(rows)
        assert all(box_iou(row["subject_box"], truth[row["target_word"]]) > 0.7 for row in rows)
    report = result.report
    queries = json.loads((ZOO / "grounding_dino/config.json").read_text())["num_queries"]
    assert report["rows_out"] >= 0.9 * 2 * SCENES
    assert report["in"] == report["kept"] + sum(report["dropped"].values()) == SCENES
    assert report["rejected"]["low_detection_score"] > 0
    assert report["rows_out"] + sum(report["rejected"].values()) == queries * 2 * SCENES


def test_of_two_words_for_one_object_the_better_stays(
    drawn: list[tuple[Scene, Drawing]], settings: PreprocessSettings, tmp_path: Path
) -> None:
    """A noun that is not in the picture claims what is, at a threshold that lets it."""
    drawn = drawn[:12]
    nouns = [{placed.identity.noun for placed in item.subjects} for item, _ in drawn]
    captions = [f"a {min(set(NOUNS) - present)} and a {min(present)}" for present in nouns]
    pictures = captioned(tmp_path, [drawing for _, drawing in drawn], captions, settings)
    low = replace(settings.subjects, min_detection_score=0.02)
    result, records = subjects(pictures, replace(settings, subjects=low))
    _, both = subjects(pictures, replace(settings, subjects=replace(low, max_mask_overlap=1.0)))
    lost = 0
    for number, present in enumerate(nouns):
        rows, uids = records[number], {row["uid"] for row in records[number]}
        assert all(overlap(*pair) <= low.max_mask_overlap for pair in itertools.combinations(rows, 2))
        for row in both[number]:
            if row["uid"] not in uids:
                lost += 1
                assert row["target_word"] not in present
                assert any(
                    overlap(row, kept) > low.max_mask_overlap
                    and row["scores"]["detection"] <= kept["scores"]["detection"]
                    for kept in rows
                )
    assert lost == result.report["rejected"]["overlapping_mask"] > 0

"""Scores by image classification models: the probability of the label that the score is named after."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from realcustom.preprocessing.catalogue import INGEST, SCORE, SELECT
from realcustom.preprocessing.engine.models import Runtime
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.score.classifier import Classifier
from realcustom.preprocessing.settings import ComputeSettings, PreprocessSettings, ScoreSettings, SelectSettings
from tests.support import tiny_models
from tests.support.corpora import picture, write_shards


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("classifier")
    write_shards(root / "src", 1, 5)
    tiny_models.classifier(root / "nsfw", "normal", "NSFW")
    tiny_models.classifier(root / "watermark", "watermark", "clean", "unsure")
    tiny_models.clip(root / "clip")
    tiny_models.heads(root / "heads")
    return root


def rows_of(directory: str) -> pa.Table:
    return pq.read_table(next(Path(directory).glob("*.parquet")))


def run(stage: Stage, source: str, root: Path, select: SelectSettings | None = None, **score: Any) -> str:
    settings = PreprocessSettings(score=ScoreSettings(**score), select=select or SelectSettings())
    return run_stage(stage, source, str(root / "out"), settings, executor=InProcess()).directory


def test_scores_are_the_labels_probabilities_at_any_batch_size(root: Path) -> None:
    from transformers import ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    ingested = run(INGEST, str(root / "src"), root)
    models: dict[str, Any] = {"nsfw": str(root / "nsfw"), "watermark": str(root / "watermark")}
    by_size = [rows_of(run(SCORE, ingested, root, **models, batch_size=size)).to_pylist() for size in (2, 5)]
    assert len(by_size[0]) == 5
    for name, label in (("nsfw", 1), ("watermark", 0)):
        model = ViTForImageClassification.from_pretrained(root / name).eval()
        processor = ViTImageProcessorPil.from_pretrained(root / name)
        for row, other in zip(*by_size, strict=True):
            picture = Image.open(io.BytesIO(row["image"])).convert("RGB")
            with torch.no_grad():
                logits = model(**processor(picture, return_tensors="pt")).logits[0]
            assert row["scores"][name] == pytest.approx(float(logits.softmax(0)[label]), abs=1e-5)
            assert row["scores"][name] == pytest.approx(other["scores"][name], abs=1e-5)
            assert row["scores"]["aesthetic"] is None
    scored = run(SCORE, ingested, root, **models)
    for limit in (0.0, 1.0):
        kept = rows_of(run(SELECT, scored, root, SelectSettings(max_nsfw=limit, min_side=1))).num_rows
        assert kept == (0 if limit == 0 else 5)


def test_multi_label_models_give_each_label_a_probability_of_its_own(root: Path) -> None:
    model = tiny_models.classifier(root / "many", "nsfw", "blurred")
    config = json.loads((root / "many/config.json").read_text())
    (root / "many/config.json").write_text(json.dumps({**config, "problem_type": "multi_label_classification"}))
    pictures = [picture(seed) for seed in range(3)]
    for name, total in ((model, 2), (str(root / "nsfw"), 1)):
        plain = Classifier("nsfw", name, Runtime(ComputeSettings()))
        logits = plain._model(pixel_values=plain._processor(pictures, return_tensors="pt").pixel_values).logits
        expected = logits.sigmoid() if total == 2 else logits.softmax(-1)
        found = [scores["nsfw"] for scores in plain([plain.prepare(one) for one in pictures], [None] * 3, 3)]
        assert found == pytest.approx(expected[:, plain._label].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("labels", "size", "message"),
    [
        (("nsfw",), {"height": 32, "width": 32}, "no label 'nsfw' beside others, only nsfw"),
        (("nsfw", "normal"), {"shortest_edge": 32}, "different shapes"),
    ],
)
def test_models_that_give_no_probability_or_no_batch_are_refused(
    labels: tuple[str, ...], size: dict[str, int], message: str, tmp_path: Path
) -> None:
    model = tiny_models.classifier(tmp_path / "model", *labels)
    config = {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False, "size": size}
    (tmp_path / "model/preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        Classifier("nsfw", model, Runtime(ComputeSettings()))


def test_a_model_without_the_label_is_refused_before_anything_is_written(root: Path) -> None:
    ingested = run(INGEST, str(root / "src"), root)
    before = sorted((root / "out").iterdir())
    with pytest.raises(
        ValueError, match=r"score\.aesthetic: .*nsfw has no label 'aesthetic' beside others, only normal, NSFW"
    ):
        run(SCORE, ingested, root, aesthetic=str(root / "nsfw"))
    with pytest.raises(ValueError, match=r"score\.nsfw and score\.heads both give the score 'nsfw'"):
        run(SCORE, ingested, root, clip=str(root / "clip"), heads=str(root / "heads"), nsfw=str(root / "nsfw"))
    assert sorted((root / "out").iterdir()) == before

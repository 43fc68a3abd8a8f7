"""The table with a tiny random pipeline and a simple judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest
from PIL import Image

from realcustom.diffusion_pipeline import RealCustomPipeline
from realcustom.evaluation.generators import EndpointGenerator, PipelineGenerator, to_base64
from realcustom.evaluation.settings import EvaluateSettings
from realcustom.evaluation.table import Case, Scores, Setting, evaluate
from tests.support.loopback import LoopbackServer, free_port, running

SETTINGS = EvaluateSettings(images=4, batch_size=3, resamples=200, num_inference_steps=2)


def _picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def _cases(count: int = 4) -> list[Case]:
    return [
        Case(
            uid=f"case-{i}",
            prompt="a cat in the snow",
            target_word="cat",
            reference=_picture(10 + i),
            wrong_reference=_picture(20 + i),
            oracle=_picture(30 + i),
            seed=100 + i,
        )
        for i in range(count)
    ]


def nearness_judge(images: Sequence[Image.Image], cases: Sequence[Case]) -> list[Scores]:
    """Similarity = 1 - mean absolute difference to the oracle; the flags from the image's brightness."""
    scores = []
    for image, case in zip(images, cases, strict=True):
        difference = np.asarray(image, dtype=np.float64) - np.asarray(case.oracle, dtype=np.float64)
        brightness = float(np.asarray(image).mean())
        similarity = 1.0 - float(np.abs(difference).mean()) / 255.0
        scores.append(Scores(similarity=similarity, background=brightness > 0, noun=brightness > 300))
    return scores


def test_an_endpoint_of_this_machine_is_asked_by_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Drawing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": [{"b64_json": to_base64(_picture(0))}]}).encode())

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with running(LoopbackServer(Drawing)) as server:
        [image] = EndpointGenerator(url=server.url)(Setting.TEXT_TO_IMAGE, _cases(1))
    assert np.array_equal(np.asarray(image), np.asarray(_picture(0)))


def test_every_row_rests_on_every_case(tiny_pipeline: RealCustomPipeline) -> None:
    generator = PipelineGenerator(pipeline=tiny_pipeline, num_inference_steps=2)
    told: list[tuple[Setting, int, int]] = []
    table = evaluate(_cases(), generator, nearness_judge, SETTINGS, progress=lambda *args: told.append(args))
    assert [row.setting for row in table.rows] == list(Setting)
    assert all(row.images == 4 and row.background_accuracy == 1.0 and row.noun_accuracy == 0.0 for row in table.rows)
    assert all(row.similarity.low <= row.similarity.mean <= row.similarity.high for row in table.rows)
    oracle = table.rows[-1]
    assert (oracle.similarity.mean, oracle.similarity.low, oracle.similarity.high) == (1.0, 1.0, 1.0)
    assert told[:2] == [(Setting.TEXT_TO_IMAGE, 3, 4), (Setting.TEXT_TO_IMAGE, 4, 4)]

    data = table.to_dict()
    assert data["table"][0].keys() == {
        "setting", "similarity", "similarity_ci", "background_accuracy", "noun_accuracy", "images",
    }  # fmt: skip
    right, wrong = table.scores[Setting.SUBJECT_WITH_MASK], table.scores[Setting.WRONG_REFERENCE]
    difference = np.mean([a.similarity - b.similarity for a, b in zip(right, wrong, strict=True)])
    assert data["wrong_reference"]["difference"] == pytest.approx(difference)
    assert data["wrong_reference"]["ci"][0] <= difference <= data["wrong_reference"]["ci"][1]


def test_a_setting_changes_the_image_and_a_batch_does_not(tiny_pipeline: RealCustomPipeline) -> None:
    generator = PipelineGenerator(pipeline=tiny_pipeline, num_inference_steps=2)
    cases = _cases(2)
    drawn = {
        setting: [np.asarray(image, dtype=int) for image in generator(setting, cases)]
        for setting in Setting
        if setting is not Setting.ORACLE
    }
    plain = drawn[Setting.TEXT_TO_IMAGE][0]
    assert all(
        np.abs(images[0] - plain).max() > 0 for setting, images in drawn.items() if setting is not Setting.TEXT_TO_IMAGE
    )
    assert np.abs(drawn[Setting.SUBJECT_WITHOUT_MASK][0] - drawn[Setting.SUBJECT_WITH_MASK][0]).max() > 0
    for setting, images in drawn.items():
        for case, image in zip(cases, images, strict=True):
            assert np.abs(np.asarray(generator(setting, [case])[0], dtype=int) - image).max() <= 1


def test_some_rows_only() -> None:
    cases = _cases(2)
    table = evaluate(cases, _copies, nearness_judge, SETTINGS, rows=[Setting.TEXT_TO_IMAGE])
    assert len(table.rows) == 1 and table.to_dict()["wrong_reference"] is None
    assert table.images[Setting.TEXT_TO_IMAGE][1].tobytes() == cases[1].reference.tobytes()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least 2 cases"):
        evaluate(_cases(1), _copies, nearness_judge, SETTINGS)
    with pytest.raises(ValueError, match="different uids"):
        evaluate([*_cases(2), *_cases(1)], _copies, nearness_judge, SETTINGS)
    with pytest.raises(ValueError, match="0 images for 2 cases"):
        evaluate(_cases(2), lambda setting, cases: [], nearness_judge, SETTINGS)
    with pytest.raises(ValueError, match="1 scores for 2 images"):
        evaluate(_cases(2), _copies, lambda images, cases: nearness_judge(images, cases)[:1], SETTINGS)
    with pytest.raises(ValueError, match="images must be 2 or more"):
        EvaluateSettings(images=1)


def _copies(setting: Setting, cases: Sequence[Case]) -> list[Image.Image]:
    """A generator that copies the reference."""
    return [case.reference for case in cases]

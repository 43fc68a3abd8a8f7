"""A copier, one that ignores the subject, one that draws one image for all seeds, and a thief of backgrounds: each is caught.

The methods' pictures are drawn exactly; the metrics are those of the shipped image encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from realcustom.evaluation import metrics
from realcustom.evaluation.given import given_images, real_images
from realcustom.evaluation.methods import ORACLE, TEXT_ALONE
from realcustom.evaluation.metrics import Embedder, Judged, make_metric
from realcustom.evaluation.results import Bootstrap, Results, summarise
from realcustom.evaluation.suite import Photos, Suite, SuiteCase
from realcustom.evaluation.views import Views
from realcustom.sprites import world, zoo_path
from realcustom.store import Store
from tests.support.suites import DrawnSuite, draw_method, write_suite

KINDS = ("dino_i", "dino_i_segmented", "diversity", "copying", "leak")
STORE = Store()


def prompt_scene(case: SuiteCase, index: int, seed: int) -> world.Scene:
    """What the prompt says, with a subject of chance of the same noun."""
    drawn = world.scene(world.Split.CORPUS, 1000 * seed + 50 * index + int(case.prompt_id))
    word = case.references[0].word
    others = [one for one in world.identities(world.Split.CORPUS) if one.noun == word]
    background = next(name for name in world.BACKGROUNDS if name in case.prompt)
    chance = others[(7 * index + 3 * seed + int(case.prompt_id)) % len(others)]
    return world.same_scene_with(replace(drawn, background=background), chance)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("planted")
    drawn = write_suite(folder, subjects=6)
    suite = drawn.read()
    methods = planted(drawn)
    judged: list[Judged] = []
    for name, scene_of in methods.items():
        place = draw_method(folder / name, suite, scene_of)
        judged += given_images(name, place, suite.cases, STORE)
    return measured(suite, judged + real_images(suite), folder / "output")


def planted(drawn: DrawnSuite) -> dict[str, Callable[[SuiteCase, int], world.Scene]]:
    def identity(case: SuiteCase) -> world.Identity:
        return drawn.scenes[case.subject][0].subjects[0].identity

    return {
        TEXT_ALONE: lambda case, index: prompt_scene(case, index, case.seed),
        "honest": lambda case, index: world.same_scene_with(prompt_scene(case, index, case.seed), identity(case)),
        "copier": lambda case, index: drawn.scenes[case.subject][0],
        "ignorer": lambda case, index: prompt_scene(case, index, case.seed),
        "collapser": lambda case, index: world.same_scene_with(prompt_scene(case, index, 0), identity(case)),
        "thief": lambda case, index: _with_background_of(
            drawn.scenes[case.subject][0], world.same_scene_with(prompt_scene(case, index, case.seed), identity(case))
        ),
    }


def _with_background_of(reference: world.Scene, scene: world.Scene) -> world.Scene:
    return replace(scene, background=reference.background, texture_seed=reference.texture_seed)


def measured(suite: Suite, judged: list[Judged], output: Path) -> Results:
    photos = Photos(STORE)
    embed = Embedder(
        str(zoo_path("image_encoder")), False, str(output), Views(str(output), photos, None, STORE), "cpu", STORE
    )
    columns = [make_metric(kind, kind, embed) for kind in KINDS]
    values = [value for metric in columns for value in metric.measure(judged)]
    names = list(dict.fromkeys(image.method for image in judged))
    return summarise(values, {metric.name: metric.convention for metric in columns}, names, Bootstrap(resamples=1000))


def findings(results: Results, method: str) -> list[str]:
    return [finding for finding in results.findings if finding.startswith(f"{method} ")]


def mean(results: Results, method: str, metric: str) -> float:
    value = results.cells[method, metric].value
    assert value is not None
    return value.mean


def test_the_honest_method_is_not_accused(results: Results) -> None:
    assert findings(results, "honest") == []
    assert (
        mean(results, TEXT_ALONE, "dino_i") < mean(results, "honest", "dino_i") < mean(results, ORACLE, "dino_i") + 0.05
    )


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("copier", "copier copies: its dino_i is above that of the real pictures among themselves"),
        ("ignorer", "ignorer does not show its subjects: its dino_i is not above that of text alone, +0.000"),
        ("collapser", "collapser draws nearly one image for all seeds: its diversity is 0.0000"),
        ("thief", "thief brings the reference's background along: its leak is above that of text alone"),
    ],
)
def test_each_is_caught_by_its_own_row(results: Results, method: str, says: str) -> None:
    found = findings(results, method)
    assert any(finding.startswith(says) for finding in found), found


def test_none_but_the_copier_has_the_copiers_numbers(results: Results) -> None:
    copying = {method: mean(results, method, "copying") for method in ("honest", "ignorer", "collapser", "copier")}
    assert copying["copier"] == max(copying.values()) and copying["copier"] > 2 * abs(copying["honest"])
    assert mean(results, "copier", "diversity") == pytest.approx(0, abs=1e-9)
    assert metrics.CONVENTIONS["copying"] in results.conventions["copying"]

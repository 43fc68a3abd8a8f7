"""What the drawn world's benchmarks compute: rank correlations by hand, and their tables from one command each."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def ran(*command: str) -> Any:
    """The tables that a benchmark wrote to its last argument."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(Path(command[-1]).read_text())


def kendall_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """tau-b from its definition (Kendall 1945)."""
    pairs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j])) for i, j in itertools.combinations(range(len(x)), 2)]
    agreeing = sum(one * other for one, other in pairs)
    return float(agreeing / np.sqrt(sum(one != 0 for one, _ in pairs) * sum(other != 0 for _, other in pairs)))


def ranks_by_hand(x: np.ndarray) -> np.ndarray:
    return np.array([(x < value).sum() + 0.5 * ((x == value).sum() - 1) for value in x])


def test_rank_correlations_are_those_of_their_definitions(benchmarks: None) -> None:
    from rank_correlation import correlations

    rng = np.random.default_rng(0)
    x = rng.integers(0, 12, 40).astype(float)  # with ties
    y = x + rng.normal(0, 4, 40).round()
    times = np.bincount(rng.integers(0, 40, 40), minlength=40)
    found = correlations(x, y, np.stack([times, times]))
    drawn = np.repeat(np.arange(40), times)
    for place, rows in ((0, np.arange(40)), (1, drawn)):
        one, other = x[rows], y[rows]
        spearman = np.corrcoef(ranks_by_hand(one), ranks_by_hand(other))[0, 1]
        assert found["spearman"][place] == pytest.approx(spearman, abs=6e-4)
        assert found["kendall"][place] == pytest.approx(kendall_by_hand(one, other), abs=6e-4)


def test_an_order_is_as_probable_as_its_resamples_say(benchmarks: None) -> None:
    from trained_ablations import resampled

    counts = np.array([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    values = np.array([[[1.0, 3.0]], [[2.0, 2.0]]])  # two variants, one seed, two questions
    means = resampled(values, counts)
    np.testing.assert_allclose(means, [[1.0, 3.0, 2.0], [2.0, 2.0, 2.0]])


def test_a_page_s_tables_are_those_of_the_result_files(benchmarks: None, tmp_path: Path) -> None:
    from drawn_pages import MARK, PAGE, SHOWN, TABLES, made

    scores = {name: [0.5, 0.25, 0.75] for name in SHOWN}
    table = {"command": "python benchmarks/x.py", "commit": "0123456789", "rows": [{"method": "masked", **scores}]}
    (tmp_path / "drawn_baselines.json").write_text(json.dumps({"untuned": table}))
    text = made("baselines", tmp_path)
    assert "| masked | 0.50 [0.25, 0.75] |" in text and "`python benchmarks/x.py`, at 0123456.\n" in text
    assert made("tuned", tmp_path) == "Not measured yet: `python benchmarks/drawn_baselines.py`.\n"
    assert [found[2] for found in MARK.finditer(PAGE.read_text())] == list(TABLES)


@pytest.mark.slow
def test_without_mask_and_scoring_the_method_draws_what_diffusers_ip_adapter_draws(benchmarks: None) -> None:
    from drawn_methods import cases_of, customised, direct, ip_adapter
    from synthetic_world import shipped

    from realcustom.settings import MethodSettings
    from realcustom.sprites.questions import Kind

    def bare(settings: MethodSettings) -> MethodSettings:
        tokens = dataclasses.replace(settings.tokens, scoring=False)
        return dataclasses.replace(direct(settings), tokens=tokens)

    cases = cases_of(Kind.CONTRADICTION, 2)  # two subjects in one call: each picture must show its own
    theirs = ip_adapter(shipped(), given_mask=False)(cases)
    ours = customised(shipped(bare), use_mask=False)(cases)
    for one, other in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(np.asarray(one, float), np.asarray(other, float), atol=1)


@pytest.mark.slow
def test_the_tables_of_controllability(tmp_path: Path) -> None:
    folder = str(tmp_path / "work")
    command = ("benchmarks/controllability.py", "--images", "4", "--work", folder)
    tables = ran(*command, "--output", str(tmp_path / "one.json"))
    assert {row["kind"] for row in tables["trade_off"]["rows"]} == {
        *("plain", "contradiction", "unseen", "bystander", "two_subjects")
    }
    again = ran(*command, "--output", str(tmp_path / "two.json"))
    assert [tables[name]["rows"] for name in tables] == [again[name]["rows"] for name in again]


@pytest.mark.slow
def test_the_tables_of_metric_validity(tmp_path: Path) -> None:
    command = ("benchmarks/metric_validity.py", "--images", "8", "--work", str(tmp_path / "work"))
    tables = ran(*command, "--output", str(tmp_path / "one.json"))
    similar = {row["method"]: row["similarity"][0] for row in tables["methods"]["rows"]}
    assert len(similar) >= 20 and similar["true_drawing"] > similar["masked"] > similar["wrong_reference"]


@pytest.mark.slow
def test_the_tables_of_the_baselines(tmp_path: Path) -> None:
    command = ("benchmarks/drawn_baselines.py", "--images", "4", "--subjects", "2", "--work", str(tmp_path / "work"))
    tables = ran(*command, "--output", str(tmp_path / "one.json"))
    tuned = [row for row in tables["tuned"]["rows"] if row["method"] == "lora_1_picture"]
    assert [row["steps"] for row in tuned] == [100, 500] and tuned[0]["seconds"][0] < tuned[1]["seconds"][0]

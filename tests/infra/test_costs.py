"""The tables of docs/costs.md are those of its figures, and its figures those that are counted."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from docs import costs

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_tables_of_its_figures() -> None:
    text = costs.PAGE.read_text()
    assert costs.page(text, costs.tables(costs.MACHINES, costs.UTILISATION)) == text
    for named in (
        f"{costs.CPU_SECONDS * 1000:.1f} ms",
        f"{costs.UTILISATION:g} of their",
        "200 kB",
        f"${costs.STORE_PRICE}",
    ):
        assert named in text


def test_a_dearer_machine_costs_more_and_a_better_used_one_less() -> None:
    [machine] = [one for one in costs.MACHINES if one.name == "p5.48xlarge"]

    def cost(price: float, utilisation: float) -> float:
        rows = costs.tables((replace(machine, price=price),), utilisation)["training"].splitlines()
        return float(rows[-1].split("|")[-2].partition("$")[2].strip().replace(",", ""))

    assert cost(2 * machine.price, 0.3) == pytest.approx(2 * cost(machine.price, 0.3), rel=0.01)
    assert cost(machine.price, 0.6) == pytest.approx(cost(machine.price, 0.3) / 2, rel=0.01)


def counted_by(program: str, *arguments: str) -> Any:
    command = [sys.executable, str(ROOT / "benchmarks" / program), *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout)


@pytest.mark.slow
def test_the_flops_of_training_are_those_that_are_counted() -> None:
    counted = counted_by("training_flops.py")
    assert {recipe: (parts["forward"], parts["backward"]) for recipe, parts in counted.items()} == costs.TRAINING


def test_memory_is_added_up_by_what_is_used() -> None:
    memory = costs.MEMORY["paper_sd15"]
    assert memory.state(moment_bytes=1) == memory.state() - 6 * memory.trained  # two moments of a byte
    assert memory.state() - memory.state(8) == 16 * memory.trained * 7 / 8 - 8 * memory.trained  # some is gathered
    assert memory.activations(3, True) - memory.activations(1, True) == 2 * memory.checkpointed_row


@pytest.mark.slow
def test_the_memory_of_training_is_that_which_is_counted() -> None:
    counted = counted_by("training_memory.py", *costs.MEMORY)
    assert counted == {recipe: asdict(memory) for recipe, memory in costs.MEMORY.items()}

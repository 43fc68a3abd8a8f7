"""What a larger scope of influence costs: graded scores on plain and hard questions, and paired differences of settings.

    python benchmarks/controllability.py                 # about 25 minutes on one core; goes on where it stopped
    python benchmarks/controllability.py --images 16 --output /tmp/look.json

Table `settings`: each kind of question under each setting of the shipped adapter, from the same noise; means with 95 %
bootstrap intervals over subjects. Table `trade_off`: the paired difference of two settings, the second minus the first,
and whether the paper's trade-off is visible in it: similarity rises and some score of control falls, both by more than
their intervals. Table `sampling`: scoring, quantity and binary masks changed at sampling time. Pictures are kept in --work; delete
it after a change of the sampler or the models. Writes benchmarks/results/drawn/controllability.json.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from drawn_methods import Method, binary, cases_of, customised, graded, plain
from drawn_tables import Row, interval, kept_answers, resample, write_table
from synthetic_world import shipped

from realcustom.evaluation.table import Case
from realcustom.settings import Fusion, TokenSettings
from realcustom.sprites import zoo_path
from realcustom.sprites.control import grade
from realcustom.sprites.judge import Judge
from realcustom.sprites.questions import Kind, stolen

RESULTS = record.RESULTS / "drawn" / "controllability.json"
TABLES = ("settings", "trade_off", "sampling")
SCOPES = (0.1, 0.2, 0.25, 0.5, 1.0)  # 0.25 is the adapter's own
SCORES = ("similarity", "noun", "background", "place_error", "background_error", "background_colour")
LOWER_IS_BETTER = ("place_error", "background_error", "theft")
STEPS = (
    *(("scope_0.1", "scope_0.25"), ("scope_0.25", "scope_0.5"), ("scope_0.5", "scope_1.0")),
    *(("scope_0.1", "scope_1.0"), ("scope_0.25", "binary_0.25"), ("binary_0.25", "binary_0.5")),
    *(("binary_0.5", "no_mask"), ("scope_0.25", "no_mask"), ("plain", "scope_0.25")),
)


def scope(value: float) -> Callable[[], Method]:
    return lambda: customised(shipped(), influence_scope=value)


def tokens(change: Callable[[TokenSettings], TokenSettings]) -> Callable[[], Method]:
    """The shipped adapter with its tokens scored otherwise."""
    return lambda: customised(shipped(lambda settings: dataclasses.replace(settings, tokens=change(settings.tokens))))


def fusion(one: Fusion) -> Callable[[], Method]:
    return tokens(lambda settings: dataclasses.replace(settings, fusion=one))


def quantity(value: float) -> Callable[[], Method]:
    return lambda: customised(shipped(), influence_quantity=value)


SETTINGS: Mapping[str, Callable[[], Method]] = {
    "plain": lambda: plain(shipped()),
    **{f"scope_{value}": scope(value) for value in SCOPES},
    "binary_0.25": lambda: customised(binary(), influence_scope=0.25),
    "binary_0.5": lambda: customised(binary(), influence_scope=0.5),
    "no_mask": lambda: customised(shipped(), use_mask=False),
}
SAMPLING: Mapping[str, Callable[[], Method]] = {
    "scoring_none": tokens(lambda settings: dataclasses.replace(settings, scoring=False)),
    **{f"scoring_{one.value}": fusion(one) for one in Fusion},
    **{f"quantity_{value}": quantity(value) for value in (0.3, 0.5, 1.0)},  # 0.8 is the adapter's own
}


class Tables:
    """The tables' rows; pictures are drawn where they are asked for first."""

    def __init__(self, images: int, work: Path) -> None:
        self.images, self.work = images, work
        self.judge = Judge.load(zoo_path("judge"))
        self.cases = {kind: cases_of(kind, images) for kind in Kind}
        self.counts = {kind: resample(cases) for kind, cases in self.cases.items()}

    def scores(self, kind: Kind, name: str, make: Callable[[], Method]) -> dict[str, np.ndarray]:
        """Each score of every question, (n,)."""
        cases = self.cases[kind]
        drawn = kept_answers(self.work / f"{kind.value}-{name}-{self.images}.npy", make, cases)
        return scores_of(self.judge, kind, drawn, cases)

    def rows(self, kinds: Sequence[Kind], settings: Mapping[str, Callable[[], Method]]) -> Iterator[Row]:
        """Means by kind and setting."""
        for kind in kinds:
            cases = self.cases[kind]
            right = np.stack([np.asarray(case.oracle) for case in cases])
            yield self.row(kind, "true_drawing", scores_of(self.judge, kind, right, cases))
            for name, make in settings.items():
                yield self.row(kind, name, self.scores(kind, name, make))

    def row(self, kind: Kind, name: str, scores: Mapping[str, np.ndarray]) -> Row:
        """One setting's means and intervals."""
        means = {score: interval(values, self.counts[kind]) for score, values in scores.items()}
        return {"kind": kind.value, "setting": name, **means}

    def trade_offs(self, kinds: Sequence[Kind]) -> Iterator[Row]:
        """Paired differences of neighbouring settings."""
        for kind in kinds:
            found = {name: self.scores(kind, name, make) for name, make in SETTINGS.items()}
            for first, second in STEPS:
                change = {
                    score: interval(values - found[first][score], self.counts[kind])
                    for score, values in found[second].items()
                }
                row: dict[str, Any] = {"kind": kind.value, "from": first, "to": second, **change}
                yield {**row, "visible": is_trade_off(change), "at_the_cost_of": worse(change)}


def scores_of(judge: Judge, kind: Kind, drawn: np.ndarray, cases: Sequence[Case]) -> dict[str, np.ndarray]:
    """Of the first subject; for a second object, what it took of the first; for a second subject, its similarity."""
    first = graded(judge, drawn, cases)
    scores: dict[str, np.ndarray] = {name: getattr(first, name) for name in SCORES}
    if kind is Kind.BYSTANDER:
        taken = [stolen(case.truth.question.target) for case in cases]
        scores["theft"] = grade(judge, drawn, taken, subject=1).similarity
    if kind in (Kind.BYSTANDER, Kind.TWO_SUBJECTS):
        second = graded(judge, drawn, cases, subject=1)
        scores["second_noun"] = second.noun
        if kind is Kind.TWO_SUBJECTS:
            scores["second_similarity"] = second.similarity
    return scores


def is_trade_off(change: Mapping[str, Sequence[float]]) -> bool:
    """Whether the trade-off is visible: more similarity for less of something that the prompt controls."""
    return change["similarity"][1] > 0 and bool(worse(change))


def worse(change: Mapping[str, Sequence[float]]) -> list[str]:
    """The scores of control that fall by more than their interval."""
    control = [name for name in change if name not in ("similarity", "second_similarity")]
    return [name for name in control if (change[name][1] > 0 if name in LOWER_IS_BETTER else change[name][2] < 0)]


def main() -> None:
    """Draw what is missing, score it, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=TABLES, nargs="+", default=TABLES, help="just these tables")
    parser.add_argument(
        "--kinds", choices=[kind.value for kind in Kind], nargs="+", default=[kind.value for kind in Kind]
    )
    parser.add_argument("--images", type=int, default=48, help="questions of each kind")
    parser.add_argument("--work", type=Path, default=Path("outputs/controllability"), help="where pictures are kept")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables = Tables(options.images, options.work)
    kinds = [Kind(kind) for kind in options.kinds]
    rows: Mapping[str, Callable[[], Iterator[Row]]] = {
        "settings": lambda: tables.rows(kinds, SETTINGS),
        "trade_off": lambda: tables.trade_offs(kinds),
        "sampling": lambda: tables.rows((Kind.CONTRADICTION,), SAMPLING),
    }
    for name in options.only:
        command = f"python benchmarks/controllability.py --only {name} --images {options.images}"
        command += "" if len(kinds) == len(Kind) else f" --kinds {' '.join(options.kinds)}"
        write_table(options.output, name, rows[name](), command)


if __name__ == "__main__":
    main()

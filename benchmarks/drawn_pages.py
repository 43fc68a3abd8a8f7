"""The drawn world's results as tables of docs/metrics.md, put between the page's own marks.

    python benchmarks/drawn_pages.py    # after metric_validity.py, controllability.py, drawn_baselines.py, trained_ablations.py

A mark is `<!-- table NAME -->`; all up to the next `<!-- end -->` is replaced. A table whose result file is not there is
left out and says so.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import record

PAGE = record.ROOT / "docs" / "metrics.md"
MARK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SHOWN = ("similarity", "noun", "background", "place_error", "background_error", "background_colour")
TOLD = (
    ("plain", "scope_0.25"),
    ("scope_0.1", "scope_0.25"),
    ("scope_0.25", "scope_0.5"),
    ("binary_0.25", "binary_0.5"),
    ("scope_0.25", "no_mask"),
)  # pairs of settings on the page
Row = Mapping[str, Any]


def number(values: Sequence[float]) -> str:
    """Mean and interval."""
    return f"{values[0]:.2f} [{values[1]:.2f}, {values[2]:.2f}]"


def lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)) + "\n"


def worth(tables: Mapping[str, Any]) -> str:
    """Each metric against both truths: rank correlation over pictures and over methods, pairs ordered wrongly."""
    found = {(row["over"], row["metric"], row["truth"]): row["spearman"] for row in tables["correlations"]["rows"]}
    wrong = {(row["metric"], row["truth"]): f"{row['wrong']:.0%} of {row['pairs']}" for row in tables["pairs"]["rows"]}
    metrics = dict.fromkeys(metric for _, metric, _ in found)
    head = ["metric"]
    for truth in ("similarity", "control"):
        head += [f"{truth}: pictures", "methods", "pairs wrong"]
    rows = (
        [f"`{metric}`"]
        + [
            cell
            for truth in ("similarity", "control")
            for cell in (
                number(found["pictures", metric, truth]),
                number(found["methods", metric, truth]),
                wrong[metric, truth],
            )
        ]
        for metric in metrics
    )
    return lines(head, rows)


def rungs(tables: Mapping[str, Any]) -> str:
    """The share of questions in which a metric prefers the worse drawing of two."""
    rows = tables["rungs"]["rows"]
    steps = dict.fromkeys((row["truth"], row["better"], row["worse"]) for row in rows)
    share = {(row["metric"], row["truth"], row["better"], row["worse"]): row["prefers_worse"][0] for row in rows}
    metrics = dict.fromkeys(row["metric"] for row in rows)
    head = ["metric", *(f"{better} over {worse}" for _, better, worse in steps)]
    return lines(head, ([f"`{metric}`", *(f"{share[metric, *step]:.0%}" for step in steps)] for metric in metrics))


def methods(tables: Mapping[str, Any]) -> str:
    """Means of the truths and of the metrics."""
    rows = tables["methods"]["rows"]
    names = [name for name in rows[0] if name != "method"]
    return lines(["method", *names], ([row["method"], *(f"{row[name][0]:.2f}" for name in names)] for row in rows))


def trade_off(tables: Mapping[str, Any]) -> str:
    """Paired differences of the settings that tell most; all are in the result file."""
    shown = ("similarity", "noun", "background", "background_colour")
    return lines(
        ["kind", "from", "to", *shown, "trade-off"],
        (
            [
                *(row[name] for name in ("kind", "from", "to")),
                *(number(row[name]) for name in shown),
                ", ".join(row["at_the_cost_of"]) if row["visible"] else "no",
            ]
            for row in tables["trade_off"]["rows"]
            if (row["from"], row["to"]) in TOLD
        ),
    )


def settings(tables: Mapping[str, Any]) -> str:
    """Means of settings; their intervals are in the result file."""
    rows = tables["settings"]["rows"]
    return lines(
        ["kind", "setting", *SHOWN],
        ([row["kind"], row["setting"], *(f"{row[name][0]:.2f}" for name in SHOWN)] for row in rows),
    )


def baselines(tables: Mapping[str, Any]) -> str:
    """Other ways to the same pictures."""
    return lines(
        ["method", *SHOWN],
        ([row["method"], *(number(row[name]) for name in SHOWN)] for row in tables["untuned"]["rows"]),
    )


def tuned(tables: Mapping[str, Any]) -> str:
    """Fine-tuning of each subject."""
    return lines(
        ["method", "steps", "seconds a subject", *SHOWN],
        (
            [
                row["method"],
                str(row.get("steps", 0)),
                number(row["seconds"]) if "seconds" in row else "",
                *(number(row[name]) for name in SHOWN),
            ]
            for row in tables["tuned"]["rows"]
        ),
    )


def sampling(tables: Mapping[str, Any]) -> str:
    """What can be changed when an image is drawn, with one adapter."""
    shown = ("similarity", "noun", "background", "background_colour")
    rows = tables["sampling"]["rows"]
    return lines(["setting", *shown], ([row["setting"], *(number(row[name]) for name in shown)] for row in rows))


def variants(tables: Mapping[str, Any]) -> str:
    """Adapters that were trained otherwise, and the probability that the recipe's is more similar than each."""
    shown = ("similarity", "noun", "background", "background_colour", "place_error")
    ahead = {(row["kind"], row["order"][1]): row["probability"] for row in tables["orders"]["rows"] if _of_recipe(row)}
    return lines(
        ["kind", "trained with", *shown, "the recipe is more similar"],
        (
            [
                row["kind"],
                row["variant"],
                *(number(row[name]) for name in shown),
                f"{ahead[row['kind'], row['variant']]:.0%}" if (row["kind"], row["variant"]) in ahead else "",
            ]
            for row in tables["variants"]["rows"]
        ),
    )


def _of_recipe(row: Row) -> bool:
    return len(row["order"]) == 2 and row["order"][0] == "timestep"


Maker = Callable[[Mapping[str, Any]], str]
TABLES: Mapping[str, tuple[str, str, Maker]] = {  # file, table whose command is named, maker
    "worth": ("metric_validity", "correlations", worth),
    "rungs": ("metric_validity", "rungs", rungs),
    "methods": ("metric_validity", "methods", methods),
    "trade_off": ("controllability", "trade_off", trade_off),
    "settings": ("controllability", "settings", settings),
    "baselines": ("drawn_baselines", "untuned", baselines),
    "tuned": ("drawn_baselines", "tuned", tuned),
    "sampling": ("controllability", "sampling", sampling),
    "variants": ("trained_ablations", "variants", variants),
}


def made(name: str, results: Path) -> str:
    """A table with its command and commit; a sentence where it was not measured."""
    file, of, maker = TABLES[name]
    path = results / f"{file}.json"
    tables = json.loads(path.read_text()) if path.exists() else {}
    if of not in tables:
        return f"Not measured yet: `python benchmarks/{file}.py`.\n"
    return f"{maker(tables)}\n`{tables[of]['command']}`, at {tables[of]['commit'][:7]}.\n"


def main() -> None:
    """Fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=record.RESULTS / "drawn", help="folder of the result files")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    text = options.page.read_text()
    filled = MARK.sub(lambda found: f"{found[1]}{made(found[2], options.results)}{found[3]}", text)
    options.page.write_text(filled)


if __name__ == "__main__":
    main()

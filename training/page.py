"""report.html of a run: curves, sheets over the steps, settings, the account of the records. One file beside `samples/`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape

import yaml

from realcustom import storage
from realcustom.page_style import STYLE
from realcustom.store import Store
from realcustom.training import chart
from realcustom.training.chart import Points, curve_svg
from realcustom.training.facts import Facts, read_facts, table
from realcustom.training.metrics_file import Row
from realcustom.training.sheets import read_captions

POINTS = 300  # of a line at most: means of what lies together
Captions = Sequence[tuple[str, str]]

OWN_STYLE = """
.charts { grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); gap: 1.4rem; }
.facts td:first-child { color: var(--soft); white-space: nowrap; padding-right: 1.4rem; }
.facts td:last-child { overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--soft); }
.sheet { display: grid; grid-template-columns: minmax(0, max-content) minmax(6rem, 1fr); gap: 1rem; }
.sheet ol { display: grid; grid-auto-rows: minmax(0, 1fr); height: 0; min-height: 100%; margin: 0; padding: 0; list-style: none; }
.sheet li { overflow: hidden; font-size: .9rem; line-height: 1.35; }  /* as high as its row of the picture */
label { display: flex; align-items: center; gap: .6rem; margin-bottom: .6rem; white-space: nowrap; }
input[type=range] { width: min(420px, 60%); accent-color: var(--accent); height: 2rem; }
@media (max-width: 640px) {
  svg { font-size: 17px; } .facts td:first-child { white-space: normal; padding-right: .8rem; }
  .sheet { gap: .6rem; } .sheet li { font-size: .75rem; line-height: 1.25; }
}
"""
SLIDER = """
const names = JSON.parse(document.getElementById("names").textContent);
const range = document.getElementById("range"), sheet = document.getElementById("sheet"), which = document.getElementById("which");
range.addEventListener("input", () => {
  sheet.src = "samples/" + names[range.value];
  which.textContent = parseInt(names[range.value].slice(5));
});
"""


def write_page(output: str, identity: str, store: Store) -> None:
    """Write the page of the run in a folder, as it is now."""
    facts = read_facts(output, store)
    captions = read_captions(output, facts.sheets[-1], store) if facts.sheets else []
    store.write(storage.join(output, "report.html"), render(facts, f"Training run {identity}", captions))


def render(facts: Facts, title: str, captions: Captions = ()) -> bytes:
    """The page of a run as HTML. `captions`: the target word and the caption of each row of its sheets."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in table(facts))
    settings = yaml.safe_dump(dict(facts.settings), sort_keys=False)
    said = "Each over the steps of the training. What every line is: docs/training.md."
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<section><table class="facts">{rows}</table></section>',
        f'<section><h2>Curves</h2><p class="soft">{said}</p><div class="grid charts">{"".join(_figures(facts))}</div></section>',
        _sheets(facts.sheets, captions),
        _dropped(facts),
        f"<section><h2>Settings</h2><details><summary>settings.yaml</summary><pre>{escape(settings)}</pre></details></section>",
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{escape(title)}</title><style>{STYLE}{chart.STYLE}{OWN_STYLE}</style>"
    return f'<!doctype html><html lang="en">{head}<main>{"".join(parts)}</main></html>'.encode()


def _figures(facts: Facts) -> list[str]:
    training, validation = facts.training, facts.validation

    def curve(rows: Sequence[Row], value: Callable[[Row], float | None]) -> Points:
        found = [(row["step"], value(row)) for row in rows]
        return [(step, number) for step, number in found if number is not None]

    strata = len(validation[-1]["val_losses"]) if validation else 0
    lines: dict[str, tuple[str, Points]] = {
        "training loss": (
            "mean over the steps of a row; noisy, as timesteps are drawn",
            curve(training, lambda row: row["loss"]),
        ),
        "validation loss": (
            "held-out records at fixed noise and timesteps",
            curve(validation, lambda row: row["val_loss"]),
        ),
    }
    for number in range(strata):
        where = f"validation loss, part {number + 1} of {strata} of the timesteps"
        said = (
            "those with the least noise" if number == 0 else "those with the most noise" if number == strata - 1 else ""
        )
        lines[where] = (said, [(row["step"], row["val_losses"][number]) for row in validation])
    lines |= {
        "gradient norm": ("before clipping", curve(training, lambda row: row["grad_norm"])),
        "learning rate": ("", curve(training, lambda row: row["lr"])),
        "images/s": ("", curve(training, lambda row: row["images_per_second"])),
        "data wait": ("share of the time that waits for batches", curve(training, lambda row: row["data_wait"])),
        "MFU": ("FLOPs of the model as a share of what the device can do", curve(training, lambda row: row.get("mfu"))),
    }
    return [_figure(name, said, points) for name, (said, points) in lines.items() if points]


def _figure(name: str, said: str, points: Points) -> str:
    note = f"<br>{escape(said)}" if said else ""
    caption = f"<figcaption>last {points[-1][1]:.5g}{note}</figcaption>"
    return f"<figure><b>{escape(name)}</b>{curve_svg(name, _thinned(points))}{caption}</figure>"


def _thinned(points: Points) -> Points:
    """At most `POINTS`, each the mean of those that lie together."""
    size = -(-len(points) // POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _sheets(names: Sequence[str], captions: Captions) -> str:
    if not names:
        return ""
    last = names[-1]
    step = int(last.removeprefix("step-").removesuffix(".png"))
    said = "".join(f"<li><b>{escape(word)}</b><br>{escape(caption)}</li>" for word, caption in captions)
    slider = (
        f'<label>step <input type="range" id="range" min="0" max="{len(names) - 1}" value="{len(names) - 1}"> '
        f'<span id="which">{step}</span></label>'
    )
    script = f'<script type="application/json" id="names">{json.dumps(list(names))}</script><script>{SLIDER}</script>'
    one = f"<p>After step {step}.</p>"
    return (
        "<section><h2>Samples</h2><p>Each row: the reference, the base model alone, the image with the subject, from equal "
        f"noise; beside it the word and the caption.</p>{slider if len(names) > 1 else one}"
        f'<div class="sheet"><img id="sheet" src="samples/{escape(last, quote=True)}" alt="samples of held-out records">'
        f"<ol>{said}</ol></div>{script if len(names) > 1 else ''}</section>"
    )


def _dropped(facts: Facts) -> str:
    dropped: Sequence[Mapping[str, str]] = facts.account.get("dropped_records", [])
    if not dropped:
        return ""
    rows = "".join(f"<tr><td>{escape(one['uid'])}</td><td>{escape(one['reason'])}</td></tr>" for one in dropped[:100])
    return (
        f"<section><h2>Dropped records</h2><p>{len(dropped)}; report.json has all.</p><table>{rows}</table></section>"
    )

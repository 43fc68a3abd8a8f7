"""index.html of an evaluation: one file beside its images, opened without a server. Equal results give an equal page."""

from __future__ import annotations

import functools
import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from realcustom import storage
from realcustom.evaluation.clusters import SMALL
from realcustom.evaluation.gallery import FILMS, Gallery
from realcustom.evaluation.metrics import Judged
from realcustom.evaluation.results import Results
from realcustom.evaluation.suite import Photos
from realcustom.pipeline.evaluate.training_run import section, training_runs
from realcustom.preprocessing.report.page import render_template
from realcustom.preprocessing.report.pictures import fit, jpeg_uri
from realcustom.store import Store
from realcustom.training.chart import STYLE

TEMPLATE = Path(__file__).with_name("page.html.j2")
SCRIPT = Path(__file__).with_name("page.js.j2")
SIDE = 160  # pixels of a reference's longer side
COPIES = 10  # likeliest copies that are shown


def page(
    output: str,
    results: Results,
    judged: Sequence[Judged],
    description: Mapping[str, Any],
    speed: Mapping[str, Any],
    store: Store,
    adapters: Sequence[str] = (),
) -> bytes:
    """The page as HTML. Of `adapters`, those that are training runs have a section of their own."""
    runs = [
        section(run, results, functools.partial(_address, output=output), store)
        for run in training_runs(adapters, store)
    ]
    values, filmed = _values(results), Gallery(output, store).filmed()
    return render_template(
        TEMPLATE,
        script=Markup(SCRIPT.read_text("utf-8")),
        chart_style=Markup(STYLE),
        runs=runs,
        results=results,
        small=SMALL,
        counts=description["suite"]["counts"],
        settings=yaml.safe_dump(dict(description), sort_keys=False, allow_unicode=True, width=120),
        speed=speed,
        filmed=bool(filmed),
        copies=_copies(output, judged, values),
        data=Markup(_json(_data(output, results, judged, values, filmed, store))),
    )


def _values(results: Results) -> dict[tuple[str, tuple[str, str, Any]], dict[str, float | None]]:
    """An image's values, by its method and place."""
    found: dict[Any, dict[str, float | None]] = defaultdict(dict)
    for one in results.measured:
        found[one.method, one.place][one.metric] = one.value
    return dict(found)


def _data(
    output: str,
    results: Results,
    judged: Sequence[Judged],
    values: Mapping[Any, Any],
    filmed: Set[str],
    store: Store,
) -> dict[str, Any]:
    """What the script reads: cases with their references, and an image of each method."""
    photos = Photos(store)
    cases: dict[str, dict[str, Any]] = {}
    references: dict[str, str] = {}
    for image in judged:
        case = image.case
        entry = cases.setdefault(
            case.uid,
            {
                "subject": case.subject,
                "prompt": case.prompt or case.prompt_id,
                "seed": case.seed,
                "images": {},
            },
        )
        place = case.subject, case.prompt_id, case.seed
        key = image.photo.uri.rpartition("/")[2].removesuffix(".png")
        entry["images"][image.method] = [
            _address(image.photo.uri, output),
            values.get((image.method, place), {}),
            f"{FILMS}/{key}.png" if key in filmed else None,
        ]
        if case.subject not in references:
            references[case.subject] = jpeg_uri(fit(photos.picture(case.references[0].given.uri), SIDE))
    return {
        "methods": list(results.methods),
        "metrics": list(results.metrics),
        "references": references,
        "cases": [cases[uid] for uid in sorted(cases)],
    }


def _copies(output: str, judged: Sequence[Judged], values: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """The drawn images that are most similar to what was given, by the first metric that says so."""
    scored = []
    for image in judged:
        if image.real:
            continue
        place = image.case.subject, image.case.prompt_id, image.case.seed
        mine = values.get((image.method, place), {})
        names = [name for kind in ("copying@", "dino_i@", "clip_i@") for name in mine if name.startswith(kind)]
        if names and mine[names[0]] is not None:
            scored.append((-mine[names[0]], image.method, image.case.uid, names[0], image))
    return [
        {
            "method": method,
            "uid": uid,
            "value": f"{name} {-value:.3f}",
            "image": _address(image.photo.uri, output),
            "subject": image.case.subject,
        }
        for value, method, uid, name, image in sorted(scored, key=lambda entry: entry[:4])[:COPIES]
    ]


def _address(uri: str, output: str) -> str:
    """Of a picture, from the page."""
    if storage.is_remote(uri) or storage.is_remote(output):
        return uri.removeprefix(f"{output.rstrip('/')}/")
    return os.path.relpath(uri, output)


def _json(data: Any) -> str:
    """JSON that no text can end the element of."""
    return json.dumps(data, ensure_ascii=False, sort_keys=True).replace("<", "\\u003c")

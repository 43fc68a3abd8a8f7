"""The content of the quickstart's page, from the outputs of the run."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from realcustom import storage
from realcustom.evaluation.table import Case, Row, Setting, Table
from realcustom.pipeline.chart import loss_svg, measured_svg
from realcustom.pipeline.quickstart.film import Films
from realcustom.pipeline.quickstart.next_steps import next_steps
from realcustom.pipeline.quickstart.results import Results
from realcustom.pipeline.quickstart.strips import film_content, small
from realcustom.preprocessing.report.page import around, render_template
from realcustom.preprocessing.report.pictures import data_uri
from realcustom.sprites import corpus as drawn
from realcustom.store import Store
from realcustom.training.chart import STYLE

TEMPLATE = Path(__file__).with_name("page.html.j2")
SCRIPT = Path(__file__).with_name("page.js.j2")
SETTING_NAMES = {
    Setting.TEXT_TO_IMAGE: "text alone",
    Setting.SUBJECT_WITHOUT_MASK: "subject, no mask",
    Setting.SUBJECT_WITH_MASK: "subject, masked (the method)",
    Setting.WRONG_REFERENCE: "wrong reference, masked",
    Setting.ORACLE: "oracle",
}
SHIPPED = "the same with the adapter that ships (8,000 steps)"
SAMPLES = 8  # pictures of each kind on the page
CASES = 5  # rows of the side-by-side sheet, before the photograph's
KEPT = {drawn.Corruption.EMPTY_CAPTION.value: ": kept, and captioned"}


def write_page(path: Path, content: Mapping[str, Any]) -> None:
    """Render the template with `content` and write it atomically."""
    Store().write(path, render_template(TEMPLATE, script=SCRIPT.read_text("utf-8"), chart_style=STYLE, **content))


def content(
    report: dict[str, Any], results: Results, records: pa.Table, truth: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Everything that the template names."""
    return {
        "report": report,
        "films": [_film(films, results.request["case"]) for films in results.films],
        "request": _request(results.request),
        "corpus": {"pictures": len(truth), "samples": _corpus_samples(results.corpus)},
        "excluded": _excluded(results.corpus, truth),
        "subjects": [_subject(row) for row in records.slice(0, SAMPLES // 2).to_pylist()],
        "rows": _rows(results),
        "cases": _cases(results),
        "stage_pages": {
            name: os.path.relpath(storage.join(directory, "report.html"), results.output)
            for name, directory in results.directories.items()
        },
        "training": _training(results),
        "verdict": _verdict(results.table),
        "next_steps": next_steps(results),
    }


_PHOTOGRAPH = (
    "The reference is a real photograph, of a toy robot (by Varun Jampani, CC BY 4.0). All models here have only ever seen "
    "drawn shapes of 32 by 32 pixels, so only its colours can arrive. No judge scores this one."
)


def _film(films: Films, asked: Case) -> dict[str, Any]:
    case = films.case
    if case.uid == "photograph":
        return film_content(films, "a real photograph", _PHOTOGRAPH)
    return film_content(films, f"a {case.target_word}{', of the request below' if case.uid == asked.uid else ''}")


def _request(request: Mapping[str, Any]) -> dict[str, Any]:
    case, answer = request["case"], request["answer"]
    start = case.prompt.index(case.target_word)
    return {
        **around(case.prompt, start, start + len(case.target_word)),
        "prompt": case.prompt,
        "seed": case.seed,
        "reference": data_uri(case.reference),
        "images": [f"data:image/png;base64,{data['b64_json']}" for data in answer["data"]],
    }


def _corpus_samples(corpus: str) -> list[dict[str, str]]:
    first = storage.join(corpus, "shards", "shard-00000.tar")
    samples = []
    with tarfile.open(fileobj=io.BytesIO(Store().read(first))) as tar:
        files = {member.name: tar.extractfile(member) for member in tar.getmembers()[: 3 * SAMPLES]}
        for name, file in files.items():
            text = files.get(name.replace(".jpg", ".txt"))
            if name.endswith(".jpg") and file is not None and text is not None:
                samples.append({"image": data_uri(file.read()), "caption": text.read().decode() or "(no caption)"})
    return samples


def _excluded(corpus: str, truth: dict[str, dict[str, Any]]) -> list[dict[str, str | None]]:
    """One picture of each kind of corruption, as it is in the shards; None if it cannot be read."""
    shown: dict[str, dict[str, str | None]] = {}
    readable = {
        drawn.Corruption.EXACT_DUPLICATE.value,
        drawn.Corruption.NEAR_DUPLICATE.value,
        drawn.Corruption.TINY_IMAGE.value,
        drawn.Corruption.EMPTY_CAPTION.value,
    }
    for row in truth.values():
        kind = row["corruption"]
        if kind is None or kind in shown:
            continue
        image = data_uri(drawn.read_picture(corpus, row["key"])) if kind in readable else None
        shown[kind] = {"image": image, "reason": kind.replace("_", " ") + KEPT.get(kind, "")}
    return list(shown.values())


def _subject(row: dict[str, Any]) -> dict[str, str]:
    return {
        "image": data_uri(row["image"]),
        "subject": data_uri(row["subject_image"]),
        **around(row["caption"], row["target_start"], row["target_end"]),
    }


def _rows(results: Results) -> list[dict[str, Any]]:
    """The table's rows with their names; the shipped adapter's after the method's."""
    rows = []
    for row in results.table.rows:
        rows.append(_row(SETTING_NAMES[row.setting], row))
        if row.setting is Setting.SUBJECT_WITH_MASK and results.shipped is not None:
            rows.append({**_row(SHIPPED, results.shipped), "method": False})
    return rows


def _row(name: str, row: Row) -> dict[str, Any]:
    return {**row.to_dict(), "name": name, "method": row.setting is Setting.SUBJECT_WITH_MASK}


def _cases(results: Results) -> list[dict[str, Any]]:
    """Rows of pictures with what each shows."""
    rows = []
    for index, case in enumerate(results.cases[:CASES]):
        drawings = {SETTING_NAMES[setting]: images[index] for setting, images in results.table.images.items()}
        rows.append(_pictures(case.prompt, {"reference": case.reference, **drawings}))
    for films in results.films:
        if films.case.uid == "photograph":
            rows.append(_photograph(films))
    return rows


def _photograph(films: Films) -> dict[str, Any]:
    case = films.case
    pictures = {
        "reference: a real photograph": case.reference,
        SETTING_NAMES[Setting.TEXT_TO_IMAGE]: films.text_alone,
        SETTING_NAMES[Setting.SUBJECT_WITHOUT_MASK]: films.right_unmasked.frames[-1],
        SETTING_NAMES[Setting.SUBJECT_WITH_MASK]: films.right.frames[-1],
        SETTING_NAMES[Setting.WRONG_REFERENCE]: films.wrong.frames[-1],
        "the wrong reference: another photograph": case.wrong_reference,
    }
    return _pictures(case.prompt, pictures)


def _pictures(prompt: str, pictures: Mapping[str, Image.Image]) -> dict[str, Any]:
    return {"prompt": prompt, "pictures": {name: data_uri(small(image)) for name, image in pictures.items()}}


def _training(results: Results) -> dict[str, Any]:
    trained, train = results.trained, results.settings.train
    losses = [(point["step"], point["loss"]) for point in trained.result.curve if point.get("loss") is not None]
    validation = [
        (point["step"], point["val_loss"]) for point in trained.result.curve if point.get("val_loss") is not None
    ]
    rows = {row.setting: row.similarity for row in results.table.rows}
    learned = [(one.step, one.row.similarity) for one in results.learned]
    levels = [("text alone", rows[Setting.TEXT_TO_IMAGE].mean), ("oracle", rows[Setting.ORACLE].mean)]
    if results.shipped is not None:
        levels.append(("shipped adapter", results.shipped.similarity.mean))
    return {
        "initial_adapter": trained.initial_adapter,
        "steps": train.steps,
        "workers": train.num_workers,
        "fewest_tokens": results.settings.method.tokens.gamma_num_train[0],
        "other_views": train.p_multiview,
        "similarity": measured_svg("similarity", [*learned, (train.steps, rows[Setting.SUBJECT_WITH_MASK])], levels),
        "loss": loss_svg(losses, validation),
    }


def _verdict(table: Table) -> str:
    """The numbers in words."""
    rows = {row.setting: row for row in table.rows}
    plain, masked = rows[Setting.TEXT_TO_IMAGE], rows[Setting.SUBJECT_WITH_MASK]
    gap = table.wrong_reference
    assert gap is not None
    bare, oracle = rows[Setting.SUBJECT_WITHOUT_MASK], rows[Setting.ORACLE]
    share = (masked.similarity.mean - plain.similarity.mean) / (oracle.similarity.mean - plain.similarity.mean)
    beyond = "beyond its interval, so what arrives is this subject's" if gap.low > 0 else "NOT beyond its interval"
    return (
        f"With the mask, similarity is {masked.similarity.mean:.3f} against {plain.similarity.mean:.3f} of text alone: "
        f"{_percent(share)} of what the oracle is above it. The background is right in "
        f"{_percent(masked.background_accuracy)} of the images (text alone {_percent(plain.background_accuracy)}); "
        f"without the mask similarity is {bare.similarity.mean:.3f} "
        f"and the background right in {_percent(bare.background_accuracy)}. The right reference is ahead of a wrong one of the "
        f"same noun by {gap.mean:.3f} [{gap.low:.3f}, {gap.high:.3f}] in images from the same noise, {beyond}."
    )


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")

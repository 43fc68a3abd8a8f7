"""The content of the quickstart's page, from the outputs of the run."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from realcustom import storage
from realcustom.evaluation.table import Case, Setting, Table
from realcustom.pipeline.quickstart.curve import curve_svg
from realcustom.pipeline.recipes import RunSettings
from realcustom.preprocessing.report.page import around, render_template
from realcustom.preprocessing.report.pictures import data_uri
from realcustom.sprites import corpus as drawn
from realcustom.store import Store

TEMPLATE = Path(__file__).with_name("page.html.j2")
SETTING_NAMES = {
    "text_to_image": "text alone",
    "subject_without_mask": "subject, no mask",
    "subject_with_mask": "subject, masked (the method)",
    "wrong_reference_with_mask": "wrong reference, masked",
    "oracle": "oracle (drawn)",
}
SAMPLES = 8  # pictures of each kind on the page
CASES = 6  # rows of the side-by-side sheet
MASKS = 8  # steps of the mask that are shown
KEPT = {drawn.Corruption.EMPTY_CAPTION.value: ": kept, and captioned"}
NEXT_STEPS = """\
  realcustom generate --image tests/data/photos/duck_toy.jpg --prompt "a star at the left on grass" --word star
  realcustom serve --set serve.port=8000                   # the endpoint; its README section has a curl example
  realcustom inspect {adapter}
  realcustom inspect zoo                                   # measures of the small models
  realcustom quickstart --from-scratch --set train.lr=3e-3 # train the adapter from nothing"""


def write_page(path: Path, content: dict[str, Any]) -> None:
    """Render the template with `content` and write it atomically."""
    Store().write(path, render_template(TEMPLATE, names=SETTING_NAMES, **content))


def content(
    report: dict[str, Any],
    corpus: str,
    records: pa.Table,
    trained: Any,
    request: dict[str, Any],
    table: Table,
    cases: Sequence[Case],
    settings: RunSettings,
    truth: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Everything that the template names."""
    return {
        "report": report,
        "request": _request(request),
        "corpus": {"pictures": len(truth), "samples": _corpus_samples(corpus)},
        "dropped": _dropped(corpus, truth),
        "subjects": [_subject(row) for row in records.slice(0, SAMPLES // 2).to_pylist()],
        "settings": [setting.value for setting in table.images],
        "cases": [_case(case, index, table) for index, case in enumerate(cases[:CASES])],
        "training": _training(trained, settings, report["training"]["from_scratch"]),
        "verdict": _verdict(table),
        "next_steps": NEXT_STEPS.format(adapter=trained.adapter),
    }


def _request(request: dict[str, Any]) -> dict[str, Any]:
    case, answer = request["case"], request["answer"]
    start = case.prompt.index(case.target_word)
    masks = [mask for mask in answer["data"][0]["masks"] if mask["subject"] == 0]
    chosen = np.unique(np.linspace(0, len(masks) - 1, MASKS).round().astype(int))
    return {
        **around(case.prompt, start, start + len(case.target_word)),
        "prompt": case.prompt,
        "seed": case.seed,
        "reference": data_uri(case.reference),
        "images": [f"data:image/png;base64,{data['b64_json']}" for data in answer["data"]],
        "masks": [
            {"step": masks[i]["step"] + 1, "image": f"data:image/png;base64,{masks[i]['b64_json']}"} for i in chosen
        ],
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


def _dropped(corpus: str, truth: dict[str, dict[str, Any]]) -> list[dict[str, str | None]]:
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


def _case(case: Case, index: int, table: Table) -> dict[str, Any]:
    return {
        "prompt": case.prompt,
        "reference": data_uri(case.reference),
        "images": [data_uri(images[index]) for images in table.images.values()],
    }


def _training(trained: Any, settings: RunSettings, from_scratch: bool) -> dict[str, Any]:
    losses = [(point["step"], point["loss"]) for point in trained.curve if point.get("loss") is not None]
    validation = [(point["step"], point["val_loss"]) for point in trained.curve if point.get("val_loss") is not None]
    return {
        "from_scratch": from_scratch,
        "steps": settings.train.steps,
        "workers": settings.train.num_workers,
        "fewest_tokens": settings.method.tokens.gamma_num_train[0],
        "other_views": settings.train.p_multiview,
        "curve": curve_svg(losses, validation),
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
        f"{share:.0%} of the way to the oracle. The background is right in {masked.background_accuracy:.0%} of the images "
        f"(text alone {plain.background_accuracy:.0%}); without the mask similarity is {bare.similarity.mean:.3f} and the "
        f"background right in {bare.background_accuracy:.0%}. The right reference is ahead of a wrong one of the same "
        f"noun by {gap.mean:.3f} [{gap.low:.3f}, {gap.high:.3f}] in paired images, {beyond}."
    )

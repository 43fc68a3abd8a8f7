"""report.html: a stage's account with pictures of what it kept, dropped and quarantined; one file."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow.compute as pc
from PIL import Image

from realcustom import storage
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.directory import StageDirectory
from realcustom.preprocessing.engine.unit import Unit, UnitKind
from realcustom.preprocessing.errors import DataError
from realcustom.preprocessing.pictures import decode

KEPT = 24  # pictures shown of what was kept
ASIDE = 8  # entries shown of each reason
_UNITS = 3  # units that samples are taken from
_SIDE = 112  # pixels
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;text-align:left}td.n{text-align:right}"
    ".s{display:inline-block;width:128px;margin:0 10px 10px 0;vertical-align:top;font-size:12px;overflow-wrap:anywhere}"
    ".s img{display:block;max-width:112px;max-height:112px;border:1px solid #ccc}small{color:#666}"
)


def write_page(directory: StageDirectory, report: dict[str, Any], units: Sequence[Unit]) -> None:
    """Write report.html for a stage that is complete. `units` are its input's; samples come from the first few."""
    sampled = units[:_UNITS]
    parts = [f"<h1>{report['stage']}</h1><p><small>{report['fingerprint']}, on {_text(report['upstream'])}</small></p>"]
    parts.append(_account(report))
    parts.append(f"<h2>Kept</h2>{''.join(_kept(directory, sampled)) or '<p>nothing</p>'}")
    for reason, samples in sorted(_aside(directory, sampled).items()):
        parts.append(f"<h2>{_text(reason)}</h2>{''.join(samples)}")
    title = f"<title>{report['stage']}@{report['fingerprint']}</title>"
    page = f"<!doctype html><meta charset=utf-8>{title}<style>{_STYLE}</style>{''.join(parts)}\n"
    directory.store.write(storage.join(directory.uri, "report.html"), page.encode("utf-8", "replace"))


def _account(report: dict[str, Any]) -> str:
    lines = [("in", report["in"]), ("kept", report["kept"])]
    for outcome in ("dropped", "quarantined"):
        lines += [(f"{outcome}: {reason}", number) for reason, number in report[outcome].items()]
    lines.append(("rows written", report["rows_out"]))
    lines += [(f"candidates rejected: {reason}", number) for reason, number in report["rejected"].items()]
    lines += [(f"sets of {size} copies", number) for size, number in report.get("clusters", {}).items()]
    cells = "".join(f"<tr><td>{_text(name)}<td class=n>{number:,}" for name, number in lines)
    return f"<table>{cells}</table>"


def _kept(directory: StageDirectory, units: Iterable[Unit]) -> list[str]:
    samples: list[str] = []
    for unit in units:
        is_table = directory.suffix == ".parquet"  # else what was read is shown for what was written
        uri = directory.rows_uri(unit.name) if is_table else unit.files[0].uri
        names = tables.read_schema(uri).names
        picture = "subject_image" if "subject_image" in names else "image"
        words = [name for name in ("target_word", "caption", "alt_text", "key", "uid") if name in names]
        for row in tables.read_columns(uri, [picture, *words]).slice(0, KEPT - len(samples)).to_pylist():
            text = next((str(row[name]) for name in words if row[name]), "")
            samples.append(_sample(row[picture], text))
    return samples


def _aside(directory: StageDirectory, units: Iterable[Unit]) -> dict[str, list[str]]:
    """Entries by `outcome: reason`; with the picture where the input is a table that holds it."""
    samples: dict[str, list[str]] = {}
    for unit in units:
        lines = directory.store.read(
            directory.excluded_uri(unit.name)
        ).splitlines()  # bytes: text has other ends of lines too
        chosen: list[dict[str, str]] = []
        for entry in map(json.loads, lines):
            of_reason = samples.setdefault(f"{entry['outcome']}: {entry['reason']}", [])
            if len(of_reason) + sum(other["reason"] == entry["reason"] for other in chosen) < ASIDE:
                chosen.append(entry)
        pictures = _pictures(unit, [entry["uid"] for entry in chosen])
        for entry in chosen:
            text = f"{entry['key']} {entry.get('message', '')}"
            samples[f"{entry['outcome']}: {entry['reason']}"].append(_sample(pictures.get(entry["uid"]), text))
    return samples


def _pictures(unit: Unit, uids: list[str]) -> dict[str, bytes]:
    if unit.kind is not UnitKind.PART or not uids:
        return {}
    table = tables.read_columns(unit.files[0].uri, ["uid", "image"])
    table = table.filter(pc.is_in(table["uid"], tables.strings(uids)))
    return dict(zip(table["uid"].to_pylist(), table["image"].to_pylist(), strict=True))


def _sample(data: bytes | None, text: str) -> str:
    return f"<div class=s>{_thumbnail(data)}{_text(text[:160])}</div>"


def _thumbnail(data: bytes | None) -> str:
    if data is None:
        return ""
    try:
        picture = decode(data, draft_side=_SIDE)
    except DataError:
        return ""
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}" alt="">'


def _text(text: str) -> str:
    return html.escape(str(text))

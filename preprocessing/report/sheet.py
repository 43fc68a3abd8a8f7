"""Rows of a stage or of records as pictures: one self-contained HTML file of bounded size."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from realcustom import storage
from realcustom.cells import decode_mask
from realcustom.errors import UsageError
from realcustom.preprocessing.engine.directory import StageDirectory
from realcustom.preprocessing.report.excluded import FILES, Excluded, excluded_sections, spread, wanted_of
from realcustom.preprocessing.report.page import Card, Page, Section, account_of, around, render
from realcustom.preprocessing.report.pictures import decoded, fit, jpeg_uri, thumbnail
from realcustom.preprocessing.tables import read_footer
from realcustom.storage import FileEntry
from realcustom.store import Store

TABLES = 12  # tables that rows are taken from, spread over all
SIDE = 200  # pixels of a picture's longer side
SUBJECT_SIDE = 88
PER_REASON = 6  # samples of excluded rows
TINT = (48, 86, 211)
BOX = (255, 120, 0)
_STORE = Store()
_COLUMNS = (
    *("uid", "parent_uid", "key", "image", "width", "height", "alt_text", "synthetic_caption", "caption", "scores"),
    *("targets", "target_word", "target_start", "target_end", "subject_image", "subject_mask", "subject_box"),
)


def write_sheet(target: str, sheet: str, count: int) -> str:
    """Write the sheet of `target`; returns a line that describes it.

    Args:
        target: a stage's directory, a folder of tables, or a Parquet file.
        sheet: path or URI of the HTML file.
        count: rows to show, spread evenly over the tables.
    Raises:
        UsageError: `target` holds no table with pictures.
    """
    tables = _tables(target)
    chosen = [tables[index] for index in spread(len(tables), TABLES)]
    lengths = [int(_STORE.call(read_footer, uri).num_rows) for uri in chosen]
    cards: list[Card] = []
    wanted, first = spread(sum(lengths), count), 0
    for uri, length in zip(chosen, lengths, strict=True):
        inside = [index - first for index in wanted if 0 <= index - first < length]
        cards += [_card(row) for row in _STORE.call(partial(_rows, wanted=inside), uri)]
        first += length
    report, excluded = _report(target), _excluded(target)
    subjects = any(card.subject for card in cards)
    name = posixpath.basename(target.rstrip("/")) or target
    drawn = "; subject tinted, its box drawn, its cut-out beside it" if subjects else ""
    place = f"{len(cards)} rows of {sum(lengths):,} in {len(chosen)} of {len(tables)} tables, evenly spread{drawn}."
    data = render(
        Page(
            title=name,
            subtitle=place,
            account=account_of(report) if report else [],
            sections=[Section(title="Rows", cards=cards, width=322 if subjects else 216), *excluded],
        )
    )
    _STORE.write(sheet, data)
    samples = sum(len(section.cards) for section in excluded)
    total, left_out = (report["rows_out"], report["in"] - report["kept"]) if report else (sum(lengths), samples)
    shown = f"{len(cards)} of {total} rows, {samples} of {left_out} left out"
    return f"{sheet}: {name}, {shown}, {len(data) / 1e6:.1f} MB"


def _tables(target: str) -> list[str]:
    if not _STORE.is_dir(target):
        return [target]
    entries = _STORE.list_files(target, recursive=False)
    tables = [entry.uri for entry in entries if entry.name.endswith(".parquet")]
    if not tables:
        raise UsageError(f"--html shows tables of pictures, and {target} holds none (.parquet)")
    return tables


def _rows(uri: str, wanted: list[int]) -> list[dict[str, Any]]:
    """Some rows of a table, whose row groups are read one at a time."""
    filesystem, path = storage.open_filesystem(uri)
    with filesystem.open_input_file(path) as source:
        table = pq.ParquetFile(source)
        names = table.schema_arrow.names
        if "image" not in names and "subject_image" not in names:
            raise UsageError(f"--html shows tables of pictures, and {uri} has no column 'image' but {', '.join(names)}")
        columns = [name for name in _COLUMNS if name in names]
        rows: list[dict[str, Any]] = []
        first = 0
        for group in range(table.num_row_groups):
            length = table.metadata.row_group(group).num_rows
            inside = [index - first for index in wanted if first <= index < first + length]
            if inside:
                rows += table.read_row_group(group, columns=columns).take(inside).to_pylist()
            first += length
        return rows


def _card(row: Mapping[str, Any]) -> Card:
    caption = row.get("caption") or row.get("alt_text")
    start, end = row.get("target_start") or 0, row.get("target_end") or 0
    if row.get("targets"):  # of the caption stage: the first word that can name a subject
        start, end = row["targets"][0]["start"], row["targets"][0]["end"]
    others = {name: row.get(name) for name in ("alt_text", "synthetic_caption")}
    scores = row.get("scores") or {}
    size = f" · {row['width']} × {row['height']}" if row.get("width") else ""
    return Card(
        picture=_picture(row),
        subject=thumbnail(row.get("subject_image"), SUBJECT_SIDE),
        caption=around(caption, start, end) if caption else around("no caption"),
        lines={name.replace("_", " "): text for name, text in others.items() if text and text != caption},
        scores={name: _number(value) for name, value in scores.items() if value is not None},
        foot=(f"{row.get('key') or row.get('uid') or ''}{size}",),
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _picture(row: Mapping[str, Any]) -> str:
    """The row's picture with its mask tinted and its box drawn, where there are some."""
    picture = decoded(row.get("image"))
    if picture is None:
        return ""
    mask, box = row.get("subject_mask"), row.get("subject_box")
    small = fit(picture, SIDE)
    size, scale = small.size, max(small.size) / max(picture.size)
    if mask is not None:
        inside = decode_mask(mask).astype(np.uint8) * 255
        inside_small = Image.fromarray(inside).resize(size, Image.Resampling.BOX).point(lambda value: value * 0.45)
        small.paste(Image.new("RGB", size, TINT), mask=inside_small)
    if box is not None:
        corners = [number * scale for number in box]
        right, bottom = min(corners[2], size[0] - 1), min(corners[3], size[1] - 1)
        ImageDraw.Draw(small).rectangle((corners[0], corners[1], right, bottom), outline=BOX, width=2)
    return jpeg_uri(small)


def _report(target: str) -> dict[str, Any] | None:
    """report.json of a stage that is complete."""
    return _json(storage.join(target, "report.json")) if _STORE.is_dir(target) else None


def _json(uri: str) -> dict[str, Any] | None:
    return dict(json.loads(_STORE.read(uri))) if _STORE.exists(uri) else None


def _excluded(target: str) -> list[Section]:
    """Samples of the rows that a stage excluded; none for other tables."""
    stage = _json(storage.join(target, "stage.json")) if _STORE.is_dir(target) else None
    if stage is None:
        return []
    files = _excluded_files(target)
    upstream = _upstream(target, stage["upstream"])
    chosen = [
        Excluded(uri=files[index].uri, table=_table(upstream, files[index].name)) for index in spread(len(files), FILES)
    ]
    report = _report(target)
    wanted = wanted_of(report) if report else None
    return excluded_sections(chosen, _STORE, PER_REASON, wanted)


def _excluded_files(target: str) -> list[FileEntry]:
    """Those that list rows."""
    try:
        files = _STORE.list_files(StageDirectory(target, _STORE).excluded_folder, recursive=False)
    except FileNotFoundError:  # no unit is done
        return []
    return [entry for entry in files if entry.size]


def _upstream(target: str, upstream: str) -> str | None:
    """The directory of the previous stage, if it is below the same root."""
    place = storage.join(target.rstrip("/").rpartition("/")[0] or ".", upstream)
    return place if "@" in upstream and " " not in upstream and _STORE.is_dir(place) else None


def _table(upstream: str | None, name: str) -> str | None:
    """The table that the unit of a file of excluded rows was read from, if it exists."""
    uri = storage.join(upstream, name.removesuffix(".jsonl") + ".parquet") if upstream is not None else None
    return uri if uri is not None and _STORE.exists(uri) else None

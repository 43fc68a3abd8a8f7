"""Rows of a stage or of records as pictures: one HTML file that needs nothing beside it, bounded whatever the corpus."""

from __future__ import annotations

import io
import json
import posixpath
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from realcustom import storage
from realcustom.cells import decode_mask
from realcustom.errors import UsageError
from realcustom.pipeline.page import around, data_uri
from realcustom.pipeline.sheet_aside import aside_samples, spread
from realcustom.preprocessing.errors import DataError
from realcustom.preprocessing.pictures import decode

TEMPLATE = Path(__file__).with_name("sheet.html.j2")
FILES = 12  # tables that rows are taken from, spread over all
SIDE = 200  # pixels of a picture's longer side
SUBJECT_SIDE = 88
QUALITY = 75  # of JPEG
TINT = (48, 86, 211)
BOX = (255, 120, 0)
_COLUMNS = (
    *("uid", "parent_uid", "key", "image", "width", "height", "alt_text", "synthetic_caption", "caption", "scores"),
    *("targets", "target_word", "target_start", "target_end", "subject_image", "subject_mask", "subject_box"),
)


def write_sheet(target: str, sheet: str, count: int) -> str:
    """Write the sheet of `target`; returns a line that says what is on it.

    Args:
        target: a stage's directory, a folder of tables, or a Parquet file.
        sheet: path or URI of the HTML file.
        count: rows to show, spread evenly over the tables.
    Raises:
        UsageError: `target` holds no table with pictures.
    """
    tables = _tables(target)
    chosen = [tables[index] for index in spread(len(tables), FILES)]
    lengths = [_length(uri) for uri in chosen]
    cards: list[dict[str, Any]] = []
    wanted, first = spread(sum(lengths), count), 0
    for uri, length in zip(chosen, lengths, strict=True):
        cards += [_card(row) for row in _rows(uri, [index - first for index in wanted if 0 <= index - first < length])]
        first += length
    report, aside = _account(target), aside_samples(target, lambda data: _thumbnail(data, SIDE // 2))
    name = posixpath.basename(target.rstrip("/")) or target
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(TEMPLATE.read_text()).render(
        name=name, report=report, cards=cards, aside=aside, tables=len(tables), chosen=len(chosen), total=sum(lengths)
    )
    data = page.encode("utf-8", "replace")
    storage.write_bytes(sheet, data)
    samples = sum(len(entries) for entries in aside.values())
    total, left_out = (report["rows_out"], report["in"] - report["kept"]) if report else (sum(lengths), samples)
    shown = f"{len(cards)} of {total} rows, {samples} of {left_out} left out"
    return f"{sheet}: {name}, {shown}, {len(data) / 1e6:.1f} MB"


def _tables(target: str) -> list[str]:
    if not storage.is_dir(target):
        return [target]
    entries = storage.list_files(target, recursive=False)
    tables = [entry.uri for entry in entries if entry.name.endswith(".parquet")]
    if not tables:
        raise UsageError(f"--html shows tables of pictures, and {target} holds none (.parquet)")
    return tables


def _length(uri: str) -> int:
    filesystem, path = storage.open_filesystem(uri)
    return int(pq.read_metadata(path, filesystem=filesystem).num_rows)


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


def _card(row: dict[str, Any]) -> dict[str, Any]:
    """What the template shows of a row."""
    caption = row.get("caption") or row.get("alt_text")
    start, end = row.get("target_start") or 0, row.get("target_end") or 0
    if row.get("targets"):  # of the caption stage: the first word that can name a subject
        start, end = row["targets"][0]["start"], row["targets"][0]["end"]
    others = {name: row.get(name) for name in ("alt_text", "synthetic_caption")}
    scores = row.get("scores") or {}
    return {
        "picture": _picture(row),
        "subject": _thumbnail(row.get("subject_image"), SUBJECT_SIDE),
        "caption": around(caption or "", start, end),
        "captioned": bool(caption),
        "others": {name.replace("_", " "): text for name, text in others.items() if text and text != caption},
        "scores": {name: _number(value) for name, value in scores.items() if value is not None},
        "size": f"{row['width']} × {row['height']}" if row.get("width") else "",
        "key": row.get("key") or row.get("uid") or "",
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _picture(row: dict[str, Any]) -> str:
    """The row's picture with its mask tinted and its box drawn, where there are some."""
    picture = _decode(row.get("image"))
    if picture is None:
        return ""
    mask, box = row.get("subject_mask"), row.get("subject_box")
    small = _fit(picture, SIDE)
    size, scale = small.size, max(small.size) / max(picture.size)
    if mask is not None:
        inside = decode_mask(mask).astype(np.uint8) * 255
        inside_small = Image.fromarray(inside).resize(size, Image.Resampling.BOX).point(lambda value: value * 0.45)
        small.paste(Image.new("RGB", size, TINT), mask=inside_small)
    if box is not None:
        corners = [number * scale for number in box]
        right, bottom = min(corners[2], size[0] - 1), min(corners[3], size[1] - 1)
        ImageDraw.Draw(small).rectangle((corners[0], corners[1], right, bottom), outline=BOX, width=2)
    return _jpeg(small)


def _thumbnail(data: bytes | None, side: int) -> str:
    picture = _decode(data)
    if picture is None:
        return ""
    return _jpeg(_fit(picture, side))


def _fit(picture: Image.Image, side: int) -> Image.Image:
    """Longer side at most `side`; one that is less than half of it grows by whole pixels."""
    longer = max(picture.size)
    scale = side / longer if longer > side else max(1, side // longer)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)


def _decode(data: bytes | None) -> Image.Image | None:
    try:
        return decode(data) if data is not None else None
    except DataError:
        return None


def _jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return data_uri(buffer.getvalue())


def _account(target: str) -> dict[str, Any] | None:
    """report.json of a stage that is complete."""
    uri = storage.join(target, "report.json")
    if not storage.is_dir(target) or not storage.exists(uri):
        return None
    return dict(json.loads(storage.read_bytes(uri)))

"""The table of training records that `subjects` writes: its pictures' columns, what was found, and each record's other views."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from realcustom import record
from realcustom.preprocessing import tables

_COPIED = ("sha256", "image", "width", "height", "alt_text", "synthetic_caption", "caption", "caption_source")
_SCORES = ("detection", "segmentation")
Found = tuple[int, Mapping[str, Any]]  # row of the picture, and the subject's values


def record_table(table: pa.Table, found: Sequence[Found], models: Mapping[str, str]) -> pa.Table:
    """The records in the order of their pictures, each with the uids of its other views in the unit.

    Args:
        table: the pictures, with the columns of `caption`.
        found: each subject's `target` (word, start, end) and `subject_box`; where models found it also `subject_image`,
            `subject_mask`, `detection` and `segmentation`.
        models: identities of the `detector` and the `segmenter`; empty where there are none.
    """
    parents: list[str] = table["uid"].to_pylist()
    uids = _uids(parents, found)
    picked = pa.array([row for row, _ in found], type=pa.int64())
    columns: dict[str, pa.Array | list[Any]] = {name: table[name].take(picked) for name in _COPIED}
    columns |= {"uid": uids, "parent_uid": [parents[row] for row, _ in found]}
    columns["view_uids"] = _view_uids(uids, parents, table["view_group"].to_pylist(), found)
    for name, part in (("target_word", "word"), ("target_start", "start"), ("target_end", "end")):
        columns[name] = [values["target"][part] for _, values in found]
    for name in ("subject_image", "subject_mask", "subject_box"):
        columns[name] = [values.get(name) for _, values in found]
    known = table["scores"].to_pylist() if "scores" in table.schema.names else [{}] * table.num_rows
    columns["scores"] = [
        {**(known[row] or {}), **{name: values.get(name) for name in _SCORES}} for row, values in found
    ]
    return tables.record_table(columns, _fields(table.schema, models))


def _uids(parents: Sequence[str], found: Sequence[Found]) -> list[str]:
    uids: list[str] = []
    numbers: Counter[tuple[str, str]] = Counter()
    for row, values in found:
        phrase = (parents[row], _word(values))
        uids.append(record.record_uid(*phrase, numbers[phrase]))
        numbers[phrase] += 1
    return uids


def _view_uids(
    uids: Sequence[str], parents: Sequence[str], groups: Sequence[str | None], found: Sequence[Found]
) -> list[list[str]]:
    """Of each record, the uids of those with its word in other pictures of its group."""
    views: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)  # (group, word) -> (uid, parent)
    for uid, (row, values) in zip(uids, found, strict=True):
        group = groups[row]
        if group is not None:
            views[group, _word(values)].append((uid, parents[row]))
    return [
        [uid for uid, parent in views.get((groups[row] or "", _word(values)), []) if parent != parents[row]]
        for row, values in found
    ]


def _word(values: Mapping[str, Any]) -> str:
    return str(values["target"]["word"]).lower()


def _fields(schema: pa.Schema, models: Mapping[str, str]) -> dict[str, pa.Field]:
    """The record's fields, with the models that made their values."""
    upstream = {name: schema.field(name).metadata for name in record.SCHEMA.names if name in schema.names}
    fields = {
        name: record.SCHEMA.field(name).with_metadata(metadata) for name, metadata in upstream.items() if metadata
    }
    if not models:
        return fields
    scores = {key.decode(): value.decode() for key, value in (upstream.get("scores") or {}).items()}
    fields["scores"] = record.SCHEMA.field("scores").with_metadata({**scores, **models})
    fields["subject_box"] = tables.made_by(record.SCHEMA.field("subject_box"), models["detector"])
    for name in ("subject_mask", "subject_image"):
        fields[name] = tables.made_by(record.SCHEMA.field(name), models["segmenter"])
    return fields

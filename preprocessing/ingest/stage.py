"""Stage `ingest`: every picture of a source decoded once: checked to its last byte, sized, hashed and given a uid."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa

from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.ledger import ExcludedRow, UnitResult
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import DataError, DataFault, RowExcluded, naming
from realcustom.preprocessing.hashes import BASE_SIDE, signature
from realcustom.preprocessing.ingest.sample import Entry, Sample, is_text
from realcustom.preprocessing.ingest.sources import read_source
from realcustom.preprocessing.ingest.table_rows import TableReader
from realcustom.preprocessing.pictures import examine
from realcustom.preprocessing.settings import IngestSettings
from realcustom.record import picture_uid
from realcustom.store import Store

WITHOUT_CAPTION = "without_caption"
WITH_ANOTHER = "with_another_picture"
MOST_CAPTIONS = 1000  # of one picture that become rows
SCHEMA = pa.schema([*tables.HASHED, tables.MEMBERS, tables.COLUMNS])


class Ingest:
    """Source unit -> table of `SCHEMA`. A picture that does not decode to its last byte is quarantined."""

    def __init__(self, settings: IngestSettings, store: Store):
        self._settings, self._store = settings, store
        self._tables = TableReader(store)

    def __call__(self, unit: Unit) -> UnitResult:
        """Read and check all samples of `unit`, in the source's order."""
        rows_in, excluded, good = 0, list[ExcludedRow](), list[dict[str, Any]]()
        seen, notes = set[str](), defaultdict[str, list[str]](list)
        for name, entry in _each_caption(read_source(unit, self._settings, self._store, self._tables)):
            rows_in += 1
            key = name.encode("utf-8", "backslashreplace").decode()  # a file's name need not be text
            uid = picture_uid(key)
            try:
                sample = _checked(entry, uid in seen)
                seen.add(uid)
                with naming(f"unit {unit.name}, row {uid} ({key})"):
                    good.append(self._row(uid, name, sample, notes))
            except RowExcluded as why:
                excluded.append(ExcludedRow(uid=uid, key=key, why=why))
        table = pa.Table.from_pylist(good, schema=SCHEMA)
        return UnitResult(rows_in=rows_in, table=table, excluded=excluded, notes=notes)

    def _row(self, uid: str, key: str, sample: Sample, notes: dict[str, list[str]]) -> dict[str, Any]:
        found = examine(sample.data, self._settings.max_pixels, draft_side=BASE_SIDE)
        for note in found.notes:
            notes[note].append(key)
        for other in sample.others:
            notes[WITH_ANOTHER].append(f"{key} (and .{other})")
        if not (sample.alt_text or "").strip():
            notes[WITHOUT_CAPTION].append(f"{key} (its .json has {sample.keys})" if sample.keys else key)
        members = [{"name": name, "data": data} for name, data in sample.members] if sample.members else None
        return {
            "uid": uid,
            "key": key,
            "sha256": hashlib.sha256(sample.data).digest(),
            "image": sample.data,
            "width": found.size[0],
            "height": found.size[1],
            "alt_text": sample.alt_text,
            "view_group": sample.view_group,
            **vars(signature(found.picture)),
            "members": members,
            "columns": sample.columns,
        }


def _each_caption(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries; a sample of several captions once for each of them."""
    for name, entry in entries:
        if isinstance(entry, Sample) and len(entry.captions) >= MOST_CAPTIONS:
            number = 1 + len(entry.captions)
            yield name, DataError(DataFault.TOO_MANY_CAPTIONS, f"{number}, and each would be a row with the picture")
            continue
        yield name, entry
        if isinstance(entry, Sample):
            for number, caption in enumerate(entry.captions, start=1):
                yield f"{name}#caption{number}", replace(entry, alt_text=caption, captions=())


def _checked(entry: Sample | RowExcluded, is_repeated: bool) -> Sample:
    if isinstance(entry, RowExcluded):
        raise entry
    for name, fault in (("alt_text", DataFault.UNREADABLE_CAPTION), ("view_group", DataFault.UNREADABLE_TEXT)):
        if not is_text(getattr(entry, name) or ""):
            raise DataError(fault, f"{name} is no text: {getattr(entry, name)!a}")
    if is_repeated:
        raise DataError(DataFault.DUPLICATE_KEY, "an earlier sample of the shard has this key")
    return entry

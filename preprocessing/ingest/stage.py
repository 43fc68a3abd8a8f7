"""Stage `ingest`: every picture of a source decoded once: checked to its last byte, sized, hashed, given an identity."""

from __future__ import annotations

import hashlib

import pyarrow as pa

from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.ledger import Aside, Outcome
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import DataError, DataFault, RowDropped, naming
from realcustom.preprocessing.hashes import BASE_SIDE, signature
from realcustom.preprocessing.ingest.sample import Entry, Fault, Sample, Unwanted, is_text
from realcustom.preprocessing.ingest.sources import read_source
from realcustom.preprocessing.pictures import decode_with_size
from realcustom.preprocessing.settings import ExecutionSettings, IngestSettings
from realcustom.record import picture_uid

SCHEMA = pa.schema([*tables.HASHED, tables.MEMBERS, tables.COLUMNS])


class Ingest:
    """Source unit -> table of `SCHEMA`. A picture that does not decode to its last byte is quarantined."""

    def __init__(self, settings: IngestSettings, execution: ExecutionSettings):
        self._settings = settings
        self._execution = execution

    def __call__(self, unit: Unit) -> Outcome:
        """Read and check all entries of `unit`, in the source's order."""
        rows_in, aside, good = 0, [], []
        seen: set[str] = set()
        for entry in read_source(unit, self._settings, self._execution):
            rows_in += 1
            key = entry.key.encode("utf-8", "backslashreplace").decode()  # a file's name need not be text
            uid = picture_uid(key)
            try:
                sample = _wanted(entry)
                if uid in seen:
                    raise DataError(DataFault.DUPLICATE_KEY, "an earlier sample of the shard has this key")
                seen.add(uid)
                with naming(f"unit {unit.name}, row {uid} ({key})"):
                    good.append(self._row(uid, sample))
            except DataError as error:
                reason, message = error.fault.value, error.message
                aside.append(Aside(uid=uid, key=key, quarantined=True, reason=reason, message=message))
            except RowDropped as rule:
                reason, message = rule.reason, rule.message
                aside.append(Aside(uid=uid, key=key, quarantined=False, reason=reason, message=message))
        return Outcome(rows_in=rows_in, table=pa.Table.from_pylist(good, schema=SCHEMA), aside=aside)

    def _row(self, uid: str, sample: Sample) -> dict:
        picture, (width, height) = decode_with_size(sample.data, self._settings.max_pixels, draft_side=BASE_SIDE)
        members = [{"name": name, "data": data} for name, data in sample.members] if sample.members else None
        return {
            "uid": uid,
            "key": sample.key,
            "sha256": hashlib.sha256(sample.data).digest(),
            "image": sample.data,
            "width": width,
            "height": height,
            "alt_text": sample.alt_text,
            "view_group": sample.view_group,
            **vars(signature(picture)),
            "members": members,
            "columns": sample.columns,
        }


def _wanted(entry: Entry) -> Sample:
    if isinstance(entry, Fault):
        raise DataError(entry.fault, entry.message)
    if isinstance(entry, Unwanted):
        raise RowDropped(entry.reason, entry.message)
    for name, fault in (("alt_text", DataFault.UNREADABLE_CAPTION), ("view_group", DataFault.UNREADABLE_TEXT)):
        if not is_text(getattr(entry, name) or ""):
            raise DataError(fault, f"{name} is no text: {getattr(entry, name)!a}")
    return entry

"""`export`: a stage's rows as webdataset shards, one per unit.

Samples that came from a webdataset are written back with their names, byte for byte; a picture of another source
becomes a new sample. Samples are sorted by key and their members by name, and headers hold no time and no owner.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.ledger import RowLedger, UnitResult
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import DataError, DataFault
from realcustom.preprocessing.ingest.tar import write_archive
from realcustom.preprocessing.ingest.webdataset import split_key
from realcustom.preprocessing.settings import ExportSettings

ANNOTATIONS = "realcustom.json"  # extension of the member with the stages' results

_SIGNATURES = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG", "png"), (b"GIF8", "gif"), (b"BM", "bmp"))
_Members = dict[str, bytes]  # members by name in the archive


class Export:
    """Table of pictures -> a tar. A row is quarantined if an earlier row of the unit has the same sample key."""

    def __init__(self, settings: ExportSettings):
        self._settings = settings

    def __call__(self, unit: Unit, table: pa.Table) -> UnitResult:
        """Write every row as a sample."""
        tables.require_columns(table.schema, tables.INGESTED, f"export, unit {unit.name}")
        ledger = RowLedger(table, unit.name)
        samples: dict[str, _Members] = {}

        def add(index: int) -> None:
            row = table.slice(index, 1).to_pylist()[0]
            key, members = self._sample(row)
            if key in samples:  # from another shard, in a table that a user combined
                raise DataError(DataFault.DUPLICATE_KEY, f"an earlier row of the table is the sample '{key}'")
            samples[key] = members

        ledger.each(add)
        data = write_archive(member for key in sorted(samples) for member in sorted(samples[key].items()))
        return UnitResult(rows_in=table.num_rows, table=ledger.rows(), excluded=ledger.excluded, file=data)

    def _sample(self, row: dict[str, Any]) -> tuple[str, _Members]:
        if row["image"] is None:
            raise DataError(DataFault.MISSING_IMAGE, "the row holds no picture")
        if row.get("members"):
            found = {member["name"]: member["data"] for member in row["members"]}
            members = {name: row["image"] if data is None else data for name, data in found.items()}
            key = split_key(next(iter(members)))[0]
            if self._settings.annotations:
                members[f"{key}.{ANNOTATIONS}"] = facts_of(row)
            return key, members
        key = row["uid"]
        members = {f"{key}.{_extension(row['image'])}": row["image"]}
        if row["alt_text"] is not None:
            members[f"{key}.txt"] = row["alt_text"].encode()
        if self._settings.annotations:
            members[f"{key}.json"] = facts_of(row)
        return key, members


def facts_of(row: dict[str, Any]) -> bytes:
    """A row as JSON: every column that does not hold bytes; sha256 in hex."""
    known = {name: value for name, value in row.items() if name != "members" and not isinstance(value, bytes)}
    known["sha256"] = row["sha256"].hex()
    if row.get("columns") is not None:
        known["columns"] = json.loads(row["columns"])
    return json.dumps(known, ensure_ascii=False, sort_keys=True, default=str).encode("utf-8", "replace") + b"\n"


def _extension(data: bytes) -> str:
    """The extension by the picture's first bytes: its name in the source may be wrong."""
    return next((extension for start, extension in _SIGNATURES if data.startswith(start)), "webp")

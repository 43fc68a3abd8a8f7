"""Stage `select`: thresholds over scores, and duplicates in the whole corpus. Cheap: run it again as often as needed.

First a global phase over small columns (search.py) finds the duplicates; then each unit is selected by itself, its
input's identity includes the hash of its block's duplicates.
"""

from __future__ import annotations

import pyarrow as pa

from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.ledger import RowLedger, UnitResult
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import RowDropped
from realcustom.preprocessing.select.thresholds import explain, failed_threshold
from realcustom.preprocessing.settings import SelectSettings
from realcustom.store import Store


class Select:
    """Scored table -> its rows that pass every threshold and are not dropped as copies."""

    def __init__(self, settings: SelectSettings, store: Store):
        self._settings, self._store = settings, store

    def __call__(self, unit: Unit, table: pa.Table) -> UnitResult:
        """Keep each row, or drop it with a reason. The unit's second file holds the duplicates of its block."""
        tables.require_columns(table.schema, (*tables.HASHED, *tables.SCORE_FIELDS), f"select, unit {unit.name}")
        duplicates = tables.from_parquet(self._store.read(unit.files[1].uri))
        columns = (duplicates[name].to_pylist() for name in ("uid", "reason", "survivor"))
        copies = {uid: (reason, survivor) for uid, reason, survivor in zip(*columns, strict=True)}
        ledger = RowLedger(table, unit.name)
        failed = failed_threshold(table, self._settings)
        for index, uid in enumerate(table["uid"].to_pylist()):
            reason = failed[index]
            if reason is not None:
                ledger.exclude(index, RowDropped(reason, explain(table, index, reason, self._settings)))
            elif uid in copies:
                reason, survivor = copies[uid]
                ledger.exclude(index, RowDropped(reason, f"of {survivor}"))
        return UnitResult(rows_in=table.num_rows, table=ledger.rows(), excluded=ledger.excluded)

"""Stage `subjects` without models: the whole picture is the subject, named by the first target word of its caption."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from realcustom.preprocessing import tables
from realcustom.preprocessing.caption.stage import NO_TARGET_WORD
from realcustom.preprocessing.engine.ledger import RowLedger, UnitResult
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import RowDropped
from realcustom.preprocessing.subjects.records import record_table


class WholePictures:
    """Captioned table -> one training record for each picture: its box is the picture, it has no mask and no cut-out."""

    def __call__(self, unit: Unit, table: pa.Table) -> UnitResult:
        """Make the records; nothing is decoded. A row without a target word, of a user's own table, is dropped."""
        needed = (*tables.INGESTED, *tables.CAPTION_FIELDS)
        tables.require_columns(table.schema, needed, f"subjects, unit {unit.name}")
        ledger = RowLedger(table, unit.name)
        targets, widths, heights = (table[name].to_pylist() for name in ("targets", "width", "height"))

        def check(row: int) -> None:
            if not targets[row]:
                raise RowDropped(NO_TARGET_WORD)

        ledger.each(check)
        found: list[tuple[int, dict[str, Any]]] = [
            (row, {"target": targets[row][0], "subject_box": (0.0, 0.0, float(widths[row]), float(heights[row]))})
            for row in ledger.remaining()
        ]
        return UnitResult(
            rows_in=table.num_rows,
            table=record_table(table, found, {}),
            excluded=ledger.excluded,
            parent="parent_uid",
        )

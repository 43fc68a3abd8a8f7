"""Stage `select`: thresholds over scores, and duplicates over the whole corpus. Cheap, to be run again at will.

First a global phase over small columns (global_phase.py) finds the duplicates; then each unit is selected by itself,
its input's identity including the hash of the duplicates that it may hold.
"""

from __future__ import annotations

import pyarrow as pa

from realcustom.errors import UsageError
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.ledger import Outcome, RowAccount
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.ingest.sample import read
from realcustom.preprocessing.select.thresholds import explain, failed_threshold
from realcustom.preprocessing.settings import ExecutionSettings, SelectSettings


class Select:
    """Scored table -> its rows that pass every threshold and are no copies."""

    def __init__(self, settings: SelectSettings, execution: ExecutionSettings):
        self._settings, self._execution = settings, execution

    def __call__(self, unit: Unit, table: pa.Table) -> Outcome:
        """Each row is kept or dropped, because. The unit's second file holds the duplicates of its block."""
        tables.require_columns(table.schema, (*tables.HASHED, *tables.SCORE_FIELDS), f"select, unit {unit.name}")
        duplicates = tables.from_parquet(read(unit.files[1].uri, self._execution))
        columns = (duplicates[name].to_pylist() for name in ("uid", "reason", "survivor"))
        copies = {uid: (reason, survivor) for uid, reason, survivor in zip(*columns, strict=True)}
        account = RowAccount(table, unit.name)
        failed = failed_threshold(table, self._settings)
        for index, uid in enumerate(table["uid"].to_pylist()):
            reason = failed[index]
            if reason is not None:
                account.drop(index, reason, explain(table, index, reason, self._settings))
            elif uid in copies:
                reason, survivor = copies[uid]
                account.drop(index, reason, f"of {survivor}")
        return Outcome(rows_in=table.num_rows, table=account.rows(), aside=account.aside)


def check_scores(settings: SelectSettings, description: dict | None) -> None:
    """Raise ValueError if a threshold is set over scores that the stage before did not compute."""
    if description is None:  # a user's own table: what it holds is known when it is read
        return
    models = description["models"]
    wanted = {
        "min_aesthetic": (settings.min_aesthetic, ("heads", "aesthetic")),
        "max_nsfw": (settings.max_nsfw, ("heads", "nsfw")),
        "max_watermark": (settings.max_watermark, ("heads", "watermark")),
        "min_image_text": (settings.min_image_text, ("clip",)),
    }
    for name, (value, makers) in wanted.items():
        if value is not None and not any(maker in models for maker in makers):
            without = " and ".join(f"score.{maker}" for maker in makers)
            raise UsageError(f"select.{name}={value} has nothing to judge: score ran without {without}")

"""Stage `views`: the uids of a record's other views, those that `subjects` knew and those that the search found.

The search (search.py) looks at all units at once; then each unit is done by itself, its input's identity includes the hash of
its block's links. No row leaves.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import pyarrow as pa

from realcustom import record
from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.ledger import UnitResult
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.engine.worker import StageJob

if TYPE_CHECKING:
    from realcustom.preprocessing.views.embedder import Embedder


class Views:
    """Training records -> the same with more `view_uids`."""

    def __init__(self, job: StageJob):
        self._job = job
        if not job.weights:  # a check whether the encoder could be loaded; here it does not run
            self._embedder()

    def __call__(self, unit: Unit, table: pa.Table) -> UnitResult:
        """Add what was found. The unit's second file, where there is one, holds the links of its block."""
        tables.require_columns(table.schema, record.SCHEMA, f"views, unit {unit.name}")
        found: dict[str, list[str]] = defaultdict(list)
        for file in unit.files[1:]:
            links = tables.from_parquet(self._job.store.read(file.uri))
            for uid, other in zip(links["uid"].to_pylist(), links["other"].to_pylist(), strict=True):
                found[uid].append(other)
        columns = zip(table["uid"].to_pylist(), table["view_uids"].to_pylist(), strict=True)
        views = [list(dict.fromkeys([*(known or []), *found.get(uid, [])])) for uid, known in columns]
        field = tables.made_by(record.SCHEMA.field("view_uids"), self._job.models["encoder"])
        return UnitResult(rows_in=table.num_rows, table=tables.with_column(table, field, views))

    def try_batch(self, size: int) -> None:
        """Run the encoder on a batch of that size. Raises torch.OutOfMemoryError where it does not fit."""
        from realcustom.preprocessing.engine.models import blank_pictures

        self._embedder()(blank_pictures(size), size)

    def _embedder(self) -> Embedder:
        from realcustom.preprocessing.views.embedder import Embedder  # torch only where a model runs

        runtime = self._job.runtime()
        assert runtime is not None, "checked with the settings"
        return Embedder(self._job.section, runtime)

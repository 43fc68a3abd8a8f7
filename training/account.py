"""What became of each record: trained on, held out, or dropped. Rows in = trained + held out + dropped."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

import numpy as np

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.store import Store
from realcustom.training.features import BadRecord

logger = logging.getLogger(__name__)


class Dropped:
    """The records of a run that were dropped, one small file each in `OUTPUT/dropped`: any worker writes, a resume keeps."""

    def __init__(self, output: str, store: Store, records: int, most: float) -> None:
        """Begin with none that this start knows of.

        Args:
            records: of the run.
            most: share of them that may be dropped.
        """
        self._folder, self._store = storage.join(output, "dropped"), store
        self._records, self._most = records, most
        self._said: set[int] = set()
        self._lock = threading.Lock()  # batches are made in a thread

    def add(self, error: BadRecord) -> None:
        """Drop a record, once. Raises UsageError where a worker meets more of them than may be dropped."""
        with self._lock:
            if error.number in self._said:
                return
            self._said.add(error.number)
            count = len(self._said)
        logger.warning("dropped: %s", error)
        note = {"uid": error.uid, "number": error.number, "reason": str(error)}
        self._store.write(storage.join(self._folder, f"{error.number:012d}.json"), json.dumps(note).encode())
        if count > self._most * self._records:
            raise UsageError(
                f"{count} of {self._records} records cannot be used, more than "
                f"train.max_dropped_fraction={self._most:g}; the last one: {error}"
            )

    def read(self) -> list[dict[str, Any]]:
        """All of them, of all workers and starts, by number."""
        names = [name for name in self._store.list_names(self._folder) if name.endswith(".json")]
        return [json.loads(self._store.read(storage.join(self._folder, name))) for name in names]


def account(records: int, held_out: np.ndarray, dropped: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of records, for report.json.

    Args:
        held_out: numbers of all records that are not trained on.
    """
    numbers = [note["number"] for note in dropped]
    lost = int(np.isin(held_out, numbers).sum())
    return {
        "in": records,
        "trained": records - len(held_out) - (len(numbers) - lost),
        "held_out": len(held_out) - lost,
        "dropped": len(numbers),
        "dropped_records": [{"uid": note["uid"], "reason": note["reason"]} for note in dropped],
    }

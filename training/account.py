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

    def __init__(self, output: str, store: Store, records: int, most: float, workers: int = 1) -> None:
        """Begin with none that this start knows of.

        Args:
            records: of the run.
            most: share of them that may be dropped, by all workers and starts together.
            workers: that drop records at the same time.
        """
        self._folder, self._store = storage.join(output, "dropped"), store
        self._records, self._most = records, most
        self._said: set[int] = set()
        # records that this worker drops between two counts of the files; all workers together: an eighth of those that may be
        self._between = max(1, int(most * records / (8 * workers)))
        self._lock = threading.Lock()  # batches are made in a thread

    def add(self, error: BadRecord) -> None:
        """Drop a record, once. Raises UsageError where the run has dropped more of them than may be."""
        with self._lock:
            if error.number in self._said:
                return
            self._said.add(error.number)
            counts = (len(self._said) - 1) % self._between == 0
        logger.warning("dropped: %s", error)
        note = {"uid": error.uid, "number": error.number, "reason": str(error)}
        self._store.write(storage.join(self._folder, f"{error.number:012d}.json"), json.dumps(note).encode())
        if counts and (count := len(self._names())) > self._most * self._records:
            raise UsageError(
                f"{count} of {self._records} records cannot be used, more than "
                f"train.max_dropped_fraction={self._most:g}; the last one: {error}"
            )

    def read(self) -> list[dict[str, Any]]:
        """All of them, of all workers and starts, by number."""
        return [json.loads(self._store.read(storage.join(self._folder, name))) for name in self._names()]

    def _names(self) -> list[str]:
        return [name for name in self._store.list_names(self._folder) if name.endswith(".json")]


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

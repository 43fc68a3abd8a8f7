"""What a stage made of a unit: rows, and an account in which no row of the input is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.unit import Counts, SealedUnit, Unit
from realcustom.preprocessing.errors import DataError, DataFault, StageBug, naming
from realcustom.preprocessing.pictures import decode, decode_small


@dataclass(frozen=True, kw_only=True)
class Aside:
    """An input row that did not go on."""

    uid: str
    key: str  # what a person can find it by in the source
    quarantined: bool  # true: its data are at fault; false: dropped by a rule
    reason: str
    message: str = ""


@dataclass(kw_only=True)
class Outcome:
    """A unit's result. `table` holds the rows that go on; one input row may have become several there."""

    rows_in: int  # counted at the source
    table: pa.Table
    aside: list[Aside] = field(default_factory=list)
    rejected: dict[str, int] = field(default_factory=dict)  # candidates, by reason
    parent: str = "uid"  # column of `table` that names the input row
    file: bytes | None = None  # what is written in the place of `table`, where it is no table

    def seal(self, unit: Unit) -> SealedUnit:
        """The outputs as bytes. Raises StageBug if the account does not close."""
        counts = Counts(
            rows_in=self.rows_in,
            kept=pc.count_distinct(self.table[self.parent]).as_py(),
            rows_out=self.table.num_rows,
            rejected=dict(self.rejected),
        )
        for entry in self.aside:
            tally = counts.quarantined if entry.quarantined else counts.dropped
            tally[entry.reason] = tally.get(entry.reason, 0) + 1
        if counts.rows_in != counts.kept + len(self.aside):
            raise StageBug(
                f"unit {unit.name}: {counts.rows_in} rows came in, {counts.kept} were written and {len(self.aside)} "
                f"put aside; is a uid there twice?"
            )
        lines = [json.dumps(_line(entry), ensure_ascii=False) for entry in self.aside]
        aside = "".join(line + "\n" for line in lines).encode("utf-8", "replace")
        data = self.file if self.file is not None else tables.to_parquet(self.table)
        return SealedUnit(rows=data, aside=aside, counts=counts)


def _line(entry: Aside) -> dict[str, str]:
    outcome = "quarantined" if entry.quarantined else "dropped"
    line = {"uid": entry.uid, "key": entry.key, "outcome": outcome, "reason": entry.reason}
    return {**line, "message": entry.message} if entry.message else line


class RowAccount:
    """Goes over a unit's table row by row and keeps the account of those that do not go on."""

    def __init__(self, table: pa.Table, unit: str):
        self.table = table
        self._unit = unit
        self._uids: list[str] = table["uid"].to_pylist()
        self._keys: list[str] = table["key"].to_pylist() if "key" in table.schema.names else self._uids
        self._aside: dict[int, Aside] = {}  # by index

    @property
    def aside(self) -> list[Aside]:
        """The rows that do not go on, in the table's order: when each was found out depends on batches."""
        return [self._aside[index] for index in sorted(self._aside)]

    def name(self, index: int) -> str:
        """How messages call a row."""
        return f"unit {self._unit}, row {self._uids[index]} ({self._keys[index]})"

    def drop(self, index: int, reason: str, message: str = "") -> None:
        """Put a row aside by a rule."""
        self._put(index, quarantined=False, reason=reason, message=message)

    def quarantine(self, index: int, error: DataError) -> None:
        """Put a row aside because its data are at fault."""
        self._put(index, quarantined=True, reason=error.fault.value, message=error.message)

    def each(self, work: Callable[[int], None]) -> None:
        """Call `work` with each remaining row's index; a DataError puts the row aside, another error names it."""
        for index in self.remaining():
            try:
                with naming(self.name(index)):
                    work(index)
            except DataError as error:
                self.quarantine(index, error)

    def remaining(self) -> list[int]:
        """Indices of the rows that are not aside, ascending."""
        return [index for index in range(self.table.num_rows) if index not in self._aside]

    def picture_batches(
        self, size: int, longest_side: int | None = None
    ) -> Iterator[tuple[list[int], list[Image.Image]]]:
        """The remaining rows' indices and decoded pictures, at most `size` at a time, scaled down to `longest_side`.

        A picture that does not decode puts its row aside.
        """
        remaining = self.remaining()
        for start in range(0, len(remaining), size):
            indices, pictures = [], []
            for index in remaining[start : start + size]:
                try:
                    with naming(self.name(index)):
                        data = self.table["image"][index].as_py()
                        if data is None:
                            raise DataError(DataFault.MISSING_IMAGE, "the row holds no picture")
                        pictures.append(decode(data) if longest_side is None else decode_small(data, longest_side))
                        indices.append(index)
                except DataError as error:
                    self.quarantine(index, error)
            if indices:
                yield indices, pictures

    def batch_name(self, indices: list[int]) -> str:
        """How messages call a batch of rows."""
        return f"{self.name(indices[0])} and the {len(indices) - 1} after it"

    def rows(self) -> pa.Table:
        """The rows that are not aside."""
        if not self._aside:
            return self.table
        return self.table.take(pa.array(self.remaining(), type=pa.int64()))

    def _put(self, index: int, *, quarantined: bool, reason: str, message: str) -> None:
        assert index not in self._aside, self.name(index)
        uid, key = self._uids[index], self._keys[index]
        self._aside[index] = Aside(uid=uid, key=key, quarantined=quarantined, reason=reason, message=message)

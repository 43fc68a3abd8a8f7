"""A stage's result for a unit: rows, and a ledger that accounts for every input row."""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from realcustom.preprocessing import tables
from realcustom.preprocessing.engine.progress import PictureProgress
from realcustom.preprocessing.engine.unit import FIRST_NAMES, Counts, SealedUnit, Unit
from realcustom.preprocessing.errors import DataError, DataFault, RowExcluded, StageBug, naming
from realcustom.preprocessing.pictures import decode, decode_small

P = TypeVar("P")


@dataclass(frozen=True, kw_only=True)
class ExcludedRow:
    """An input row that was excluded."""

    uid: str
    key: str  # its name in the source, for people
    why: RowExcluded

    def __post_init__(self) -> None:
        # kept until the unit is sealed, and a traceback holds the frames that it came through, pictures among their locals
        self.why.__traceback__ = self.why.__cause__ = self.why.__context__ = None

    def to_dict(self) -> dict[str, str]:
        """As a line of the unit's file in `aside/`."""
        outcome = "quarantined" if self.why.quarantined else "dropped"
        line = {"uid": self.uid, "key": self.key, "outcome": outcome, "reason": self.why.reason}
        return {**line, "message": self.why.message} if self.why.message else line


@dataclass(kw_only=True)
class UnitResult:
    """A unit's result. `table` holds the rows that go on; one input row may give several."""

    rows_in: int  # counted at the source
    table: pa.Table
    excluded: list[ExcludedRow] = field(default_factory=list)
    rejected: dict[str, int] = field(default_factory=dict)  # candidates, by reason
    notes: dict[str, list[str]] = field(default_factory=dict)  # what is to be said of kept rows, with their names
    parent: str = "uid"  # column of `table` that identifies the input row
    file: bytes | None = None  # the bytes to write, where they are not those of `tables.to_parquet(table)`

    def seal(self, unit: Unit) -> SealedUnit:
        """The outputs as bytes. Raises StageBug if the counts do not add up."""
        counts = Counts(
            rows_in=self.rows_in,
            kept=pc.count_distinct(self.table[self.parent]).as_py(),
            rows_out=self.table.num_rows,
            rejected=dict(self.rejected),
            noted={name: len(rows) for name, rows in self.notes.items()},
            first={name: sorted(rows)[:FIRST_NAMES] for name, rows in self.notes.items()},
        )
        for row in self.excluded:
            tally = counts.quarantined if row.why.quarantined else counts.dropped
            tally[row.why.reason] = tally.get(row.why.reason, 0) + 1
        if counts.rows_in != counts.kept + len(self.excluded):
            raise StageBug(
                f"unit {unit.name}: {counts.rows_in} rows came in, {counts.kept} were written and {len(self.excluded)} "
                f"excluded; is a uid there twice?"
            )
        lines = [json.dumps(row.to_dict(), ensure_ascii=False) for row in self.excluded]
        excluded = "".join(line + "\n" for line in lines).encode("utf-8", "replace")
        data = self.file if self.file is not None else tables.to_parquet(self.table)
        return SealedUnit(rows=data, excluded=excluded, counts=counts)


class RowLedger:
    """Goes through a unit's table row by row and notes the excluded rows."""

    def __init__(self, table: pa.Table, unit: str):
        self.table = table
        self._unit = unit
        self._uids: list[str] = table["uid"].to_pylist()
        self._keys: list[str] = table["key"].to_pylist() if "key" in table.schema.names else self._uids
        self._excluded: dict[int, ExcludedRow] = {}  # by index

    @property
    def excluded(self) -> list[ExcludedRow]:
        """The excluded rows in the table's order: the order in which they were found depends on batches."""
        return [self._excluded[index] for index in sorted(self._excluded)]

    def name(self, index: int) -> str:
        """A row's name in messages."""
        return f"unit {self._unit}, row {self._uids[index]} ({self._keys[index]})"

    def exclude(self, index: int, why: RowExcluded) -> None:
        """Exclude a row."""
        assert index not in self._excluded, self.name(index)
        self._excluded[index] = ExcludedRow(uid=self._uids[index], key=self._keys[index], why=why)

    def each(self, work: Callable[[int], None]) -> None:
        """Call `work` with each remaining row's index; a RowExcluded excludes the row, another error names it."""
        for index in self.remaining():
            try:
                with naming(self.name(index)):
                    work(index)
            except RowExcluded as why:
                self.exclude(index, why)

    def remaining(self) -> list[int]:
        """Indices of the rows that are not excluded, ascending."""
        return [index for index in range(self.table.num_rows) if index not in self._excluded]

    def picture_batches(
        self,
        size: int,
        longest_side: int | None = None,
        alike: Callable[[int], Hashable] | None = None,
        threads: int = 1,
    ) -> Iterator[tuple[list[int], list[Image.Image]]]:
        """`prepared_batches` of the pictures themselves, scaled down to `longest_side`."""

        def read(data: bytes) -> Image.Image:
            return decode(data) if longest_side is None else decode_small(data, longest_side)

        return self.prepared_batches(size, lambda index, data: read(data), threads, alike)

    def prepared_batches(
        self,
        size: int,
        prepare: Callable[[int, bytes], P],
        threads: int = 1,
        alike: Callable[[int], Hashable] | None = None,
    ) -> Iterator[tuple[list[int], list[P]]]:
        """The remaining rows' indices and what `prepare` makes of each one's encoded picture, at most `size` at a time.

        It is made in threads, a batch ahead of the one that the caller works on. A row whose picture does not decode is
        excluded. Rows of which `alike` says the same come in the same batches.
        """
        groups: dict[Hashable, list[int]] = {}
        for index in self.remaining():
            groups.setdefault(None if alike is None else alike(index), []).append(index)
        batches = [rows[start : start + size] for rows in groups.values() for start in range(0, len(rows), size)]
        progress, begun = PictureProgress(self._unit, sum(map(len, batches))), 0
        # decoders silence warnings, which is the whole process's matter: here, so that threads do not undo each other's
        with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(threads) as pool:
            ahead: deque[list[tuple[int, Future[P]]]] = deque()
            for batch in [*batches, []]:
                ahead.append([(index, pool.submit(self._prepare, index, prepare)) for index in batch])
                if len(ahead) < 2:
                    continue
                progress.reached(begun)
                begun += len(ahead[0])
                made = dict(self._finished(ahead.popleft()))
                if made:
                    yield list(made), list(made.values())

    def _prepare(self, index: int, prepare: Callable[[int, bytes], P]) -> P:
        with naming(self.name(index)):
            data = self.table["image"][index].as_py()
            if data is None:
                raise DataError(DataFault.MISSING_IMAGE, "the row holds no picture")
            return prepare(index, data)

    def _finished(self, batch: Sequence[tuple[int, Future[P]]]) -> Iterator[tuple[int, P]]:
        for index, future in batch:
            try:
                yield index, future.result()
            except RowExcluded as why:
                self.exclude(index, why)

    def batch_name(self, indices: list[int]) -> str:
        """The name of a batch of rows in messages."""
        return f"{self.name(indices[0])} and the {len(indices) - 1} after it"

    def rows(self) -> pa.Table:
        """The rows that are not excluded."""
        if not self._excluded:
            return self.table
        return self.table.take(pa.array(self.remaining(), type=pa.int64()))

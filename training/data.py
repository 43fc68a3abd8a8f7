"""Which training record is seen when: what is held out, and the permutation of an epoch. No tensors, no files.

The order is a function of (seed, epoch) alone and the position in it is the optimizer step, so a resumed run, on any
number of workers, continues with exactly the next records: each once per epoch.

Records are read in **parts**: runs of whole row groups of one file. Parts are permuted. `open_parts` consecutive ones,
W, are open at a time: the records of a part, permuted, are dealt out over the W **hands** in which it is open, and a
hand is an even mixture of what its W parts gave. So a step reads from W parts, and from one hand to the next one part is
exchanged.

Where records have aspect-ratio buckets, each bucket's records are ordered so by themselves, with the same parts in the same
hands, and make batches of one bucket. A batch comes when the other buckets are at the hand of one of its places, drawn at random:
all buckets are at the same parts at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from realcustom.buckets import Size
from realcustom.errors import UsageError
from realcustom.training.index import RecordIndex

VERSION = 2  # of the order; a run begun in another one cannot be continued
PART_BYTES = 2**27  # uncompressed; a part is cut at the row group that passes it


def split(index: RecordIndex, fraction: float, at_most: int) -> tuple[np.ndarray, np.ndarray]:
    """Record numbers (held out, validation), each ascending: all that are not trained on, and those that are validated on.

    A picture's records are all on one side. Held out are the pictures whose rank is below `fraction`, in ascending order,
    up to `at_most` records; the picture with the smallest rank always is. Of its records `at_most` are validated on.

    Raises UsageError if no record is left to train on.
    """
    candidates = index.by_rank[: at_most + 1]
    first = index.rank[candidates[0]]
    while index.rank[candidates[-1]] == first and len(candidates) < len(index):  # its picture goes on
        candidates = index.by_rank[: 2 * len(candidates)]
    ranks = index.rank[candidates]
    ends = np.flatnonzero(np.diff(ranks, append=np.inf)) + 1  # where a picture's records end
    if len(candidates) < len(index):
        ends = ends[:-1]  # the last picture may go on
    fits = (ends <= at_most) & (ranks[ends - 1] < fraction)
    fits[0] = True
    held_out = np.sort(candidates[: ends[fits][-1]])
    if len(held_out) == len(index):
        raise UsageError(f"{len(index)} training record(s): too few, all of their pictures would be held out")
    return held_out, np.sort(candidates[: min(at_most, len(held_out))])


@dataclass(frozen=True, kw_only=True)
class Share:
    """A worker's share of a step: some of the batch's records."""

    step: int  # optimizer step, from 0
    epoch: int
    numbers: np.ndarray  # (n,) record numbers; n is the same on every worker, in every step
    weights: np.ndarray  # (n,) float32: 1, or 0 for padding
    total_weight: float  # sum of the weights of the whole batch, over all workers


class DataOrder:
    """The stateless order of the records: (step, worker) -> that worker's share of the step's batch."""

    def __init__(self, index: RecordIndex, held_out: np.ndarray, batch_size: int, seed: int, open_parts: int) -> None:
        """Order all records but those that are `held_out`, ascending numbers."""
        self.index, self.held_out, self.batch_size, self.seed = index, held_out, batch_size, seed
        self._starts = _part_starts(index)  # (P + 1,)
        self._open = min(open_parts, len(self._starts) - 1)
        numbers = [None] if index.bucket is None else range(len(index.bucket_sizes))
        orders = [BucketOrder(index, self._starts, held_out, seed, self._open, number) for number in numbers]
        self.buckets = tuple(order for order in orders if order.records)
        self._batches = [-(-order.records // batch_size) for order in self.buckets]
        self.steps_per_epoch = sum(self._batches)
        self._epoch = -1

    @property
    def open_bytes(self) -> int:
        """Uncompressed bytes of the largest parts that may be open at a time."""
        ends = np.cumsum(self.index.group_bytes)[np.searchsorted(self.index.group_row, self._starts[1:]) - 1]
        return int(np.sort(np.diff(ends, prepend=0))[-self._open :].sum())

    @property
    def not_trained(self) -> list[Size]:
        """(width, height) of the buckets whose records are all held out."""
        trained = {order.bucket for order in self.buckets}
        held_out = [] if self.index.bucket is None else np.unique(self.index.bucket[self.held_out]).tolist()
        return [self.index.bucket_sizes[number] for number in held_out if number not in trained]

    def step_of_largest(self) -> int:
        """The first step whose batch has the largest latents."""
        if len(self.buckets) == 1:
            return 0
        sizes = [self.index.bucket_sizes[order.bucket] for order in self.buckets if order.bucket is not None]
        largest = max(range(len(sizes)), key=lambda place: math.prod(sizes[place]))
        return next(step for step in range(self.steps_per_epoch) if self._place(0, step)[0] == largest)

    def share(self, step: int, rank: int, world_size: int) -> Share:
        """The share of worker `rank` of `world_size` in optimizer step `step` (from 0).

        The last batch of an epoch (of a bucket in it), and one that does not divide by the number of workers, is padded
        with rows of weight zero. A batch is sorted by part and row, so that a worker's shares of consecutive steps are of
        the same row groups.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        bucket, position = self._place(epoch, place)
        batch = self.buckets[bucket].batch(epoch, position * self.batch_size, (position + 1) * self.batch_size)
        size = -(-self.batch_size // world_size)
        mine = batch[rank * size : (rank + 1) * size]
        padded = np.concatenate([mine, np.full(size - len(mine), batch[0])])
        weights = (np.arange(size) < len(mine)).astype(np.float32)
        return Share(step=step, epoch=epoch, numbers=padded, weights=weights, total_weight=float(len(batch)))

    def _place(self, epoch: int, place: int) -> tuple[int, int]:
        """Which bucket the batch at a place of an epoch has, and which of that bucket's batches it is."""
        if len(self.buckets) == 1:
            return 0, place
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch, 2])
            rows = [(np.arange(count) + random.random(count)) * self.batch_size for count in self._batches]
            when = [order.hand_of(epoch, places) for order, places in zip(self.buckets, rows, strict=True)]
            order = np.argsort(np.concatenate(when), kind="stable")
            self._bucket = np.repeat(np.arange(len(when)), self._batches)[order]
            self._position = np.concatenate([np.arange(count) for count in self._batches])[order]
            self._epoch = epoch
        return int(self._bucket[place]), int(self._position[place])


class BucketOrder:
    """The order of the records of one bucket; where there are no buckets, of all."""

    def __init__(
        self,
        index: RecordIndex,
        starts: np.ndarray,
        held_out: np.ndarray,
        seed: int,
        open_parts: int,
        bucket: int | None,
    ) -> None:
        """Order the records of `bucket` (None: all) but those that are `held_out`.

        Args:
            starts: (P + 1,) of the parts, as `_part_starts`.
        """
        self.seed, self.bucket, self._starts, self._open = seed, bucket, starts, open_parts
        self._of, self._held_out = index.bucket, held_out
        sizes = np.diff(starts)
        if self._of is not None:
            self._held_out = held_out[self._of[held_out] == bucket]
            filled = sizes > 0  # reduceat takes a part of no rows for one of one
            sizes[filled] = np.add.reduceat(self._of == bucket, starts[:-1][filled], dtype=np.int64)
        self._sizes = sizes - np.diff(np.searchsorted(self._held_out, starts))  # (P,)
        self.records = int(self._sizes.sum())
        self._epoch = self._hand = -1

    def hand_of(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """The hands at places of an epoch's order, ascending, with the share of the hand that is before each."""
        self._begin(epoch)
        hands: np.ndarray = np.interp(places, np.append(0, self._ends), np.arange(len(self._ends) + 1))
        return hands

    def batch(self, epoch: int, start: int, end: int) -> np.ndarray:
        """Numbers of the records from place `start` of an epoch to place `end`, which may be beyond its last."""
        self._begin(epoch)
        hand, found = int(np.searchsorted(self._ends, start, side="right")), []
        while hand < len(self._ends) and (begins := self._ends[hand] - self._hand_sizes[hand]) < end:
            rows = self._dealt(hand)
            found.append(rows[:, max(0, start - begins) : end - begins])
            hand += 1
        lanes, numbers = np.concatenate(found, axis=1)
        batch: np.ndarray = numbers[np.lexsort((numbers, lanes))]
        return batch

    def _begin(self, epoch: int) -> None:
        """Permute the parts of `epoch`: part i is in the hands from `_first[i]`, `_count[i]` of them."""
        if epoch == self._epoch:
            return
        parts = len(self._sizes)
        hands = parts - self._open + 1
        self._parts = np.random.default_rng([self.seed, epoch]).permutation(parts)
        number = np.arange(parts)
        self._first = np.maximum(0, number - self._open + 1)
        self._count = np.minimum(number, hands - 1) - self._first + 1
        sizes = self._sizes[self._parts]
        self._hand_sizes = np.zeros(hands, np.int64)
        for hand in range(int(self._count.max())):
            there = np.flatnonzero(hand < self._count)
            dealt = _dealt_before(sizes[there], hand + 1, self._count[there])
            dealt -= _dealt_before(sizes[there], hand, self._count[there])
            np.add.at(self._hand_sizes, self._first[there] + hand, dealt)
        self._ends = np.cumsum(self._hand_sizes)
        self._epoch, self._hand = epoch, -1

    def _dealt(self, hand: int) -> np.ndarray:
        """The records of a hand in their order, (2, n): the place of each one's part among the open ones, and its number."""
        if hand != self._hand:
            given = [self._given(place, hand) for place in range(hand, hand + self._open)]
            lanes = np.repeat(np.arange(hand, hand + self._open) % self._open, [len(rows) for rows in given])
            rows = np.stack([lanes, np.concatenate(given)])
            random = np.random.default_rng([self.seed, self._epoch, 0, hand])
            # each part's records are spread evenly over the hand, each at a random place of its own stretch
            when = np.concatenate([(np.arange(len(rows)) + random.random(len(rows))) / len(rows) for rows in given])
            self._hand, self._rows = hand, rows[:, np.argsort(when, kind="stable")]
        return self._rows

    def _given(self, place: int, hand: int) -> np.ndarray:
        """Numbers of the records that the part at `place` gives to a hand."""
        part = int(self._parts[place])
        start, end = self._starts[part : part + 2]
        rows = np.arange(start, end)
        if self._of is not None:
            rows = rows[self._of[start:end] == self.bucket]
        out = self._held_out[slice(*np.searchsorted(self._held_out, [start, end]))]
        random = np.random.default_rng([self.seed, self._epoch, 1, part])
        rows = random.permutation(np.setdiff1d(rows, out, assume_unique=True))
        turn, count = hand - int(self._first[place]), int(self._count[place])
        return rows[_dealt_before(len(rows), turn, count) : _dealt_before(len(rows), turn + 1, count)]


def _dealt_before(size: np.ndarray | int, turn: int, count: np.ndarray | int) -> np.ndarray | int:
    """Records of a part that the first `turn` of its `count` hands have."""
    return size * turn // count


def _part_starts(index: RecordIndex) -> np.ndarray:
    """(P + 1,) numbers of the first records of the parts, and N."""
    before = np.cumsum(index.group_bytes) - index.group_bytes
    first_of_file = np.searchsorted(index.group_file, index.group_file, side="left")
    part = (before - before[first_of_file]) // PART_BYTES
    begins = np.flatnonzero(np.diff(part, prepend=-1) | np.diff(index.group_file, prepend=-1))
    return np.append(index.group_row[begins], len(index))


class Views:
    """Which other records show the same subject, as record numbers."""

    def __init__(self, index: RecordIndex, held_out: np.ndarray) -> None:
        """Those that are `held_out` (ascending numbers) are no reference in training; unknown uids are left out."""
        self.index, self.held_out = index, held_out

    def of(self, number: int) -> np.ndarray:
        """Record numbers of the other views of record `number`'s subject, ascending; may be empty."""
        views = self.index.views_of(number)
        return views[~np.isin(views, self.held_out)] if len(views) else views

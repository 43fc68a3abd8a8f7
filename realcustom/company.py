"""Rows of several launches in one UNet call: where they are, and what of them an attention layer does at once.

Of each launch the rows in which no subject acts come first, then, launches of equal tokens side by side, those in which one
does. Neighbours' subjects, and their recorders, are one to a layer: it runs as many small operations for eight requests as
for one.

Letters: B rows of the call, R rows with subjects, S image tokens, n selected ones, M tokens of a row's words, U subjects.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from realcustom.attention import Acting, KeyValue, SubjectTokens, resize_mask, selected
from realcustom.maps import MapRecorder, WordTokens

T = TypeVar("T", SubjectTokens, MapRecorder)


@dataclass(frozen=True, kw_only=True)
class Places:
    """The call's rows in their order, as pieces of launches."""

    pieces: tuple[tuple[int, slice], ...]  # number of the launch, and rows of it
    starts: tuple[int, ...]  # the first row of each piece in the call

    @classmethod
    def of(cls, counts: Sequence[int], subjects: Sequence[Sequence[SubjectTokens]]) -> Places:
        """For launches of so many rows with these subjects, which act in the last rows of their launch."""
        ranks: dict[Hashable, int] = {}
        keys = [[ranks.setdefault(_key(one), len(ranks)) for one in own] for own in subjects]
        firsts = [own[0].rows.start if own else count for own, count in zip(subjects, counts, strict=True)]
        without = [(number, slice(0, first)) for number, first in enumerate(firsts) if first]
        acting = [number for number, own in enumerate(subjects) if own]
        acting.sort(key=lambda number: keys[number])
        pieces = (*without, *((number, slice(firsts[number], counts[number])) for number in acting))
        lengths = [rows.stop - rows.start for _, rows in pieces]
        return cls(pieces=pieces, starts=tuple(itertools.accumulate(lengths[:-1], initial=0)))

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Rows of the launches as rows of the call."""
        return torch.cat([tensors[number][rows] for number, rows in self.pieces])

    def scatter(self, tensor: Tensor) -> list[Tensor]:
        """Rows of the call as rows of each launch."""
        found: dict[int, list[Tensor]] = {}
        for (number, rows), start in zip(self.pieces, self.starts, strict=True):
            found.setdefault(number, []).append(tensor[start : start + rows.stop - rows.start])
        return [parts[0] if len(parts) == 1 else torch.cat(parts) for _, parts in sorted(found.items())]

    def at(self, launch: int, rows: slice) -> slice:
        """Rows of a launch, all of one piece, in the call."""
        for (number, piece), start in zip(self.pieces, self.starts, strict=True):
            if number == launch and piece.start <= rows.start and rows.stop <= piece.stop:
                return slice(start + rows.start - piece.start, start + rows.stop - piece.start)
        raise AssertionError(f"rows {rows} of launch {launch} are not together")


def _key(subject: SubjectTokens) -> Hashable:
    """Subjects of equal keys can be one."""
    selection = None if subject.index is None else subject.index.shape[1]
    mask = None if subject.mask is None else subject.mask.shape[1:]
    return subject.embeds.shape[1:], selection, mask, subject.mask_resize, subject.scale


@dataclass(frozen=True, kw_only=True)
class JoinedTokens:
    """Subjects of several launches in neighbouring rows, as one: see `attention.Acting`."""

    parts: Sequence[SubjectTokens]
    rows: slice
    scale: float
    index: Tensor | None  # (R, n)
    gate: Tensor | None  # (R, n)
    mask: Tensor | None  # (R, 1, H*, W*)
    _masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # by grid

    @classmethod
    def of(cls, parts: Sequence[SubjectTokens]) -> JoinedTokens:
        """Of subjects with equal keys, at the call's rows."""
        return cls(
            parts=parts,
            rows=slice(parts[0].rows.start, parts[-1].rows.stop),
            scale=parts[0].scale,
            index=_joined([part.index for part in parts]),
            gate=_joined([part.gate for part in parts]),
            mask=_joined([part.mask for part in parts]),
        )

    def keys_values(self, attn: Attention) -> KeyValue:
        """Keys and values of the selected tokens in this layer, each (R, H, n, d)."""
        pairs = [part.all_keys_values(attn) for part in self.parts]
        keys, values = (torch.cat([pair[i] for pair in pairs]) for i in range(2))
        return selected(keys, self.index, self.gate), selected(values, self.index, self.gate)

    def mask_at(self, grid: tuple[int, int]) -> Tensor | None:
        """The mask on a layer's grid, flattened row-major: (R, N, 1)."""
        if self.mask is None:
            return None
        if grid not in self._masks:
            self._masks[grid] = resize_mask(self.mask, grid, self.parts[0].mask_resize).flatten(2).mT
        return self._masks[grid]


def _joined(tensors: Sequence[Tensor | None]) -> Tensor | None:
    there = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(there) if there else None


def join_subjects(places: Places, subjects: Sequence[Sequence[SubjectTokens]]) -> list[Acting]:
    """The subjects of all launches at the call's rows; those of equal keys in neighbouring rows are one."""
    found: list[Acting] = []
    for depth in range(max(map(len, subjects))):  # a row's first subject, its second ...
        own = [
            replace(of_one[depth], rows=places.at(number, of_one[depth].rows))
            for number, of_one in enumerate(subjects)
            if len(of_one) > depth
        ]
        found += [parts[0] if len(parts) == 1 else JoinedTokens.of(parts) for parts in _neighbours(own, _key)]
    return found


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A recorder of a call, and those of launches that it stands for."""

    recorder: MapRecorder
    parts: Sequence[MapRecorder]

    @classmethod
    def of(cls, parts: Sequence[MapRecorder]) -> Recording:
        """For recorders with equal layers in neighbouring rows of the call."""
        if len(parts) == 1:
            return cls(recorder=parts[0], parts=parts)
        joined = MapRecorder(
            words=WordTokens.joined([part.words for part in parts]),
            rows=slice(parts[0].rows.start, parts[-1].rows.stop),
            layers=parts[0].layers,
            self_grid=parts[0].self_grid,
        )
        return cls(recorder=joined, parts=parts)

    def give_back(self) -> None:
        """Give each launch's recorder its rows of what was recorded."""
        if len(self.parts) == 1:
            return
        first = self.recorder.rows.start
        for part in self.parts:
            own = slice(part.rows.start - first, part.rows.stop - first)
            part.maps = [layer[own, : part.words.subjects] for layer in self.recorder.maps]
            part.self_maps = None if self.recorder.self_maps is None else self.recorder.self_maps[own]


def join_recorders(places: Places, recorders: Sequence[MapRecorder | None]) -> list[Recording]:
    """The launches' recorders at the call's rows; those of equal layers in neighbouring rows are one."""
    own = []
    for number, recorder in enumerate(recorders):
        if recorder is not None:
            recorder.rows = places.at(number, recorder.rows)  # it is made for this call alone
            own.append(recorder)
    return [Recording.of(parts) for parts in _neighbours(own, lambda one: (one.layers, one.self_grid))]


def _neighbours(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items by rows, those together that follow each other without a gap and have equal keys."""
    found: list[list[T]] = []
    for item in sorted(items, key=lambda one: one.rows.start):
        if found and found[-1][-1].rows.stop == item.rows.start and key(found[-1][-1]) == key(item):
            found[-1].append(item)
        else:
            found.append([item])
    return found


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Rows one below the other; the tensor itself if it is the only one."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))

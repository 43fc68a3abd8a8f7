"""The units to do: those of the input compared with the manifests of the directory."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from realcustom.preprocessing.engine.directory import ManifestName
from realcustom.preprocessing.engine.unit import Unit


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The work of a stage in its directory."""

    todo: tuple[Unit, ...]
    done: tuple[ManifestName, ...]
    stale: tuple[ManifestName, ...]  # of units whose input changed: to be removed before they are done again
    gone: tuple[ManifestName, ...]  # of units that are no longer in the input: to be removed with their outputs


def make_plan(units: Sequence[Unit], manifests: Sequence[ManifestName], present: Collection[str]) -> Plan:
    """Compare the input's units with the directory. A unit is done if it has exactly one manifest and that matches it.

    Args:
        present: units whose rows exist; a unit whose rows were deleted is done again.
    """
    by_unit: dict[str, list[ManifestName]] = {}
    for manifest in manifests:
        by_unit.setdefault(manifest.unit, []).append(manifest)
    todo, done, stale = [], [], []
    for unit in units:
        found = by_unit.pop(unit.name, [])
        if len(found) == 1 and found[0].identity == unit.identity and unit.name in present:
            done.append(found[0])
        else:
            todo.append(unit)
            stale += found
    gone = [manifest for found in by_unit.values() for manifest in found]
    return Plan(todo=tuple(todo), done=tuple(done), stale=tuple(stale), gone=tuple(gone))

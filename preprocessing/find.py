"""The directory of a stage that is named by the root of all stages, or by a pattern: the newest one that is complete."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pyarrow import fs

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.preprocessing.catalogue import CHAIN
from realcustom.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A stage's directory below a root."""

    uri: str
    name: str  # STAGE@FINGERPRINT
    finished: int  # ns since 1970 at which its report was written; 0: it is not complete

    @property
    def stage(self) -> str:
        """The stage that wrote it."""
        return self.name.partition("@")[0]


def find_directory(place: str, reads: Sequence[str], store: Store, option: str = "--input") -> str:
    """The directory that `place` means; `place` itself where it is neither a pattern nor the root of stages.

    Of several, the newest complete one is chosen, and said. Works on a disk and on an object store.

    Args:
        place: a directory, a root (`outputs/records`), or one with a pattern as its last part (`outputs/records/encode@*`).
        reads: stages whose output is wanted, the usual one first; a root's directories of the first that has one count.
        option: what named the place, for the message.
    Raises:
        UsageError: a root without such a directory, a pattern that matches none, or none of them is complete.
    """
    root, _, pattern = place.rstrip("/").rpartition("/")
    if "*" in pattern:
        found = [one for one in list_directories(root or ".", store) if fnmatch.fnmatchcase(one.name, pattern)]
        if not found:
            raise UsageError(f"{option}: no stage's directory matches {place}")
        return _newest(found, place, option)
    if not store.is_dir(place) or store.exists(storage.join(place, "stage.json")):
        return place
    there = list_directories(place, store)
    if not there:
        return place
    for stage in reads:
        if found := [one for one in there if one.stage == stage]:
            return _newest(found, place, option)
    wrote = [stage.name for stage in CHAIN if any(one.stage == stage.name for one in there)]
    names, wanted = ", ".join(wrote or sorted({one.stage for one in there})), " or ".join(reads)
    raise UsageError(
        f"{option}: {place} holds what {names} wrote, and what {wanted} writes is wanted: next is "
        f"`realcustom preprocess {next_after(wrote[-1] if wrote else '')}`"
    )


def next_after(stage: str) -> str:
    """The first stage of the chain that reads what `stage` wrote; the first of all where there is none."""
    return next((following.name for following in CHAIN if stage in following.reads), CHAIN[0].name)


def list_directories(root: str, store: Store) -> list[Found]:
    """The stages' directories directly below `root`, by name; none where it does not exist."""

    def look(uri: str) -> list[Found]:
        filesystem, path = storage.open_filesystem(uri)
        folders = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        directories = [info for info in folders if info.type == fs.FileType.Directory]
        names = sorted(info.base_name for info in directories if "@" in info.base_name)
        reports = filesystem.get_file_info([f"{path}/{name}/report.json" for name in names])  # in the order asked for
        return [
            Found(uri=storage.join(uri, name), name=name, finished=report.mtime_ns or 0)
            for name, report in zip(names, reports, strict=True)
        ]

    return store.call(look, root, "list")


def _newest(found: Sequence[Found], place: str, option: str) -> str:
    complete = [one for one in found if one.finished]
    if not complete:
        names = ", ".join(one.name for one in found)
        raise UsageError(
            f"{option}: {place}: {names} is not complete: run its command again, or name it in full to read what is there"
        )
    newest = max(complete, key=lambda one: (one.finished, one.name))
    number = f", the newest of {len(complete)} that are complete" if len(complete) > 1 else ""
    logger.info("reading %s%s", newest.uri, number)
    return newest.uri

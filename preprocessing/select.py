"""Stage `select`: thresholds over scores, and duplicates over the whole corpus. Cheap, to be run again at will.

First a global phase over small columns writes the table of duplicates; then each unit is selected by itself, its
input's identity including that table's hash. (The global phase is one partition, run where the driver is.)
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from preprocessing import rows
from preprocessing.duplicates import COLUMNS, failed_threshold, find_duplicates
from preprocessing.errors import naming
from preprocessing.outcome import Outcome, RowAccount
from preprocessing.pictures import EXTENSIONS, color_signature, decode, perceptual_hash
from preprocessing.settings import ExecutionSettings, SelectSettings
from preprocessing.unit import Counts, SealedUnit, StageDirectory, Unit, UnitKind, identity_of
from realcustom import storage

_UNIT = "duplicates"


class Select:
    """Scored table -> its rows that pass every threshold and are no copies."""

    def __init__(self, settings: SelectSettings, duplicates: pa.Table):
        self._settings = settings
        columns = (duplicates[name].to_pylist() for name in ("uid", "reason", "survivor"))
        self._duplicates = {uid: (reason, survivor) for uid, reason, survivor in zip(*columns, strict=True)}

    def __call__(self, unit: str, table: pa.Table) -> Outcome:
        """Each row is kept or dropped, because."""
        rows.require_columns(table.schema, (*rows.INGESTED, *rows.SCORE_FIELDS), f"select, unit {unit}")
        account = RowAccount(table, unit)
        failed = failed_threshold(table, self._settings)
        for index, uid in enumerate(table["uid"].to_pylist()):
            reason = failed[index]
            if reason is not None:
                account.drop(index, reason)
            elif uid in self._duplicates:
                reason, survivor = self._duplicates[uid]
                account.drop(index, reason, f"of {survivor}")
        return Outcome(rows_in=table.num_rows, table=account.rows(), aside=account.aside)


def check_scores(settings: SelectSettings, description: dict | None) -> None:
    """Raise ValueError if a threshold is set over scores that the stage before did not compute."""
    if description is None:  # a user's own table: what it holds is known when it is read
        return
    models = description["models"]
    wanted = {
        "min_aesthetic": (settings.min_aesthetic, "heads"),
        "max_nsfw": (settings.max_nsfw, "heads"),
        "max_watermark": (settings.max_watermark, "heads"),
        "min_image_text": (settings.min_image_text, "clip"),
    }
    for name, (value, model) in wanted.items():
        if value is not None and model not in models:
            raise ValueError(f"select.{name}={value} has nothing to judge: score ran without score.{model}")


def duplicates_uri(directory: str) -> str:
    """Where the global phase's table is."""
    return storage.join(directory, "global", f"{_UNIT}.parquet")


def run_global_phase(
    units: Sequence[Unit], directory: str, settings: SelectSettings, execution: ExecutionSettings
) -> tuple[Unit, ...]:
    """Find the duplicates among all units (or see that it is done), and give the units their identities for `select`.

    The result is a unit like any other, in `global/` of the stage's directory.
    """
    place = StageDirectory(storage.join(directory, "global"), execution)
    identity = identity_of([[unit.name, unit.identity] for unit in units])
    manifests = place.manifests()
    if len(manifests) != 1 or manifests[0].identity != identity:
        place.remove(manifests)
        table = pa.concat_tables([rows.read_columns(unit.files[0].uri, COLUMNS) for unit in units])
        duplicates = find_duplicates(table, settings, _evaluation_pictures(settings))
        reasons = duplicates["reason"].to_pylist()
        counts = Counts(
            rows_in=table.num_rows,
            kept=table.num_rows - len(reasons),
            dropped={reason: reasons.count(reason) for reason in set(reasons)},
            rows_out=len(reasons),
        )
        whole = Unit(name=_UNIT, identity=identity, kind=UnitKind.PART, files=())
        place.commit(whole, SealedUnit(rows=rows.to_parquet(duplicates), aside=b"", counts=counts))
        manifests = place.manifests()
    output = manifests[0].output
    return tuple(replace(unit, identity=identity_of(unit.identity, output)) for unit in units)


def _evaluation_pictures(settings: SelectSettings) -> list[tuple[str, int, bytes]]:
    if settings.evaluation_folder is None:
        return []
    entries = storage.list_files(settings.evaluation_folder)
    found = []
    for entry in entries:
        if posixpath.splitext(entry.name)[1].removeprefix(".").lower() in EXTENSIONS:
            with naming(f"select.evaluation_folder: {entry.name}"):
                picture = decode(storage.read_bytes(entry.uri))
            found.append((entry.name, perceptual_hash(picture), color_signature(picture, rows.COLOR_SIDE)))
    if not found:
        raise ValueError(f"select.evaluation_folder: no picture in {settings.evaluation_folder}")
    return found

"""A stage's report: the counts of all its units. Equal for equal outputs: it holds no time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from realcustom import storage
from realcustom.preprocessing.engine.directory import StageDirectory, to_json_bytes
from realcustom.preprocessing.engine.unit import Counts, Unit
from realcustom.preprocessing.errors import StageBug
from realcustom.preprocessing.report.stage_page import write_page


def make_report(description: dict[str, Any], counts: Counts, units: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    """The report as plain data: `in` = `kept` + all of `dropped` + all of `quarantined`.

    `rows_out` and `rejected` (candidates, not rows) count what a 1-to-N stage made of its kept rows.
    `extra` is what a stage adds, for example `clusters` of `select`: how many sets of copies of each size there are.
    """
    if counts.rows_in != counts.kept + sum(counts.dropped.values()) + counts.errors:
        raise StageBug(f"the counts of {description['stage']} do not add up: {counts.to_dict()}")
    head = {name: description[name] for name in ("stage", "fingerprint", "upstream")}
    return {**head, "units": units, **counts.to_dict(), **extra}


def write_report(directory: StageDirectory, report: dict[str, Any], units: Sequence[Unit], says: str) -> None:
    """Write report.html, then report.json, which marks the stage as complete; unless both exist. `says`: what the stage does."""
    uri = storage.join(directory.uri, "report.json")
    data = to_json_bytes(report)
    if not directory.store.exists(uri) or directory.store.read(uri) != data:
        write_page(directory, report, units, says)
        directory.store.write(uri, data)

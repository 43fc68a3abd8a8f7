"""A stage's report: the account over all its units. Equal for equal outputs: it holds no time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from realcustom import storage
from realcustom.preprocessing.engine.unit import Counts, StageDirectory, Unit, to_json_bytes
from realcustom.preprocessing.errors import StageBug
from realcustom.preprocessing.report.page import write_page


def make_report(
    description: dict[str, Any], counts: Counts, units: int, clusters: dict[str, int] | None = None
) -> dict[str, Any]:
    """The report as plain data: `in` = `kept` + all of `dropped` + all of `quarantined`.

    `rows_out` and `rejected` (candidates, not rows) say what a 1-to-N stage made of the rows it kept.
    `clusters`, of `select`: how many sets of copies of each size there are, the survivor included.
    """
    if counts.rows_in != counts.kept + sum(counts.dropped.values()) + counts.errors:
        raise StageBug(f"the account of {description['stage']} does not close: {counts.to_dict()}")
    head = {name: description[name] for name in ("stage", "fingerprint", "upstream")}
    found = {} if clusters is None else {"clusters": clusters}
    return {**head, "units": units, **counts.to_dict(), **found}


def write_report(directory: StageDirectory, report: dict[str, Any], units: Sequence[Unit]) -> None:
    """Write report.html, then report.json, which says that the stage is complete; unless they are there already."""
    uri = storage.join(directory.uri, "report.json")
    data = to_json_bytes(report)
    if not storage.exists(uri) or directory.read(uri) != data:
        write_page(directory, report, units)
        directory.write(uri, data)

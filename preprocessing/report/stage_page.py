"""report.html: a stage's counts, with pictures of kept, dropped and quarantined rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from realcustom import storage
from realcustom.parquet import ParquetFile
from realcustom.preprocessing.engine.directory import StageDirectory
from realcustom.preprocessing.engine.unit import Unit, UnitKind
from realcustom.preprocessing.report.excluded import FILES, SIDE, Excluded, excluded_sections, spread, wanted_of
from realcustom.preprocessing.report.page import Card, Page, Section, account_of, around, names_of, render
from realcustom.preprocessing.report.pictures import thumbnail

KEPT = 24  # pictures shown of what was kept
PER_REASON = 8  # samples shown of each reason
UNITS = 3  # that samples of what was kept are taken from
CAPTION = 160  # characters


def write_page(directory: StageDirectory, report: Mapping[str, Any], units: Sequence[Unit], says: str) -> None:
    """Write report.html for a stage that is complete. `units` are its input's: what was kept is shown of the first few, what
    was excluded of as many as it takes for samples of every reason. `says`: what the stage does.
    """
    spread_out = [units[index] for index in spread(len(units), FILES)]
    excluded = [Excluded(uri=directory.excluded_uri(unit.name), table=_table(unit)) for unit in spread_out]
    upstream, kept = report["upstream"], _kept(directory, units[:UNITS])
    of_stage = " " not in upstream  # else `corpus ADDRESS` or `table ADDRESS`
    beside = storage.join(directory.uri.rpartition("/")[0], upstream, "report.html")
    page = Page(
        title=f"{report['stage']}@{report['fingerprint']}",
        subtitle=f"on {upstream}",
        before=f"../{upstream}/report.html" if of_stage and directory.store.exists(beside) else "",
        says=f"{says} The reasons of what was left out: docs/preprocessing/reasons.md.",
        account=account_of(report),
        sections=[
            Section(title=f"Kept: {len(kept)} of {report['rows_out']:,}", cards=kept),
            *excluded_sections(excluded, directory.store, PER_REASON, wanted_of(report)),
            *(Section(title=title, cards=[Card(foot=names)]) for title, names in names_of(report).items()),
        ],
    )
    directory.store.write(storage.join(directory.uri, "report.html"), render(page))


def _table(unit: Unit) -> str | None:
    """The table with the unit's pictures, if a stage wrote it."""
    return unit.files[0].uri if unit.kind is UnitKind.PART else None


def _kept(directory: StageDirectory, units: Iterable[Unit]) -> list[Card]:
    cards: list[Card] = []
    for unit in units:
        is_table = directory.suffix == ".parquet"  # else the input would be shown instead of the output
        uri = directory.rows_uri(unit.name) if is_table else unit.files[0].uri
        file = ParquetFile(uri, directory.store)
        names = file.schema.names
        pictures = [name for name in ("subject_image", "image") if name in names]  # a whole picture has no crop
        words = [name for name in ("target_word", "caption", "alt_text", "key", "uid") if name in names]
        for group in range(len(file.groups)):
            if len(cards) == KEPT:
                break
            for row in file.read_group(group, [*pictures, *words]).slice(0, KEPT - len(cards)).to_pylist():
                text = next((str(row[name]) for name in words if row[name]), "")
                picture = next((row[name] for name in pictures if row[name] is not None), None)
                cards.append(Card(picture=thumbnail(picture, SIDE), caption=around(text[:CAPTION])))
    return cards

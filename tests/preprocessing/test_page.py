"""The one maker of pages: the account, samples by reason, and what a corpus writes shown as text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from realcustom.preprocessing.report.excluded import Excluded, excluded_sections
from realcustom.preprocessing.report.page import Card, Page, Section, account_of, around, render
from realcustom.preprocessing.report.pictures import data_uri, fit, thumbnail
from realcustom.store import Store
from tests.support.corpora import jpeg, picture

REPORT = {
    **{"in": 1200, "kept": 1190, "rows_out": 2000},
    **{"dropped": {"too_small": 7}, "quarantined": {"torn_tar": 3}, "rejected": {"no_mask": 5}, "clusters": {"2": 4}},
}


def test_the_account_names_every_row_and_the_sets_of_copies() -> None:
    page = Page(title="select@1", subtitle="on score@2", account=account_of(REPORT), sections=[])
    cells = re.findall(r"<td>([^<]+)</td><td class=\"n\">([^<]+)</td>", render(page).decode())
    assert cells == [
        ("in", "1,200"),
        ("kept", "1,190"),
        ("dropped: too_small", "7"),
        ("quarantined: torn_tar", "3"),
        ("rows written", "2,000"),
        ("candidates rejected: no_mask", "5"),
        ("sets of 2 copies of a picture", "4"),
    ]


def test_what_a_corpus_writes_is_text_and_equal_pages_are_equal() -> None:
    card = Card(
        picture=thumbnail(jpeg(picture(1)), 64),
        caption=around("<b>a</b> dog", 9, 12),
        lines={"alt text": "<script>"},
        scores={"sharpness": "3"},
        foot=["\udcff.jpg"],  # a name that is not UTF-8
    )
    page = Page(title="<i>", subtitle="", account=[], sections=[Section(title="Kept", cards=[card])])
    html = render(page).decode()
    assert render(page) == html.encode()
    assert "&lt;b&gt;a&lt;/b&gt; <mark>dog</mark>" in html and "&lt;script&gt;" in html
    assert not re.search(r"<b>|<i>|<script|https?://", html) and html.count("<img") == 1 and "?.jpg" in html


def test_so_many_samples_of_each_reason_and_no_file_more_than_needed(tmp_path: Path) -> None:
    rows = [
        {"outcome": "dropped", "reason": "small", "uid": str(i), "key": f"{i}.jpg", "message": "m"} for i in range(5)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    read: list[str] = []

    class Recorder(Store):
        def read(self, uri: str | Path) -> bytes:
            read.append(str(uri))
            return lines

    files = [Excluded(uri=str(number), table=None) for number in range(3)]
    (section,) = excluded_sections(files, Recorder(), per_reason=7)
    assert section.title == "dropped: small" and len(section.cards) == 7 and read == ["0", "1", "2"]
    read.clear()
    (section,) = excluded_sections(files, Recorder(), per_reason=4, wanted={"dropped: small": 15})
    assert section.cards[0].foot == ["0.jpg", "m"] and read == ["0"]


def test_pictures_are_small_and_stand_by_themselves() -> None:
    assert fit(Image.new("RGB", (400, 100)), 100).size == (100, 25)
    assert fit(Image.new("RGB", (20, 10)), 100).size == (100, 50)  # grown by whole pixels
    assert thumbnail(None, 64) == thumbnail(b"no picture", 64) == ""
    assert thumbnail(jpeg(picture(1)), 64).startswith("data:image/jpeg;base64,")
    assert data_uri(np.zeros((4, 4, 3), np.uint8)).startswith("data:image/png;base64,")

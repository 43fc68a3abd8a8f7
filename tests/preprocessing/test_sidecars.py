"""Texts are beside the pictures that their names say, in whatever order a listing has them."""

from __future__ import annotations

import random

import pytest

from realcustom.entries import Entries
from realcustom.preprocessing.ingest import sidecars
from realcustom.preprocessing.ingest.listing import PICTURE_NAME
from realcustom.preprocessing.ingest.sidecars import Sidecars, find_pairs, sidecar_name, sidecar_names
from realcustom.preprocessing.settings import IngestSettings
from realcustom.storage import FileEntry

# some begin with another and a dot, of which one is a folder; `-` and `/` are sorted before and after a dot
STEMS = ("a", "a.b", "a.b.jpg", "a.jpg", "a-b", "a.k/a", "a.jpg/a", "d/a", "d/a.b", "ä", "\udcff")
EXTENSIONS = ("jpg", "PNG", "txt", "TXT", "caption", "json", "jpg.txt", "PNG.json", "md")


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_those_that_names_say(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecars, "_PIECE", 3)
    names = [f"{stem}.{extension}" for stem in STEMS for extension in EXTENSIONS]
    names = random.Random(seed).sample(names, 60)
    entries = Entries.of("/data/", [FileEntry(name=name, uri=f"/data/{name}", size=1, version="1") for name in names])
    settings, is_picture = IngestSettings(), entries.matches(PICTURE_NAME)
    pairs = find_pairs(entries, is_picture, settings)
    found = Sidecars(entries.filtered(pairs.is_text), pairs)
    texts = {sidecar_name(entry.name, settings): entry.name for entry in entries if sidecar_name(entry.name, settings)}
    pictures = entries.filtered(is_picture)
    expected = {
        entry.name: [texts[name] for name in sidecar_names(entry.name, settings) if name in texts] for entry in pictures
    }
    beside, in_order = {entry.name for entry in found.texts}, [entry.name for entry in pictures]
    paired = {entry.name: [one.name for one in beside] for entry, beside in found.with_pictures(pictures)}
    assert paired == expected and list(paired) == in_order
    assert len(pictures) == len(found.texts) == 0  # given up on the way
    assert beside == {name for some in expected.values() for name in some}
    assert sum(map(len, expected.values())) > len(beside) > 5  # one may be beside two pictures


def test_without_pictures_nothing_is_beside_them() -> None:
    entries = Entries.of("/data/", [FileEntry(name="a.txt", uri="/data/a.txt", size=1, version="1")])
    for listing in (entries, Entries.of("/data/", [])):
        pairs = find_pairs(listing, listing.matches(PICTURE_NAME), IngestSettings())
        assert not pairs.is_text.any() and len(pairs.is_text) == len(listing)
        nothing = Entries.of("/data/", [])
        assert list(Sidecars(nothing, pairs).with_pictures(nothing)) == []

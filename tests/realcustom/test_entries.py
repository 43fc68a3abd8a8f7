"""Listings as columns give back what they were given, sorted by name."""

from __future__ import annotations

import pytest

from realcustom.entries import Entries
from realcustom.storage import FileEntry


def entry(name: str, uri: str | None = None) -> FileEntry:
    return FileEntry(name=name, uri=uri or f"/data/{name}", size=len(name), version=f"v-{len(name)}")


FILES = [entry(name) for name in ("b.jpg", "a/z.JPG", "caf\u00e9.png", "not\udcff utf-8.jpg", "a.b/.jpg", "x.tar")]
FILES.append(entry("link/c.jpg", "/elsewhere/c.jpg"))
FILES += [
    FileEntry(name=f"v{number}.jpg", uri=f"/data/v{number}.jpg", size=1, version=version)
    for number, version in enumerate(
        ("d41d8cd98f00b204e9800998ecf8427e", "d41d8cd98f00b204e9800998ecf8427e-12", "", "é")
    )
]


def test_files_come_back_sorted_by_name_with_their_own_places() -> None:
    entries = Entries.of("/data/", FILES)
    expected = sorted(FILES, key=lambda file: file.name.encode("utf-8", "surrogateescape"))
    assert list(entries) == expected and len(entries) == 11
    assert [entries[index] for index in range(-11, 11)] == expected * 2
    assert entries[2:5] == expected[2:5] and entries[5:2] == [] and entries[4:99] == expected[4:]
    with pytest.raises(IndexError):
        entries[11]
    with pytest.raises(ValueError, match="step of 2"):
        entries[::2]
    more = [entry("a/0.jpg"), entry("zz.jpg", "/other/zz.jpg")]
    assert list(entries.with_more(more)) == sorted(
        [*expected, *more], key=lambda file: file.name.encode("utf-8", "surrogateescape")
    )
    entries.forget(3)
    assert list(entries) == expected[3:]
    assert not Entries.of("/data/", []) and list(Entries.of("/data/", [])) == []


def test_files_are_told_apart_by_their_names() -> None:
    pictures, others = Entries.of("/data/", FILES).where(r"(?i)[^/.][^/]*\.(?:jpg|png)$")
    assert {file.name for file in others} == {"a.b/.jpg", "x.tar"}
    assert set(pictures) | set(others) == set(FILES) and len(pictures) == 9


def test_pages_of_any_size_are_taken_up() -> None:
    pages = [[(f"{page:03d}/{number:04d}.jpg", number, "v") for number in range(page)] for page in range(400)]
    entries = Entries.of_pages("s3://b/", pages)
    assert [file.name for file in entries] == [name for page in pages for name, _, _ in page]
    assert entries[70_000].uri == f"s3://b/{entries[70_000].name}"
    assert list(Entries.of_pages("s3://b/", pages[::-1])) == list(entries)


def test_parts_are_taken_out_of_a_listing() -> None:
    pages = [[(f"{page:03d}/{number:04d}.jpg", number, "v") for number in range(1000)] for page in range(140)]
    entries = Entries.of_pages("s3://b/", pages)
    mask = entries.matches("7[.]jpg$")
    expected = [list(entries.filtered(mask)), list(entries.filtered(~mask))]
    assert [list(part) for part in entries.parted(mask, ~mask)] == expected and len(expected[0]) == 14_000
    assert len(entries) == 0 and [len(part) for part in Entries.of("/data/", []).parted(mask[:0])] == [0]

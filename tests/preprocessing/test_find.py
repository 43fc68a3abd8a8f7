"""A stage's directory named by its root or a pattern, on a disk and on an object store."""

from __future__ import annotations

import json
import logging
import time

import pytest

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.preprocessing.find import find_directory
from realcustom.store import Store

STORE = Store()
RECORDS = ("encode", "subjects")


def write(root: str, name: str, complete: bool = True) -> str:
    """A stage's directory as far as looking for it goes; later ones are newer, also by a store's clock of seconds."""
    stage = name.partition("@")[0]
    storage.write_bytes(f"{root}/{name}/stage.json", json.dumps({"stage": stage}).encode())
    if complete:
        storage.write_bytes(f"{root}/{name}/report.json", b"{}")
        time.sleep(1.1 if storage.is_remote(root) else 0.01)
    return f"{root}/{name}"


@pytest.fixture(params=["disk", "store"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    if request.param == "disk":
        return str(tmp_path_factory.mktemp("root") / "records")
    return f"{request.getfixturevalue('bucket')}/records"


def test_the_newest_complete_directory_is_found_and_said(root: str, caplog: pytest.LogCaptureFixture) -> None:
    write(root, "subjects@c")
    older, newer = write(root, "encode@b"), write(root, "encode@a")
    unfinished = write(root, "encode@d", complete=False)
    with caplog.at_level(logging.INFO):
        assert find_directory(root, RECORDS, STORE) == newer
    said = [record.message for record in caplog.records if record.name.startswith("realcustom")]
    assert said == [f"reading {newer}, the newest of 2 that are complete"]
    assert find_directory(f"{root}/encode@*", RECORDS, STORE) == newer
    assert find_directory(f"{root}/encode@b*", RECORDS, STORE) == older
    assert find_directory(f"{root}/", ("caption", "subjects"), STORE) == f"{root}/subjects@c"
    for plain in (older, unfinished, f"{older}/report.json"):  # named in full: taken as it is
        assert find_directory(plain, RECORDS, STORE) == plain


def test_what_is_missing_is_named(root: str) -> None:
    write(root, "ingest@a")
    write(root, "score@a")
    with pytest.raises(UsageError, match=r"holds what ingest, score wrote, .* next is `realcustom preprocess select`"):
        find_directory(root, RECORDS, STORE)
    with pytest.raises(UsageError, match=r"no stage's directory matches .*encode@\*"):
        find_directory(f"{root}/encode@*", RECORDS, STORE)
    write(root, "encode@b", complete=False)
    for place in (root, f"{root}/encode@*"):
        with pytest.raises(UsageError, match="encode@b is not complete: run its command again"):
            find_directory(place, RECORDS, STORE)


def test_a_folder_of_tables_is_taken_as_it_is(root: str) -> None:
    storage.write_bytes(f"{root}/mine.parquet", b"PAR1")
    assert find_directory(root, RECORDS, STORE) == root
    assert find_directory(f"{root}/nowhere", RECORDS, STORE) == f"{root}/nowhere"

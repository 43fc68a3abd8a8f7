"""The folder of a result, on a disk and on a store: only such a result is replaced."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.pipeline import output_folder
from realcustom.pipeline.output_folder import check, of_option

OURS = re.compile(r"image-\d+\.png")


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = str(tmp_path) if request.param == "disk" else str(request.getfixturevalue("bucket"))
    return of_option(f"{place}/out/")


def test_an_earlier_result_is_replaced_when_asked_and_nothing_else(folder: str) -> None:
    check(folder, False, OURS)
    written = output_folder.write({"image-0.png": b"0", "image-1.png": b"1"}, folder, False, OURS)
    assert written == [f"{folder}/image-0.png", f"{folder}/image-1.png"]
    with pytest.raises(UsageError, match="holds an earlier result"):
        check(folder, False, OURS)
    output_folder.write({"image-0.png": b"2"}, folder, True, OURS)
    assert storage.list_names(folder) == ["image-0.png"] and storage.read_bytes(f"{folder}/image-0.png") == b"2"
    storage.write_bytes(f"{folder}/notes.txt", b"mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"holds other files \(notes.txt ...\)"):
            output_folder.write({"image-0.png": b"3"}, folder, overwrite, OURS)
    with pytest.raises(UsageError, match=r"image-0.png is a file; name a folder"):
        check(f"{folder}/image-0.png", True, OURS)

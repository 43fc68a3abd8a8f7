"""The small inputs of shared/data/cases, each right: its rows with their captions, what is excluded, and every file's place."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realcustom.cells import decode_tensor
from realcustom.pipeline.recipes import sprites
from realcustom.preprocessing.catalogue import ENCODE
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import CaptionRule
from tests.support.picture_server import served
from tests.support.stages import excluded_of, ingest, table_of

CASES = Path(__file__).parents[3] / "shared" / "data" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the small inputs of shared/data/cases are not here")


@dataclass(frozen=True, kw_only=True)
class Right:
    """What is right of a case."""

    captions: dict[str, str | None]  # of the rows that are kept, by key
    settings: dict[str, Any] = field(default_factory=dict)  # of ingest
    excluded: dict[str, int] = field(default_factory=dict)  # rows, by reason
    beside: int = 0  # files that belong to those that are read
    not_read: dict[str, int] = field(default_factory=dict)  # files, by kind
    said: str = ""  # in the message of each excluded row


def toys(names: str, first: int, last: int, caption: str | None) -> dict[str, str | None]:
    """`{}` of the name and of the caption is a number, from `first` up to `last`."""
    return {names.format(number): None if caption is None else caption.format(number) for number in range(first, last)}


UNKNOWN = (
    "a.jpg",
    "b.jpg_large",
    "c.jpg?w=640",
    "d",
    "e.JPG.1",
    "f.jpg.webp",
    "g.pjpeg",
    "h.apng",
    "i.jpg~",
    "j.image",
)
JSON_KEYS = {"000": "a dog", "001": "a dog", "002": "a", "004": None, "005": "", "006": None, "007": "a dog"}
LISTS: dict[str, str | None] = {"coco.parquet#0": "a dog", "coco.parquet#1": "b", "coco.parquet#2": None}
MEMBER = "say which is its picture with --set preprocess.ingest.image_member="
RIGHT: dict[str, Right | dict[str, Right]] = {
    "tar_gz": Right(captions={"a.tar.gz/000.jpg": "dog", "b.tgz/000.jpg": None, "c.tar/000.jpg": "c"}),
    "tar_TAR": Right(captions={"A.TAR/000.jpg": None, "b.tar/000.jpg": None}),
    "folder_unknown_ext": Right(captions=dict.fromkeys(UNKNOWN)),
    "folder_hidden": Right(captions={"a.jpg": None}, not_read={"hidden": 4, "system": 4}),
    "hf_imagefolder": Right(captions=toys("train/000{}.jpg", 0, 4, "a photo of dog number {}"), beside=2),
    "hf_imagefolder_splits": Right(
        captions=toys("train/000{}.jpg", 0, 3, "train dog {}") | toys("test/000{}.jpg", 0, 3, "test dog {}"), beside=2
    ),
    "kohya": Right(
        captions=toys("10_dog/IMG {}.JPG", 0, 3, "sks dog, sitting, grass")
        | toys("5_cat/c{}.png", 0, 3, "a cat on a sofa"),
        beside=6,
        not_read={".npz": 3},
    ),
    "coco_layout": Right(captions=toys("train2017/00000000000{}.jpg", 0, 3, "a dog"), beside=1),
    "llava_json": Right(captions={"img/0.jpg": "a dog"}, beside=1),
    "tar_jsonkeys": Right(
        captions={f"j.tar/{key}.jpg": caption for key, caption in JSON_KEYS.items()},
        excluded={"unreadable_caption": 1},
        said="'caption' of the .json is int",
    ),
    "tar_dots": Right(captions=toys("00.tar/photo v1.5_{}.jpg", 0, 4, "dog {}")),
    "tar_multi_image": {
        "plain": Right(captions={}, excluded={"ambiguous_image": 6}, said=MEMBER + "left.jpg"),
        "left": Right(captions=toys("00.tar/00{}.left.jpg", 0, 3, "dog"), settings={"image_member": "left.jpg"}),
    },
    "tar_open_clip_input": {
        "plain": Right(captions={}, excluded={"ambiguous_image": 3}, said=MEMBER + "input.jpg"),
        "named": Right(
            captions=toys("00.tar/sample0000000{}.input.jpg", 0, 3, "a dog"),
            settings={"image_member": "input.jpg", "caption_member": "outputs.txt"},
        ),
    },
    "tar_two_formats": {
        "plain": Right(captions={}, excluded={"ambiguous_image": 4}, said=MEMBER),
        "jpg": Right(captions={"00.tar/000.jpg": "a", "00.tar/001.jpg": "b"}, settings={"image_member": "jpg"}),
    },
    "tar_unsorted": Right(captions=toys("u.tar/00{}.jpg", 0, 6, "dog {}")),
    "img2dataset": Right(
        captions=toys("00000.tar/00000000{}.jpg", 0, 3, "a dog 00000000{}")
        | toys("00001.tar/00001000{}.jpg", 0, 3, "a dog 00001000{}"),
        beside=4,
    ),
    "img2dataset_parquet": Right(captions={"00000.parquet#0": "dog", "00000.parquet#1": "cat"}),
    "hfparquet_list": {
        "first": Right(captions=LISTS, excluded={"missing_image": 2}),
        "longest": Right(
            captions={**LISTS, "coco.parquet#0": "one dog"},
            settings={"caption_rule": CaptionRule.LONGEST},
            excluded={"missing_image": 2},
        ),
        "each": Right(
            captions={**LISTS, "coco.parquet#0#caption1": "one dog"},
            settings={"caption_rule": CaptionRule.EACH},
            excluded={"missing_image": 2},
        ),
    },
    "parquet_paths": Right(captions={"img/0.jpg": "a dog"}, beside=1),
    "parquet_base64": Right(captions={"a.parquet#0": "x"}),
    "laion": Right(captions={"part-00000-5b54c5d5-bbcf-484d-a2ce-0d6f73df1a36-c000.snappy.parquet#0": "a dog"}),
    "cc3m": Right(
        captions={
            f"{table}#{row}": caption
            for table in ("Train.tsv", "no_header.csv")
            for row, caption in enumerate(("a red bus at a station", "a singer in a green top"))
        }
    ),
}
ALL = [
    pytest.param(case, right, id=f"{case}-{name}" if name else case)
    for case, rights in RIGHT.items()
    for name, right in (rights if isinstance(rights, dict) else {"": rights}).items()
]


def test_every_case_is_here() -> None:
    assert {path.name for path in CASES.iterdir() if path.is_dir()} == {*RIGHT, "encode_off_centre"}


@pytest.mark.parametrize(("case", "right"), ALL)
def test_a_case(case: str, right: Right, tmp_path: Path) -> None:
    source = tmp_path / "case"
    shutil.copytree(CASES / case / "s" if (CASES / case / "s").is_dir() else CASES / case, source)
    with served() as server:
        _lead_to(server.url, source)
        result = ingest(source, tmp_path / "out", **right.settings, private_addresses=True)
    table, report = table_of(result), result.report
    assert dict(zip(table["key"].to_pylist(), table["alt_text"].to_pylist(), strict=True)) == right.captions
    excluded = excluded_of(result).values()
    assert Counter(row["reason"] for row in excluded) == right.excluded
    assert all(right.said in row["message"] for row in excluded)
    assert report["in"] == report["kept"] + len(excluded) and report["kept"] == len(right.captions)
    without = sum(not caption for caption in right.captions.values())
    assert report.get("noted", {}).get("without_caption", 0) == without
    assert {kind: number for kind, number in report["not_read"].items() if kind != "first"} == right.not_read
    walked = sum(len(names) for _, _, names in os.walk(source))
    assert report["files"] == {"read": walked - right.beside - sum(right.not_read.values()), "beside": right.beside}


def _lead_to(url: str, source: Path) -> None:
    """The URLs of a case's tables lead to a server of ours."""
    for path in source.iterdir():
        if path.suffix in (".tsv", ".csv"):
            text = path.read_text()
            for number, name in enumerate(("a.jpg", "b.jpg")):
                text = text.replace(f"http://127.0.0.1:8799/{name}", f"{url}/picture/{number}")
            path.write_text(text)
        elif path.suffix == ".parquet" and "URL" in (table := pq.read_table(path)).schema.names:
            urls = [f"{url}/picture/{number}" for number in range(table.num_rows)]
            pq.write_table(table.set_column(table.schema.get_field_index("URL"), "URL", pa.array(urls)), path)


def test_encode_shows_subjects_that_stand_aside(tmp_path: Path) -> None:
    recipe = sprites()
    source = str(CASES / "encode_off_centre")
    result = run_stage(ENCODE, source, str(tmp_path), recipe.for_stages(), method=recipe.method, executor=InProcess())
    latents = [decode_tensor(cell).numpy().tobytes() for cell in table_of(result)["latents"].to_pylist()]
    assert (result.report["in"], result.report["kept"], len(set(latents))) == (3, 3, 3)

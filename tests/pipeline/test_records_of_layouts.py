"""Pictures as people have them, from nothing to training records by the one command of docs/own-photos.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realcustom.pipeline.cli.main import run
from realcustom.record import check_schema
from tests.support.corpora import jpeg, picture, sample, tar_bytes
from tests.support.picture_server import served

# As in docs/own-photos.md, and nothing cached, so that no base model is needed.
SETTINGS = {
    "score": {"clip": None, "heads": None, "nsfw": None, "watermark": None},
    "select": {"min_aesthetic": None, "min_image_text": None, "max_nsfw": None, "max_watermark": None, "min_side": 32},
    "caption": {"model": None},
    "subjects": {"detector": None, "segmenter": None},
    "encode": {"latents": False, "text_features": False, "image_features": False},
    "ingest": {"private_addresses": True},
}
P = [jpeg(picture(number)) for number in range(3)]
TEXTS = ("a red toy", "an old boot", "a yellow duck")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as server:
        yield server.url


def photographs(root: Path, url: str) -> None:
    for number, data in enumerate(P):
        (root / f"{number}.jpg").write_bytes(data)
        (root / f"{number}.txt").write_text(TEXTS[number])


def imagefolder(root: Path, url: str) -> None:
    (root / "train").mkdir()
    rows = [{"file_name": f"{number}.jpg", "text": text} for number, text in enumerate(TEXTS)]
    (root / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for number, data in enumerate(P):
        (root / f"train/{number}.jpg").write_bytes(data)


def kohya(root: Path, url: str) -> None:
    for number, data in enumerate(P):
        folder = root / f"{number + 1}0_thing"
        folder.mkdir()
        (folder / "img.jpg").write_bytes(data)
        (folder / "img.caption").write_text(TEXTS[number])
        (folder / "img.npz").write_bytes(b"PK")


def img2dataset(root: Path, url: str) -> None:
    members: dict[str, bytes] = {}
    for number, data in enumerate(P):
        members |= sample(f"{number:09d}", data, TEXTS[number])
        members[f"{number:09d}.json"] = json.dumps({"caption": TEXTS[number], "url": url, "status": "success"}).encode()
    (root / "00000.tar").write_bytes(tar_bytes(members))
    (root / "00000_stats.json").write_text("{}")
    pq.write_table(pa.table({"url": [url] * 3, "caption": list(TEXTS), "key": ["0", "1", "2"]}), root / "00000.parquet")


def laion(root: Path, url: str) -> None:
    table = pa.table(
        {"URL": [f"{url}/picture/{number}" for number in range(3)], "TEXT": list(TEXTS), "pwatermark": [0.1] * 3}
    )
    pq.write_table(table, root / "part-00000.parquet")


def coco(root: Path, url: str) -> None:
    for folder in ("train2017", "annotations"):
        (root / folder).mkdir()
    for number, data in enumerate(P):
        (root / f"train2017/{number:012d}.jpg").write_bytes(data)
    images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in range(3)]
    said = [{"image_id": number, "caption": text} for number, text in enumerate(TEXTS)]
    (root / "annotations/captions_train2017.json").write_text(json.dumps({"images": images, "annotations": said}))


@pytest.mark.parametrize("layout", [photographs, imagefolder, kohya, img2dataset, laion, coco])
def test_one_command_makes_records(
    layout: Callable[[Path, str], None], url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "src", tmp_path / "records"
    source.mkdir()
    layout(source, url)
    (tmp_path / "photos.yaml").write_text(json.dumps({"preprocess": SETTINGS}))
    given = ["--recipe", "paper_sd15", "--config", str(tmp_path / "photos.yaml")]
    assert run(["preprocess", "all", *given, "--input", str(source), "--output", str(output), "--local"]) == 0
    directory = Path(capsys.readouterr().out.splitlines()[-1])
    table = pa.concat_tables(pq.read_table(path) for path in directory.glob("*.parquet"))
    check_schema(table.schema)
    rows = sorted(table.select(["caption", "target_word"]).to_pylist(), key=lambda row: row["caption"])
    assert rows == [{"caption": text, "target_word": text.rpartition(" ")[2]} for text in sorted(TEXTS)]
    assert sorted(table["image"].to_pylist()) == sorted(P)

"""The world as a corpus: the same settings give the same bytes, and every defect is where the truth says."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from realcustom import storage
from realcustom.sprites.corpus import CorpusSettings, Corruption, main, read_picture, write_corpus

SETTINGS = CorpusSettings(pictures=40, per_shard=16, corrupted=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, SETTINGS)
    return folder


def test_the_same_settings_give_the_same_bytes(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(tmp_path), "--pictures", "40", "--per-shard", "16", "--corrupted", "2"])
    assert capsys.readouterr().err.startswith("pictures 44, truncated_jpeg 2, torn_tar 1")
    for entry in storage.list_files(corpus):
        assert storage.read_bytes(storage.join(tmp_path, entry.name)) == storage.read_bytes(entry.uri), entry.name


@pytest.mark.parametrize("name", ["pictures", "per_shard", "views"])
def test_a_number_that_gives_no_corpus_is_refused(name: str) -> None:
    values: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
        CorpusSettings(**values)


def test_every_defect_is_there(corpus: Path) -> None:
    truth = pq.read_table(corpus / "truth.parquet").to_pylist()
    by_kind = {kind: [row for row in truth if row["corruption"] == kind.value] for kind in Corruption}
    assert {kind: len(rows) for kind, rows in by_kind.items()} == {
        kind: 1 if kind is Corruption.TORN_TAR else 2 for kind in Corruption
    }
    for row in by_kind[Corruption.TRUNCATED_JPEG]:
        with pytest.raises(OSError, match="truncated"):
            Image.open(io.BytesIO(read_picture(corpus, row["key"]))).load()
    for row in by_kind[Corruption.TINY_IMAGE]:
        assert Image.open(io.BytesIO(read_picture(corpus, row["key"]))).size == (8, 8)
    pictures = {row["key"]: read_picture(corpus, row["key"]) for row in truth if row["corruption"] != "torn_tar"}
    for row in by_kind[Corruption.EXACT_DUPLICATE]:
        assert sum(data == pictures[row["key"]] for data in pictures.values()) == 2
    with pytest.raises(tarfile.ReadError):
        read_picture(corpus, by_kind[Corruption.TORN_TAR][0]["key"])


def test_the_truth_is_that_of_the_picture(corpus: Path) -> None:
    rows = [row for row in pq.read_table(corpus / "truth.parquet").to_pylist() if row["corruption"] is None]
    assert len(rows) > 20
    for row in rows[:10]:
        x0, y0, x1, y1 = row["box"]
        mask = np.unpackbits(np.frombuffer(row["mask"], np.uint8)).reshape(32, 32)
        assert mask[y0:y1, x0:x1].sum() == mask.sum() > 0
        image = Image.open(io.BytesIO(read_picture(corpus, row["key"])))
        assert image.size == (32, 32)

"""Compressed files read by several threads, and what becomes of damaged ones."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from realcustom.preprocessing.ingest.compressed import open_plain
from realcustom.store import Store
from tests.support.corpora import jpeg, picture, sample, tar_bytes
from tests.support.stages import ingest, table_of

CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def test_threads_that_read_one_file_each_get_what_they_ask_for(tmp_path: Path, busy_threads: None) -> None:
    content = random.Random(0).randbytes(2**20)
    (tmp_path / "table.csv.gz").write_bytes(gzip.compress(content, 1))

    def read(seed: int) -> bool:
        rng = random.Random(seed)
        file = open_plain(str(tmp_path / "table.csv.gz"), Store(), 1)  # one for all, as the units of a worker have it
        places = [rng.randrange(len(content) - 100) for _ in range(400)]
        return all(file.read(place, 100) == content[place : place + 100] for place in places)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))


@pytest.mark.parametrize("codec", CODECS)
def test_a_shard_of_any_codec_is_read_and_a_cut_one_names_the_byte(codec: str, tmp_path: Path) -> None:
    packed = CODECS[codec](tar_bytes(sample("a", jpeg(picture(0))) | sample("b", jpeg(picture(1)))))
    (tmp_path / "src").mkdir()
    (tmp_path / f"src/whole.tar.{codec}").write_bytes(packed)
    (tmp_path / f"src/cut.tar.{codec}").write_bytes(packed[:-40])
    result = ingest(tmp_path / "src", tmp_path / "out")
    keys = {f"whole.tar.{codec}/{name}.jpg" for name in "ab"}
    assert keys <= set(table_of(result)["key"].to_pylist()) and result.report["quarantined"] == {"torn_tar": 1}


@pytest.mark.parametrize("short", ["tgz", "tbz2", "txz"])
def test_short_extensions_of_shards(short: str, tmp_path: Path) -> None:
    codec = {"tgz": "gz", "tbz2": "bz2", "txz": "xz"}[short]
    (tmp_path / f"s.{short}").write_bytes(CODECS[codec](tar_bytes(sample("a", jpeg(picture(0))))))
    assert table_of(ingest(tmp_path / f"s.{short}", tmp_path / "out"))["key"].to_pylist() == [f"s.{short}/a.jpg"]


def test_a_cut_table_is_refused_and_no_row_is_missing(tmp_path: Path) -> None:
    lines = io.StringIO()
    for number in range(2000):
        lines.write(f"http://127.0.0.1:1/{random.Random(number).random()},a toy\n")
    (tmp_path / "list.csv.gz").write_bytes(gzip.compress(f"url,caption\n{lines.getvalue()}".encode())[:-5000])
    with pytest.raises(ValueError, match=r"list\.csv\.gz ends early, the compressed data are damaged"):
        ingest(tmp_path / "list.csv.gz", tmp_path / "out")

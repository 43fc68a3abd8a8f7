"""Archives read with byte offsets: what is readable before a tear is read, and the tear is always seen."""

from __future__ import annotations

import tarfile
import tracemalloc
from pathlib import Path

import pytest

from realcustom.preprocessing.engine.unit import InputFile, Unit, UnitKind
from realcustom.preprocessing.errors import DataError, DataFault
from realcustom.preprocessing.ingest import webdataset
from realcustom.preprocessing.ingest.sample import Sample
from realcustom.preprocessing.ingest.tar import TornTar, read_members
from realcustom.preprocessing.settings import IngestSettings
from realcustom.retry import RetrySettings
from realcustom.store import Store
from tests.support.corpora import tar_bytes

MEMBERS = [("a.jpg", b"x" * 700), ("a.txt", b"a toy"), ("b.jpg", b"y" * 512), ("b.txt", b"")]
ENDS = [512 + 1024, 512 + 1024 + 1024, 3584, 4096]  # where each member's padded data end


def read(
    path: Path, chunk: int = 8 * 2**20, max_bytes: int = 2**20
) -> tuple[list[tuple[str, bytes | None]], int | None]:
    """Members that came out, and the offset of the tear."""
    found = []
    try:
        for member in read_members(Store(RetrySettings(attempts=1)).open(path, chunk), max_bytes):
            found.append((member.name, member.data))
    except TornTar as torn:
        return found, torn.offset
    return found, None


@pytest.mark.parametrize("fmt", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_as_tarfile_reads_them(tmp_path: Path, fmt: int) -> None:
    members = [("folder/" + "long" * 60 + ".jpg", b"1"), ("ümlaut.txt", b"2"), *MEMBERS]
    if fmt == tarfile.USTAR_FORMAT:
        members = members[1:]
    (tmp_path / "x.tar").write_bytes(tar_bytes(members, fmt))
    with tarfile.open(tmp_path / "x.tar") as archive:
        expected = [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    assert read(tmp_path / "x.tar") == (expected, None)
    assert read(tmp_path / "x.tar", chunk=600) == (expected, None)


def test_a_cut_anywhere_is_seen_and_what_is_before_it_kept(tmp_path: Path) -> None:
    whole = tar_bytes(MEMBERS)
    for cut in range(1, 4096 + 1, 61):
        (tmp_path / "x.tar").write_bytes(whole[:cut])
        found, torn = read(tmp_path / "x.tar")
        complete = sum(end <= cut for end in ENDS)
        # the padding after a member's data may be missing: its data are there
        assert len(found) >= complete and found == MEMBERS[: len(found)]
        assert torn is not None and torn <= cut


def test_broken_header_names_its_offset(tmp_path: Path) -> None:
    data = bytearray(tar_bytes(MEMBERS))
    data[ENDS[0] + 3] ^= 0xFF
    (tmp_path / "x.tar").write_bytes(bytes(data))
    assert read(tmp_path / "x.tar") == (MEMBERS[:1], ENDS[0])


def test_archives_one_after_the_other_are_read_to_the_last(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes(MEMBERS[:2]) + tar_bytes(MEMBERS[2:]))
    assert read(tmp_path / "x.tar") == (MEMBERS, None)


def test_a_member_above_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_bytes(MEMBERS))
    found, torn = read(tmp_path / "x.tar", max_bytes=600)
    assert found == [("a.jpg", None), *MEMBERS[1:]] and torn is None


def test_members_that_stand_apart_are_joined_without_holding_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, size = 64, 2**20
    pictures = [(f"{n}.jpg", bytes([n]) * size) for n in range(count)]
    path = tmp_path / "s.tar"
    path.write_bytes(tar_bytes(pictures + [(f"{n}.txt", b"toy %d" % n) for n in reversed(range(count))]))
    file = InputFile(name="s.tar", uri=str(path), size=path.stat().st_size)
    unit = Unit(name="s", identity="1", kind=UnitKind.TAR, files=(file,))
    monkeypatch.setattr(webdataset, "_HELD", 4 * size)
    found = []
    tracemalloc.start()
    for name, sample in webdataset.read_shard(unit, IngestSettings(), Store(RetrySettings(attempts=1))):
        assert isinstance(sample, Sample)
        found.append((name, set(sample.data), len(sample.data), sample.alt_text))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [(f"s.tar/{n}.jpg", {n}, size, f"toy {n}") for n in range(count)]
    assert peak < 32 * size  # held, and two chunks of 8 MiB while one follows the other


def test_a_tear_after_a_member_that_came_twice_is_one_fault(tmp_path: Path) -> None:
    """The sample that the tear may have cut is left out, whichever of its members was the last to come."""
    members = [("a.jpg", b"x" * 600), ("a.txt", b"a toy"), ("b.jpg", b"y" * 512), ("b.txt", b"toy"), ("b.txt", b"toys")]
    path = tmp_path / "s.tar"
    path.write_bytes(tar_bytes(members)[:5632])  # without the end marker
    file = InputFile(name="s.tar", uri=str(path), size=5632)
    unit = Unit(name="s", identity="1", kind=UnitKind.TAR, files=(file,))
    sample, torn = webdataset.read_shard(unit, IngestSettings(), Store(RetrySettings(attempts=1)))
    assert sample[0] == "s.tar/a.jpg" and isinstance(sample[1], Sample)
    assert torn[0] == "s.tar@5632" and isinstance(torn[1], DataError) and torn[1].fault is DataFault.TORN_TAR


def test_a_pax_header_whose_length_is_no_length_is_broken(tmp_path: Path) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 5120
    (tmp_path / "x.tar").write_bytes(
        header.tobuf() + b"9" * 5000 + b" path=a.jpg\n".ljust(120, b"\0") + tar_bytes(MEMBERS)
    )
    assert read(tmp_path / "x.tar") == ([], 0)

"""What a job takes along: the files that git tracks, the same bytes for the same files, within a limit."""

from __future__ import annotations

import io
import os
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from realcustom.errors import UsageError
from realcustom.pipeline.packing import check_size, content_name, find_package


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A working tree with a link to a folder, a deleted file, an ignored folder and a weight file that nobody tracks."""
    root = tmp_path / "tree"
    for name, text in {
        "a.yaml": "steps: 1\n",
        "code/one.py": "1\n",
        "code/deep/two.py": "2\n",
        "gone.txt": "gone",
        "outputs/big.bin": "0" * 1000,
        "weights.safetensors": "0" * 1000,
        ".gitignore": "/outputs/\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "linked").mkdir()
    (root / "linked" / "code").symlink_to("../code")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    git(root, "init", "-q")
    git(root, "add", "a.yaml", "code", "gone.txt", ".gitignore", "linked", "run.sh")
    (root / "gone.txt").unlink()
    return root


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True)


def test_what_git_tracks_is_taken(tree: Path) -> None:
    package = find_package(tree / "code")
    expected = {"a.yaml", "code/one.py", "code/deep/two.py", ".gitignore", "run.sh"}
    assert set(package.files) == expected | {"linked/code/one.py", "linked/code/deep/two.py"}
    assert package.untracked == 1, "the weights, which are not ignored either"
    (tree / "a.yaml").write_text("steps: 2\n")  # as it is now, committed or not
    with zipfile.ZipFile(io.BytesIO(package.zipped({"start": b"first"}))) as archive:
        assert archive.read("a.yaml") == b"steps: 2\n"
        assert archive.read("linked/code/deep/two.py") == b"2\n"
        assert archive.read("start") == b"first"
        assert archive.getinfo("run.sh").external_attr >> 16 & 0o777 == 0o755


def test_equal_files_are_equal_bytes(tree: Path) -> None:
    first = find_package(tree).zipped({})
    os.utime(tree / "a.yaml", (0, 0))
    assert content_name(find_package(tree).zipped({})) == content_name(first)
    (tree / "a.yaml").write_text("steps: 3\n")
    assert content_name(find_package(tree).zipped({})) != content_name(first)


def test_a_tree_over_the_limit_names_its_largest_files(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(12):
        (tree / f"large-{number:02d}.bin").write_bytes(bytes(6_000_000 + number))
    git(tree, "add", ".")
    package = find_package(tree)
    with pytest.raises(
        UsageError, match=r"over the limit of 20 MB \(.*72 MB; the largest: large-11.bin 6.0 MB,"
    ) as error:
        check_size(package, 20_000_000)
    assert "large-02" in str(error.value) and "large-01" not in str(error.value), "ten of them"
    check_size(package, None)
    assert "72 MB" in caplog.text


def test_no_repository_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is in no git repository"):
        find_package(tmp_path)


@pytest.mark.slow
def test_ten_thousand_files_are_packed_within_seconds(tmp_path: Path) -> None:
    for number in range(10_000):
        folder = tmp_path / f"{number % 100:02d}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.txt").write_text(f"{number}\n" * 20)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    begun = time.process_time()
    package = find_package(tmp_path)
    package.zipped({})
    assert len(package.files) == 10_000 and time.process_time() - begun < 5

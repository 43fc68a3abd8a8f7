"""What a job takes along: the files that git tracks, the same bytes for the same files, within a limit."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from realcustom.errors import UsageError
from realcustom.pipeline.packing import content_name, find_package

ROOT = Path(__file__).parents[2]


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


def test_a_tree_over_the_limit_names_its_largest_files(tree: Path) -> None:
    rng = random.Random(0)
    for number in range(12):
        (tree / f"large-{number:02d}.bin").write_bytes(rng.randbytes(100_000 + 1000 * number))
    (tree / "zeros.bin").write_bytes(bytes(1_000_000))  # next to nothing in a zip
    git(tree, "add", ".")
    package = find_package(tree)
    with pytest.raises(
        UsageError,
        match=r"over the limit of 1 MB \(.* files, 2 MB; the largest: zeros.bin 1.0 MB, large-11.bin 0.1 MB,",
    ) as error:
        package.zipped({}, 1_000_000)
    assert "large-03" in str(error.value) and "large-02" not in str(error.value), "ten of them"
    size = len(package.zipped({}, 2_000_000))
    assert 1_200_000 < size < 1_400_000, "it is the zip that counts"
    assert len(package.zipped({}, size + 1)) == size
    with pytest.raises(UsageError, match="over the limit"):
        package.zipped({}, size)  # its table of contents, which comes last, is a part of it


def test_our_own_package_holds_each_file_once_and_is_found_without_links(tmp_path: Path) -> None:
    package = find_package(ROOT)
    assert {
        name.split("/")[1] for name in package.files if name.startswith("realcustom/") and name.count("/") > 1
    } == set()
    assert package.size < 40_000_000
    for name, path in package.files.items():
        if name.endswith(".py") and not name.startswith("tests/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / name)
    program = "from realcustom.pipeline import owned, packing; from realcustom.preprocessing import settings; print(owned.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd="/", env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "pipeline" / "owned.py"), done.stderr


def test_a_name_that_is_no_text_is_said(tree: Path) -> None:
    (tree / os.fsdecode(b"caf\xe9.txt")).write_text("a")
    subprocess.run(["git", "add", "."], cwd=tree, check=True)
    with pytest.raises(UsageError, match=r"git tracks 'caf\\udce9\.txt', whose name is not UTF-8.*rename it"):
        find_package(tree)


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

"""What a job takes along: the files that git tracks, as a zip whose name is its content's hash."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import stat
import subprocess
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from realcustom.errors import UsageError

logger = logging.getLogger(__name__)

MB = 10**6
LARGE_MB = 50  # from here on the size and the largest files are said
LIMIT = 100 * 2**20  # bytes of a zip; the dashboard of a cluster's head takes less, and what is larger goes to a store
LARGEST = 10
# Hardly smaller when compressed again.
_COMPRESSED = (".safetensors", ".png", ".jpg", ".webp", ".parquet", ".zip", ".gz", ".whl")
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can hold: equal files are equal bytes


@dataclass(frozen=True, kw_only=True)
class Package:
    """The files of a working tree that a job takes along."""

    root: Path
    files: Mapping[str, Path]  # name in the package -> file
    sizes: Mapping[str, int]  # bytes
    untracked: int = 0  # files that git neither tracks nor ignores; they stay behind

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    def __str__(self) -> str:
        names = sorted(self.sizes, key=lambda name: (-self.sizes[name], name))[:LARGEST]
        largest = ", ".join(f"{name} {self.sizes[name] / MB:.1f} MB" for name in names)
        return f"{len(self.files)} files, {self.size / MB:.0f} MB; the largest: {largest}"

    def zipped(self, further: Mapping[str, bytes], limit: int | None = None) -> bytes:
        """As a zip, with further files by their names; equal files give equal bytes.

        Raises UsageError, naming the largest files, for one of `limit` bytes or more; None: any size.
        """
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, data in further.items():
                archive.writestr(_info(name, 0o644), data)
            for name in sorted(self.files):
                path = self.files[name]
                archive.writestr(_info(name, stat.S_IMODE(path.stat().st_mode)), path.read_bytes())
                self._check_size(buffer.tell(), limit)
        data = buffer.getvalue()
        self._check_size(len(data), limit)  # with the zip's table of contents, which is written last
        return data

    def _check_size(self, size: int, limit: int | None) -> None:
        if limit is not None and size >= limit:
            raise UsageError(
                f"what git tracks below {self.root} is, as a zip, over the limit of {limit / MB:.0f} MB ({self}): have "
                "git forget what a job does not need (git rm --cached), or give --storage s3://BUCKET/FOLDER"
            )


def find_package(folder: Path) -> Package:
    """The files that git tracks in the working tree of `folder`, as they are now; submodules and links included.

    Raises UsageError where there is no such tree.
    """
    root = Path(_git(folder, "rev-parse", "--show-toplevel").strip())
    tracked = [name for name in _git(root, "ls-files", "-z", "--recurse-submodules").split("\0") if name]
    untracked = [name for name in _git(root, "ls-files", "-z", "--others", "--exclude-standard").split("\0") if name]
    files = dict(_through_links(root, tracked))
    odd = next((name for name in files if os.fsencode(name) != name.encode("utf-8", "replace")), None)
    if odd is not None:
        raise UsageError(f"git tracks {odd!a}, whose name is not UTF-8 as all names in a package are: rename it")
    sizes = {name: path.stat().st_size for name, path in files.items()}
    return Package(root=root, files=files, sizes=sizes, untracked=len(untracked))


def content_name(data: bytes) -> str:
    """The name of a zip, by its content."""
    return hashlib.sha256(data).hexdigest()[:24]


def _through_links(root: Path, names: list[str]) -> list[tuple[str, Path]]:
    """Names and files; a link to a folder of the tree stands for the tracked files in it, as a zip has no links.

    The links that make our own parts modules of `realcustom` are left out: its `__init__.py` finds the folders beside it.
    """
    found = []
    for name in names:
        path = root / name
        if not path.exists():  # deleted and not yet committed, or a link to nothing
            continue
        if not path.is_dir():
            found.append((name, path))
            continue
        target = os.path.relpath(path.resolve(), root.resolve())
        if name == f"realcustom/{target}":
            continue
        found += [(name + inner[len(target) :], root / inner) for inner in names if inner.startswith(target + os.sep)]
    return found


def _info(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _TIME)
    info.external_attr = (stat.S_IFREG | mode) << 16
    info.compress_type = zipfile.ZIP_STORED if name.endswith(_COMPRESSED) else zipfile.ZIP_DEFLATED
    return info


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, check=True)
    except FileNotFoundError as error:
        raise UsageError("git is not installed, and a job takes along what git tracks; or give --no-package") from error
    except subprocess.CalledProcessError as error:
        said = os.fsdecode(error.stderr).strip()
        raise UsageError(
            f"a job takes along what git tracks, and {folder} is in no git repository (git said: "
            f"{said}); make one (git init, git add), or give --no-package where the cluster has the code"
        ) from error
    return os.fsdecode(done.stdout)  # names of files need not be text

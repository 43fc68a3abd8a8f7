"""Files on a local disk or an object store behind one set of calls; a path or a URI (`s3://bucket/key`) names them.

`pyarrow.fs` does the work; `AWS_ENDPOINT_URL` and the usual AWS variables are honoured. Writes are atomic: a reader
sees the old file, the new one, or none, never a part.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from realcustom.errors import MissingFile, UsageError

_BUCKET = re.compile(r"[A-Za-z0-9._-]+")
LISTING_ATTEMPTS = 8  # of a page, with a growing wait between: about a minute of a store that is overloaded


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file of a listing."""

    name: str  # relative to the listed folder, with forward slashes
    uri: str
    size: int  # bytes
    version: str  # changes when the content does: ETag of an object, mtime in ns of a local file


def is_remote(uri: str | Path) -> bool:
    """Whether `uri` names an object store (has a scheme other than file://)."""
    text = str(uri)
    return "://" in text and not text.startswith("file://")


def open_filesystem(uri: str | Path) -> tuple[fs.FileSystem, str]:
    """The pyarrow filesystem of `uri` and the path within it. Raises UsageError for what cannot be a bucket's name."""
    if str(uri).startswith("s3://"):
        bucket, _, key = str(uri).removeprefix("s3://").partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise UsageError(f"{uri}: {bucket!r} cannot be a bucket's name")
        # Only the bucket goes through a URI: a key is data, whose ?, # and % must not be read as a URI's, and lead to
        # another object or to another host. With a delayed open a small object is written by one PUT, a larger one in
        # parts still, which a kill leaves behind in the store (docs/preprocessing/how-to.md says how to remove them).
        filesystem, _ = fs.FileSystem.from_uri(f"s3://{bucket}?allow_delayed_open=true")
        return filesystem, f"{bucket}/{key}".rstrip("/")
    if is_remote(uri):
        filesystem, path = fs.FileSystem.from_uri(str(uri))
        return filesystem, str(path)
    return fs.LocalFileSystem(), str(Path(str(uri).removeprefix("file://")).absolute())


def join(uri: str | Path, *parts: str) -> str:
    """`uri` with `parts` below it, one slash between."""
    return "/".join([str(uri).rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str | Path) -> str:
    """A local path in full, so that a process in another folder finds it; a URI as it is."""
    return str(uri) if is_remote(uri) else str(Path(str(uri).removeprefix("file://")).expanduser().absolute())


def exists(uri: str | Path) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = open_filesystem(uri)
    return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def is_dir(uri: str | Path) -> bool:
    """Whether `uri` is a folder (on an object store: a key prefix that holds something)."""
    filesystem, path = open_filesystem(uri)
    return bool(filesystem.get_file_info(path).type == fs.FileType.Directory)


def size_of(uri: str | Path) -> int:
    """Bytes of a file that is there."""
    filesystem, path = open_filesystem(uri)
    return int(filesystem.get_file_info(path).size)


def read_bytes(uri: str | Path) -> bytes:
    """The whole file. Raises FileNotFoundError with the uri."""
    filesystem, path = open_filesystem(uri)
    try:
        # knows its size: a stream's buffer grows as it is read, at ten times the cost
        with filesystem.open_input_file(path) as file:
            data: bytes = file.read()
            return data
    except FileNotFoundError as error:
        raise MissingFile(f"no file at {uri}") from error


def write_bytes(uri: str | Path, data: bytes) -> None:
    """Write atomically, folders made as needed: a temporary file renamed into place, or one object."""
    filesystem, path = open_filesystem(uri)
    if is_remote(uri):
        with filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(data)
        return
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".tmp-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def delete(uri: str | Path) -> None:
    """Remove a file; one that is not there is left so."""
    filesystem, path = open_filesystem(uri)
    if exists(uri):
        filesystem.delete_file(path)


def delete_folder(uri: str | Path) -> None:
    """Remove a folder and all that is in it."""
    filesystem, path = open_filesystem(uri)
    filesystem.delete_dir(path)


def remove_partial_files(uri: str | Path) -> None:
    """Remove what writers that were killed left below a local folder. Nobody may be writing there.

    What a store keeps of an upload in parts no listing shows: it is the store's to remove.
    """
    if not is_remote(uri):
        for path in Path(open_filesystem(uri)[1]).rglob(".tmp-*"):
            path.unlink(missing_ok=True)


def list_files(uri: str | Path, recursive: bool = True) -> list[FileEntry]:
    """All files below `uri`, sorted by name; files being written (`.tmp-*`) are left out.

    Raises FileNotFoundError if the folder does not exist.
    """
    if is_remote(uri):
        return _list_objects(str(uri), recursive)
    _, root = open_filesystem(uri)
    if not os.path.isdir(root):
        raise MissingFile(f"no folder at {uri}")
    return sorted(_walk(root, "", recursive), key=lambda entry: entry.name)


def list_names(uri: str | Path) -> list[str]:
    """Names of the files directly in a folder, sorted, as `list_files` has them; nothing of a file is looked at.

    Raises FileNotFoundError if the folder does not exist.
    """
    if is_remote(uri):
        return [entry.name for entry in _list_objects(str(uri), recursive=False)]
    _, root = open_filesystem(uri)
    try:
        with os.scandir(root) as found:
            return sorted(item.name for item in found if not item.name.startswith(".tmp-") and not item.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFile(f"no folder at {uri}") from None


def _walk(folder: str, prefix: str, recursive: bool) -> Iterator[FileEntry]:
    """The files of a local folder; `prefix` is its name relative to the listed one. Links to folders are left out."""
    with os.scandir(folder) as found:
        items = list(found)
    for item in items:
        name = prefix + item.name
        if item.is_dir():
            if recursive and not item.is_symlink():
                yield from _walk(item.path, name + "/", recursive)
        elif not item.name.startswith(".tmp-"):
            try:
                stat = item.stat()
            except FileNotFoundError:  # removed while we looked
                continue
            yield FileEntry(name=name, uri=item.path, size=stat.st_size, version=str(stat.st_mtime_ns))


def _list_objects(uri: str, recursive: bool) -> list[FileEntry]:
    import boto3  # pyarrow's listing has no ETag
    from botocore.config import Config

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
    client = boto3.client("s3", config=Config(retries={"mode": "standard", "total_max_attempts": LISTING_ATTEMPTS}))
    # with a delimiter the store leaves out what lies in folders below: a page brings 1000 keys, wanted or not
    options = {} if recursive else {"Delimiter": "/"}
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **options)
    entries, exists = [], False
    for page in pages:
        exists = exists or bool(page.get("Contents") or page.get("CommonPrefixes"))
        for item in page.get("Contents", []):
            name = item["Key"][len(prefix) :]
            if not name or name.endswith("/"):
                continue
            entry_uri = f"s3://{bucket}/{item['Key']}"
            entries.append(FileEntry(name=name, uri=entry_uri, size=item["Size"], version=item["ETag"].strip('"')))
    if not exists:
        raise MissingFile(f"no folder at {uri}")
    return sorted(entries, key=lambda entry: entry.name)

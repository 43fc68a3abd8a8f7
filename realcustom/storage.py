"""Files on a local disk or an object store through one set of functions, by path or URI (`s3://bucket/key`).

`pyarrow.fs` does the work; `AWS_ENDPOINT_URL` and the usual AWS variables are honoured. Writes are atomic: a reader
sees the old file, the new one, or none, never a part.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote_plus
from xml.etree import ElementTree
from xml.sax.saxutils import unescape

import pyarrow as pa
from pyarrow import fs

from realcustom.errors import MissingFile, UsageError

_BUCKET = re.compile(r"[A-Za-z0-9._-]+")
_FIELDS = [re.compile(rb"<%b>([^<]*)</%b>" % (name, name)) for name in (b"Key", b"Size", b"ETag")]  # of a listing
_CONTENTS = re.compile(rb"<Contents>.*</Contents>", re.DOTALL)
_QUOTES = {"&quot;": '"', "&apos;": "'"}  # what XML writes otherwise, besides &, < and >
WRITE_ATTEMPTS = 10  # tries of a local write whose temporary file another process removes
LARGE = 64 * 2**20  # bytes: such an object is written in parts, several at a time
PART_ATTEMPTS = 3  # tries of each of them, since one that fails would fail the whole object

T = TypeVar("T")


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
        bucket, key = split_uri(uri)
        # Only the bucket goes through a URI: ?, # and % in a key must not be parsed as parts of a URI, which would name
        # another object or host.
        filesystem, _ = fs.FileSystem.from_uri(f"s3://{bucket}")
        return filesystem, f"{bucket}/{key}".rstrip("/")
    require_known(uri)
    return fs.LocalFileSystem(), str(Path(str(uri).removeprefix("file://")).absolute())


def split_uri(uri: str | Path) -> tuple[str, str]:
    """Bucket and key of an `s3://` URI. Raises UsageError for what cannot be a bucket's name."""
    bucket, _, key = str(uri).removeprefix("s3://").partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{uri}: {bucket!r} cannot be a bucket's name")
    return bucket, key


def require_known(uri: str | Path) -> None:
    """Raise UsageError for an address that is neither a path nor on `s3://`."""
    if is_remote(uri) and not str(uri).startswith("s3://"):
        scheme = str(uri).partition("://")[0]
        hint = "the store's S3 address (AWS_ENDPOINT_URL=https://storage.googleapis.com), " if scheme == "gs" else ""
        raise UsageError(f"{uri}: {scheme}:// is not read or written here: use {hint}s3:// or a folder of this machine")


def join(uri: str | Path, *parts: str) -> str:
    """`uri` and `parts`, joined with one slash."""
    return "/".join([str(uri).rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str | Path) -> str:
    """The one form of an address: a local path absolute and without `..`, an object's without a slash at its end.

    So a process in another folder finds it, and whatever way it was written, a fingerprint is the same.
    """
    if is_remote(uri):
        return str(uri).rstrip("/")
    path = os.path.expanduser(str(uri).removeprefix("file://"))
    if not os.path.isabs(path):
        path = os.path.join(os.getcwd(), path)
    folder, up, rest = f"{path}/".rpartition("/../")
    if up:  # what is above a link is what is above its target
        path = os.path.join(os.path.realpath(f"{folder}/.."), rest)
    return os.path.normpath(path)


def exists(uri: str | Path) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = open_filesystem(uri)
    return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def is_dir(uri: str | Path) -> bool:
    """Whether `uri` is a folder (on an object store: a key prefix that holds something)."""
    filesystem, path = open_filesystem(uri)
    return bool(filesystem.get_file_info(path).type == fs.FileType.Directory)


def size_of(uri: str | Path) -> int:
    """Size of an existing file in bytes."""
    filesystem, path = open_filesystem(uri)
    return int(filesystem.get_file_info(path).size)


def read_bytes(uri: str | Path) -> bytes:
    """The content of a file. Raises MissingFile with the uri."""
    filesystem, path = open_filesystem(uri)
    try:
        # the size is known: a stream's buffer grows while reading, at ten times the cost
        with filesystem.open_input_file(path) as file:
            data: bytes = file.read()
            return data
    except FileNotFoundError as error:
        raise MissingFile(f"no file at {uri}") from error


def write_bytes(uri: str | Path, data: bytes | memoryview) -> None:
    """Write atomically, folders made as needed: a temporary file renamed into place, or one object."""
    if str(uri).startswith("s3://"):
        return _write_object(str(uri), data)
    path = open_filesystem(uri)[1]
    for _ in range(WRITE_ATTEMPTS - 1):
        with contextlib.suppress(FileNotFoundError):  # another run cleaned up between two lines of ours
            return _write_local(path, data)
    _write_local(path, data)


def _write_object(uri: str, data: bytes | memoryview) -> None:
    """`data` may be a memoryview; a large one is not copied. A stream of pyarrow's would write what it has, or nothing, where an
    error or a Ctrl-C ends its use.
    """
    from boto3.s3.transfer import TransferConfig

    bucket, key = split_uri(uri)
    if len(data) < LARGE:
        s3_client().put_object(Bucket=bucket, Key=key, Body=bytes(data))  # it takes no memoryview
        return
    # an upload that is not finished is aborted
    parts = TransferConfig(multipart_threshold=LARGE, multipart_chunksize=LARGE // 4)
    s3_client(PART_ATTEMPTS).upload_fileobj(pa.BufferReader(data), bucket, key, Config=parts)


def _write_local(path: str, data: bytes | memoryview) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".tmp-")
    try:
        with os.fdopen(handle, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # shows `remove_partial_files` that it is being written
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def delete(uri: str | Path) -> None:
    """Remove a file, if it exists."""
    filesystem, path = open_filesystem(uri)
    if exists(uri):
        with contextlib.suppress(FileNotFoundError):  # another run removed it
            filesystem.delete_file(path)


def delete_folder(uri: str | Path) -> None:
    """Remove a folder and its content."""
    filesystem, path = open_filesystem(uri)
    filesystem.delete_dir(path)


def remove_partial_files(uri: str | Path) -> None:
    """Remove temporary files of killed writers below a local folder; those that are being written on this machine stay.

    An object store's unfinished uploads are in no listing; the store has to remove them.
    """
    if not is_remote(uri):
        for path in Path(open_filesystem(uri)[1]).rglob(".tmp-*"):
            with contextlib.suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where a writer has it
                path.unlink()


def once(act: Callable[[], T]) -> T:
    """`act()`: what reads a listing's pages where nothing is tried again."""
    return act()


def list_files(
    uri: str | Path, recursive: bool = True, attempt: Callable[[Callable[[], Any]], Any] = once
) -> list[FileEntry]:
    """All files below `uri`, sorted by name; files being written (`.tmp-*`) are left out.

    Args:
        attempt: calls what reads a page of a store's listing, or a local one as a whole, as often as is needed.
    Raises:
        FileNotFoundError: the folder does not exist.
    """
    if is_remote(uri):
        return _list_objects(str(uri), recursive, attempt)
    _, root = open_filesystem(uri)
    if not os.path.isdir(root):
        raise MissingFile(f"no folder at {uri}")
    files: list[FileEntry] = attempt(lambda: sorted(_walk(root, "", recursive), key=lambda entry: entry.name))
    return files


def list_names(uri: str | Path, attempt: Callable[[Callable[[], Any]], Any] = once) -> list[str]:
    """Names of the files directly in a folder, sorted, as in `list_files`; no file's metadata is read.

    Raises FileNotFoundError if the folder does not exist.
    """
    if is_remote(uri):
        return [entry.name for entry in _list_objects(str(uri), recursive=False, attempt=attempt)]
    _, root = open_filesystem(uri)

    def scan() -> list[str]:
        with os.scandir(root) as found:
            return sorted(item.name for item in found if not item.name.startswith(".tmp-") and not item.is_dir())

    try:
        names: list[str] = attempt(scan)
        return names
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFile(f"no folder at {uri}") from None


def first_beginning(prefix: str) -> str | None:
    """The URI of a file whose URI begins with `prefix`. None: there is none."""
    if not is_remote(prefix):
        folder, _, start = prefix.rpartition("/")
        try:
            names = os.listdir(open_filesystem(folder)[1])
        except FileNotFoundError:
            return None
        return next((f"{folder}/{name}" for name in names if name.startswith(start)), None)
    bucket, key = split_uri(prefix)
    found = s3_client().list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Files")
    return f"s3://{bucket}/{found[0][0]}" if found else None


def names_after(folder: str, first: str, most: int) -> list[str]:
    """Names of at most `most` files of a folder: those that follow `first` in the order of names, none where it does not exist."""
    if not is_remote(folder):
        with contextlib.suppress(FileNotFoundError):
            return sorted(name for name in os.listdir(open_filesystem(folder)[1]) if name > first)[:most]
        return []
    bucket, prefix = split_uri(folder.rstrip("/") + "/")
    page = s3_client().list_objects_v2(Bucket=bucket, Prefix=prefix, StartAfter=prefix + first, MaxKeys=most)
    return [key.removeprefix(prefix) for key, *_ in page.get("Files", ())]


def s3_client(attempts: int = 1, connect_seconds: float = 60.0, read_seconds: float = 60.0) -> Any:
    """A boto3 client of the environment's store, made once: it takes a good part of a second.

    Args:
        attempts: tries of each request; those of `Store` multiply with them.
        connect_seconds: for a connection; boto3's own by default.
        read_seconds: for an answer; the same.
    """
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    return _client_of(attempts, connect_seconds, read_seconds, environment)


@functools.lru_cache(maxsize=4)
def _client_of(
    attempts: int, connect_seconds: float, read_seconds: float, environment: tuple[tuple[str, str], ...]
) -> Any:
    import boto3
    from botocore.config import Config

    # not all stores know the checksums that are sent unasked
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=connect_seconds,
        read_timeout=read_seconds,
        request_checksum_calculation="when_required",
    )
    client = boto3.Session().client("s3", config=config)
    # under this name it comes before botocore's own handlers, of which one parses the whole page
    client.meta.events.register("before-parse.*.ListObjectsV2", _read_page)
    return client


def _read_page(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Read the files of a page of a listing here, at a small part of botocore's cost, and leave it the rest of the page.

    They come as `Files`: key, size and ETag of each.
    """
    if response_dict["status_code"] != 200:
        return
    read = _read_plain(response_dict["body"]) or _read_xml(response_dict["body"])
    if read is not None:
        customized_response_dict["Files"], response_dict["body"] = read


_Files = list[tuple[str, int, str]]  # key, size and ETag


def _read_plain(body: bytes) -> tuple[_Files, bytes] | None:
    """The files of a page that is written as S3 writes it, and the rest of it. None: it is written otherwise."""
    if b"&#" in body or b"<![CDATA[" in body or b"<CommonPrefixes>" in body:
        return None
    columns = [pattern.findall(body) for pattern in _FIELDS]
    if not columns[0] or any(len(column) != body.count(b"<Contents>") for column in columns):
        return None
    keys, sizes, tags = (list(map(bytes.decode, column)) for column in columns)
    keys = [unescape(key, _QUOTES) if "&" in key else key for key in keys]
    if b"<EncodingType>url</EncodingType>" in body:
        keys = [unquote_plus(key) if "%" in key or "+" in key else key for key in keys]
    versions = [tag.replace("&quot;", "").strip('"') for tag in tags]
    return list(zip(keys, map(int, sizes), versions, strict=True)), _CONTENTS.sub(b"", body)


def _read_xml(body: bytes) -> tuple[_Files, bytes] | None:
    """The same of any page. None: it is cut off; botocore raises for it, and `Store` asks again."""
    try:
        page = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        return None
    space = page.tag.rpartition("}")[0] + "}" if page.tag.startswith("{") else ""
    key_tag, size_tag, tag_tag = (f"{space}{name}" for name in ("Key", "Size", "ETag"))
    is_encoded = page.findtext(f"{space}EncodingType") == "url"
    files = []
    for item in page.findall(f"{space}Contents"):
        found = {child.tag: child.text for child in item}
        key = found[key_tag] or ""
        key = unquote_plus(key) if is_encoded and ("%" in key or "+" in key) else key
        files.append((key, int(found[size_tag] or 0), (found[tag_tag] or "").strip('"')))
        page.remove(item)
    return files, ElementTree.tostring(page)


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


def _list_objects(uri: str, recursive: bool, attempt: Callable[[Callable[[], Any]], Any]) -> list[FileEntry]:
    base = uri.rstrip("/") + "/"
    entries = [
        FileEntry(name=name, uri=base + name, size=size, version=version)
        for page in object_pages(uri, recursive, attempt)
        for name, size, version in page
    ]
    return sorted(entries, key=lambda entry: entry.name)


def object_pages(
    uri: str, recursive: bool = True, attempt: Callable[[Callable[[], Any]], Any] = once
) -> Iterator[list[tuple[str, int, str]]]:
    """Name, size and version of all objects below `uri`, as a store lists them, mostly by name.

    Args:
        attempt: calls what asks for a page as often as is needed: a long listing does not begin anew.
    Raises:
        MissingFile: there is nothing.
    """
    bucket, prefix = split_uri(uri)
    prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
    client = s3_client()  # pyarrow's listing has no ETag
    # with a delimiter the store leaves out keys in folders below, which would fill the pages of 1000 keys
    options = {"Bucket": bucket, "Prefix": prefix, **({} if recursive else {"Delimiter": "/"})}
    exists, more = False, True
    while more:
        page = attempt(functools.partial(client.list_objects_v2, **options))
        more = bool(page.get("IsTruncated"))
        if more:
            options["ContinuationToken"] = page["NextContinuationToken"]
        exists = exists or bool(page.get("Files") or page.get("CommonPrefixes"))
        below = len(prefix)
        yield [
            (key[below:], size, version)
            for key, size, version in page.get("Files", ())
            if not key.endswith("/") and len(key) > below
        ]
    if not exists:
        raise MissingFile(f"no folder at {uri}")

"""Reading and writing with retries: transient errors are retried; a refusal becomes one sentence that says what to do.

A `Store` is made once from its retry settings and passed to the code that reads or writes. storage.py has the plain
calls.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from realcustom import storage
from realcustom.errors import MissingFile, UsageError
from realcustom.retry import RetrySettings, retry
from realcustom.storage import FileEntry

T = TypeVar("T")

CONNECT_SECONDS = 5.0  # seconds for an object store to accept a connection, before any work begins
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_ENDPOINT_URL for a store that is not Amazon's)"
_UNREACHABLE = "nothing answers at the store's address; is AWS_ENDPOINT_URL right?"
_DENIED = "access denied; the credentials that are set have no right to it"


@dataclass(frozen=True, kw_only=True)
class _Code:
    """The meaning of an object store's answer."""

    reason: str
    permanent: bool = True  # a retry cannot help


# By the code of S3's answers in boto3's and in pyarrow's spelling, without underscores and in lower case.
_CODES = {
    "nosuchbucket": _Code(reason="the bucket does not exist; create it or correct its name"),
    "accessdenied": _Code(reason=_DENIED),
    "forbidden": _Code(reason=_DENIED),
    "403": _Code(reason=_DENIED),  # of an answer without a body, as for HEAD
    "invalidaccesskeyid": _Code(reason=f"wrong credentials, the key is not known there; {_CREDENTIALS}"),
    "signaturedoesnotmatch": _Code(reason=f"wrong credentials, the secret does not fit the key; {_CREDENTIALS}"),
    "invalidtoken": _Code(reason="wrong credentials, the session's token does not fit the key; set AWS_SESSION_TOKEN"),
    "expiredtoken": _Code(reason="the credentials have expired; renew them"),
    "requesttimetooskewed": _Code(reason="this machine's clock differs from the store's by too much; set it"),
    **dict.fromkeys(
        ("permanentredirect", "authorizationheadermalformed", "illegallocationconstraintexception", "301"),
        _Code(reason="the bucket is in another region; set AWS_DEFAULT_REGION to it"),
    ),
    "nocredentials": _Code(reason=f"no credentials; {_CREDENTIALS}"),
    "invalidbucketname": _Code(reason="this cannot be a bucket's name"),
    **dict.fromkeys(
        ("slowdown", "serviceunavailable", "internalerror", "requestlimitexceeded", "503", "500"),
        _Code(reason="the store keeps failing, or is asked too much: run it again later", permanent=False),
    ),
    "endpointconnection": _Code(reason=_UNREACHABLE, permanent=False),
    "connecttimeout": _Code(reason=_UNREACHABLE, permanent=False),
    "networkconnection": _Code(reason=_UNREACHABLE, permanent=False),
}
# By the operation that was denied: the action that a policy has to allow.
_ACTIONS = {
    **dict.fromkeys(("ListObjects", "ListObjectsV2", "HeadBucket"), "s3:ListBucket"),
    **dict.fromkeys(("GetObject", "HeadObject"), "s3:GetObject"),
    **dict.fromkeys(("DeleteObject", "DeleteObjects"), "s3:DeleteObject"),
    **dict.fromkeys(
        ("PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"),
        "s3:PutObject",
    ),
}
_TOO_MANY_REQUESTS = 429
# By the errno of a local file system's error.
_LOCAL = {
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full (ENOSPC)",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "the file is larger than the file system or a limit (ulimit -f) allows",
    errno.EIO: "the disk reports an error",
    errno.ENAMETOOLONG: "the file system takes no name as long as that",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}
# Errors about the file or our rights, not transient ones of the network or the disk.
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_PERMANENT_ERRNO = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENAMETOOLONG, errno.EFBIG})


class StorageRefused(UsageError):
    """A storage refuses an operation, and a retry did not or would not help."""


class AccessDenied(StorageRefused):
    """The storage answers, and does not let us read, write or list what was asked for."""


OF_ONE_FILE = (MissingFile, AccessDenied)  # errors of a file whose storage answers: others may be readable


class Store:
    """Files on a disk or an object store, by path or URI.

    Every call retries transient errors and raises StorageRefused if the storage refuses. A missing file is a
    MissingFile, which callers may handle.
    """

    def __init__(self, retries: RetrySettings | None = None):
        self.retries = retries or RetrySettings()

    def call(self, action: Callable[[str], T], uri: str | Path, doing: str = "read") -> T:
        """`action(uri)`, with retries; `doing` names the operation in a refusal's message."""
        uri = str(uri)
        with refusals(doing, uri):
            return self.attempt(lambda: action(uri))

    def attempt(self, act: Callable[[], T]) -> T:
        """`act()`, with retries; its error as it is."""
        return retry(act, self.retries, is_transient)

    def read(self, uri: str | Path) -> bytes:
        """A whole file."""
        return self.call(storage.read_bytes, uri)

    def open(self, uri: str | Path, chunk: int = 8 * 2**20) -> ChunkedFile:
        """A file that is read piece by piece."""
        return ChunkedFile(self, str(uri), chunk)

    def write(self, uri: str | Path, data: bytes | memoryview) -> None:
        """Write a file atomically."""
        self.call(lambda place: storage.write_bytes(place, data), uri, "write")

    def delete(self, uri: str | Path) -> None:
        """Remove a file; one that is not there is left so."""
        self.call(storage.delete, uri, "delete")

    def delete_folder(self, uri: str | Path) -> None:
        """Remove a folder and all that is in it."""
        self.call(storage.delete_folder, uri, "delete")

    def exists(self, uri: str | Path) -> bool:
        """Whether a file or folder is there."""
        return self.call(storage.exists, uri)

    def is_dir(self, uri: str | Path) -> bool:
        """Whether it is a folder (on an object store: a key prefix that holds something)."""
        return self.call(storage.is_dir, uri)

    def size(self, uri: str | Path) -> int:
        """Bytes of a file that is there."""
        return self.call(storage.size_of, uri)

    def list_files(self, uri: str | Path, recursive: bool = True) -> list[FileEntry]:
        """All files below a folder, sorted by name. Raises MissingFile if it does not exist."""
        with refusals("list", str(uri)):
            return storage.list_files(uri, recursive, self.attempt)

    def list_names(self, uri: str | Path) -> list[str]:
        """Names of the files directly in a folder, sorted; none where it does not exist."""
        try:
            with refusals("list", str(uri)):
                return storage.list_names(uri, self.attempt)
        except FileNotFoundError:
            return []


class ChunkedFile:
    """Ranges of a file, fetched in chunks; each fetch is retried."""

    def __init__(self, store: Store, uri: str, chunk: int):
        self._store, self._uri, self._chunk = store, uri, chunk
        filesystem, path = storage.open_filesystem(uri)
        self._file = store.call(lambda _: filesystem.open_input_file(path), uri)
        self.size: int = self._file.size()
        self._start, self._data = 0, b""

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on; fewer at the end of the file."""
        end = min(offset + count, self.size)
        if offset < self._start or end > self._start + len(self._data):
            size = max(self._chunk, end - offset)
            self._data = self._store.call(lambda _: self._file.read_at(size, offset), self._uri)
            self._start = offset
        return self._data[offset - self._start : max(offset, end) - self._start]


def is_transient(error: Exception) -> bool:
    """Whether a retry can help: an I/O error that is not about a missing file, rights or a full disk."""
    if type(error).__module__.startswith("botocore"):
        return _is_transient_there(error)
    if not isinstance(error, OSError) or isinstance(error, _PERMANENT) or error.errno in _PERMANENT_ERRNO:
        return False
    code = _CODES.get(_pyarrow_code(error) or "")
    return code is None or not code.permanent


def _is_transient_there(error: Exception) -> bool:
    """The same of an error of botocore, by its own rules and where an answer was cut off."""
    from botocore.exceptions import IncompleteReadError
    from botocore.parsers import ResponseParserError
    from botocore.retries.standard import RetryContext, ThrottledRetryableChecker, TransientRetryableChecker

    response = getattr(error, "response", None)  # of a ClientError
    context = RetryContext(attempt_number=1, parsed_response=response, caught_exception=error)
    if any(rule.is_retryable(context) for rule in (TransientRetryableChecker(), ThrottledRetryableChecker())):
        return True
    if response is None:
        return isinstance(error, (IncompleteReadError, ResponseParserError))
    if response["Error"]["Code"] == "NoSuchUpload":  # the answer to its end was lost: the object is written once more
        return True
    status = int(response["ResponseMetadata"]["HTTPStatusCode"])
    return status >= 500 or status == _TOO_MANY_REQUESTS


@contextlib.contextmanager
def refusals(doing: str, uri: str) -> Iterator[None]:
    """A context in which an error of the storage becomes a StorageRefused that says what failed, where and why: an AccessDenied
    where we have no right to it.

    A missing file becomes a MissingFile; unknown errors pass unchanged.
    """
    try:
        yield
    except MissingFile:
        raise
    except FileNotFoundError as error:
        raise MissingFile(f"no file at {uri}") from error
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        kind = AccessDenied if isinstance(error, PermissionError) or reason.startswith(_DENIED) else StorageRefused
        raise kind(f"cannot {doing} {uri}: {reason}") from error


def check_readable(uri: str) -> None:
    """Raise StorageRefused within seconds if an object store lets us neither list nor read `uri`.

    Does nothing for a local path or for a missing file. Raises UsageError for an address of another kind.
    """
    storage.require_known(uri)
    if not uri.startswith("s3://"):
        return
    bucket, prefix = storage.split_uri(uri)

    def list_one() -> None:
        client = storage.s3_client(connect_seconds=CONNECT_SECONDS, read_seconds=2 * CONNECT_SECONDS)
        try:
            client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        except client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] != "AccessDenied" or not prefix:
                raise
            try:  # a file may be readable although its folder may not be listed
                client.head_object(Bucket=bucket, Key=prefix)
            except client.exceptions.ClientError:
                raise error from None
        except Exception as error:
            # a store that accepts connections gets more time than one that does not
            if type(error).__name__ in ("EndpointConnectionError", "ConnectTimeoutError"):
                raise StorageRefused(f"cannot read {uri}: {_reason(error)}") from error
            raise

    with refusals("read", uri):
        retry(list_one, RetrySettings(attempts=4, backoff=0.5), is_transient)


def check_writable(uri: str) -> None:
    """Raise StorageRefused if nothing can be written below `uri`, as far as a check without writing can tell."""
    check_readable(uri)
    if storage.is_remote(uri):
        return
    there = Path(uri.removeprefix("file://")).absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise StorageRefused(f"cannot write below {uri}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageRefused(f"cannot write below {uri}: no permission in {there}")


def _reason(error: Exception) -> str | None:
    """The reason in words; None if the error is not the storage's."""
    if isinstance(error, OSError) and error.errno is not None:
        return _LOCAL.get(error.errno)
    if type(error).__module__.startswith("botocore"):
        response = getattr(error, "response", None)  # of a ClientError
        code = response["Error"]["Code"] if response is not None else type(error).__name__.removesuffix("Error")
        known = _CODES.get(code.lower())
        return str(error) if known is None else known.reason + _action(known, getattr(error, "operation_name", ""))
    pyarrow_code = _pyarrow_code(error)
    if pyarrow_code is None:
        return None
    known = _CODES.get(pyarrow_code)
    if known is None:
        return f"the store keeps failing, run it again later: {error}"
    return known.reason + _action(known, "".join(re.findall(r" during (\w+) operation", str(error))[:1]))


def _action(code: _Code, operation: str) -> str:
    """Of a refusal for want of a right: what a policy calls that right."""
    action = _ACTIONS.get(operation)
    return f" ({action})" if code.reason == _DENIED and action is not None else ""


def _pyarrow_code(error: Exception) -> str | None:
    """The error code in pyarrow's message for an object store's answer, which has no errno."""
    found = re.search(r"AWS Error ([A-Z_]+)", str(error)) if isinstance(error, OSError) else None
    return found[1].replace("_", "").lower() if found is not None else None

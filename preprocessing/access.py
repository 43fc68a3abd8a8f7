"""What a storage refuses, in words: wrong credentials, no such bucket, no permission, a full disk. Found out at once.

An object store answers some questions without a body, and so without a reason; the listing that is asked for here says
which it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.preprocessing.errors import retry
from realcustom.preprocessing.settings import ExecutionSettings

T = TypeVar("T")

PATIENCE = 5.0  # seconds for an object store to take a connection
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_ENDPOINT_URL for a store that is not Amazon's)"
# By the code of S3's answers in boto3's and in pyarrow's spelling, without underscores.
_REASONS = {
    "nosuchbucket": "the bucket does not exist; create it or correct its name",
    "accessdenied": "access denied; the credentials that are set have no right to it",
    "forbidden": "access denied; the credentials that are set have no right to it",
    "invalidaccesskeyid": f"wrong credentials, the key is not known there; {_CREDENTIALS}",
    "signaturedoesnotmatch": f"wrong credentials, the secret does not fit the key; {_CREDENTIALS}",
    "expiredtoken": "the credentials have expired; renew them",
    "nocredentials": f"no credentials; {_CREDENTIALS}",
    "endpointconnection": "nothing answers at the store's address; is AWS_ENDPOINT_URL right?",
    "connecttimeout": "nothing answers at the store's address; is AWS_ENDPOINT_URL right?",
    "networkconnection": "nothing answers at the store's address; is AWS_ENDPOINT_URL right?",
    "invalidbucketname": "this cannot be a bucket's name",
}
_LOCAL = {
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EFBIG: "the file is larger than the file system or a limit (ulimit -f) allows",
    errno.EIO: "the disk reports an error",
    errno.ENAMETOOLONG: "the file system takes no name as long as that",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
}


class StorageRefused(UsageError):
    """A storage does not let us do what is asked, and trying again would not help."""


@contextlib.contextmanager
def access(doing: str, uri: str) -> Iterator[None]:
    """Inside: an error of the storage becomes a StorageRefused that says what could not be done, where and why.

    A missing file stays a FileNotFoundError: callers know what it means. So does what nobody has words for.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise StorageRefused(f"cannot {doing} {uri}: {reason}") from error


def fetch(read: Callable[[str], T], uri: str, execution: ExecutionSettings) -> T:
    """`read(uri)`, tried again as the settings say; what the storage refuses is a StorageRefused."""
    with access("read", uri):
        return retry(lambda: read(uri), execution.attempts, execution.backoff)


def check_input(uri: str) -> None:
    """Raise StorageRefused if an object store does not let us list `uri`. Of a local path it says nothing."""
    if not uri.startswith("s3://"):
        return
    import boto3  # type: ignore[import-untyped]
    from botocore.config import Config  # type: ignore[import-untyped]

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    with access("read", uri):
        patience = {"connect_timeout": PATIENCE, "read_timeout": 2 * PATIENCE, "retries": {"total_max_attempts": 3}}
        # a session of its own: the shared one remembers the credentials that it saw first
        client = boto3.session.Session().client("s3", config=Config(**patience))
        # a store that answers is given more time than one that does not
        retry(lambda: client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1), attempts=4, backoff=0.5)


def check_output(uri: str) -> None:
    """Raise ValueError if `uri` cannot be the root of stages, as far as can be seen without writing there."""
    check_input(uri)
    if storage.exists(storage.join(uri, "stage.json")):
        parent = uri.rstrip("/").rpartition("/")[0]
        raise UsageError(f"{uri} is a stage's own directory, and the root of all stages is wanted: give {parent}")
    if storage.is_remote(uri):
        return
    there = Path(uri)
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise StorageRefused(f"cannot write below {uri}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageRefused(f"cannot write below {uri}: no permission in {there}")


def _reason(error: Exception) -> str | None:
    """Why, in our words; None for what is not the storage's."""
    if isinstance(error, OSError) and error.errno is not None:
        return _LOCAL.get(error.errno)
    if type(error).__module__.startswith("botocore"):
        response = getattr(error, "response", None)  # of a ClientError
        code = response["Error"]["Code"] if response is not None else type(error).__name__.removesuffix("Error")
        return _REASONS.get(code.lower(), str(error))
    found = re.search(r"AWS Error ([A-Z_]+)", str(error)) if isinstance(error, OSError) else None
    if found is None:
        return None
    return _REASONS.get(found[1].replace("_", "").lower(), f"the store keeps failing, run it again later: {error}")

"""Errors, sorted: passing ones are tried again, those of a row put it aside, anything else stops the job at once."""

from __future__ import annotations

import enum
import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from realcustom.errors import UsageError

T = TypeVar("T")


class DataFault(enum.Enum):
    """Why a row is quarantined: its data cannot be used as they are."""

    TRUNCATED_IMAGE = "truncated_image"
    UNREADABLE_IMAGE = "unreadable_image"
    DECOMPRESSION_BOMB = "decompression_bomb"
    TOO_MANY_BYTES = "too_many_bytes"
    UNSUPPORTED_FORMAT = "unsupported_format"
    MISSING_IMAGE = "missing_image"
    MISSING_MASK = "missing_mask"
    DUPLICATE_KEY = "duplicate_key"
    UNREADABLE_CAPTION = "unreadable_caption"
    UNREADABLE_TEXT = "unreadable_text"
    UNREADABLE_JSON = "unreadable_json"
    UNREADABLE_ROW = "unreadable_row"
    LINK = "link"
    TORN_TAR = "torn_tar"
    TORN_TABLE = "torn_table"
    INVALID_URL = "invalid_url"
    UNREACHABLE = "unreachable"
    ENDPOINT_REJECTED = "endpoint_rejected"
    ENDPOINT_FAILED = "endpoint_failed"
    UNREADABLE_ANSWER = "unreadable_answer"
    NON_FINITE = "non_finite"


class DataError(Exception):
    """A row's data are at fault. `fault` is counted in the report, `message` kept beside the row's uid."""

    def __init__(self, fault: DataFault, message: str):
        super().__init__(fault, message)  # both, so that it survives pickling
        self.fault = fault
        self.message = message


class RowDropped(Exception):
    """A rule leaves a row out, though nothing is wrong with its data."""

    def __init__(self, reason: str, message: str = ""):
        super().__init__(reason, message)
        self.reason = reason
        self.message = message


class StageBug(RuntimeError):
    """Anything unforeseen. The message names the stage, the unit and the row; the job stops."""


class TooManyErrors(UsageError):
    """More rows were quarantined than `execution.max_error_fraction` allows."""


@contextmanager
def naming(row: str) -> Iterator[None]:
    """Let an unforeseen exception within say which row it happened at."""
    try:
        yield
    except (DataError, RowDropped, StageBug):
        raise
    except Exception as error:
        raise StageBug(f"{row}: {type(error).__name__}: {error}") from error


# An OSError of these kinds is a fact about the file or our rights, not a passing state of the network or the disk.
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
_PERMANENT_ERRNO = frozenset({errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENAMETOOLONG, errno.EFBIG})
# How pyarrow words an object store's refusals, which carry no errno.
_PERMANENT_CODES = (
    "ACCESS_DENIED",
    "NO_SUCH_BUCKET",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "EXPIRED_TOKEN",
)
# boto3's errors of a store that is there but did not answer to the end; one that takes no connection is another thing.
_BROKEN_OFF = ("ConnectionClosedError", "ReadTimeoutError", "ResponseStreamingError", "IncompleteReadError")


def is_transient(error: Exception) -> bool:
    """Whether trying again can help: an I/O error that is not about a missing file, rights or a full disk."""
    if type(error).__module__.startswith("botocore"):
        response = getattr(error, "response", None)  # of a ClientError
        if response is None:
            return type(error).__name__ in _BROKEN_OFF
        return response["ResponseMetadata"]["HTTPStatusCode"] >= 500
    if not isinstance(error, OSError) or isinstance(error, _PERMANENT) or error.errno in _PERMANENT_ERRNO:
        return False
    return not any(f"AWS Error {code}" in str(error) for code in _PERMANENT_CODES)


def retry(action: Callable[[], T], attempts: int, backoff: float) -> T:
    """`action()`, tried up to `attempts` times while its error is transient; waits `backoff` s, doubled each time."""
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except Exception as error:
            if attempt == attempts or not is_transient(error):
                raise
            time.sleep(backoff * 2 ** (attempt - 1))
    raise AssertionError("attempts is at least 1")

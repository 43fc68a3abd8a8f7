"""Why a row is excluded, and errors that stop a job. Retries: realcustom/store.py, realcustom/http_retry.py."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager

from realcustom.errors import UsageError


class NothingKept(UsageError):
    """A stage kept no row, and the stages after it have nothing to read."""


class DamagedFile(UsageError):
    """A file is damaged, and its rows would be missing without a word."""


class DataFault(enum.Enum):
    """Why a row is quarantined: its data cannot be used."""

    TRUNCATED_IMAGE = "truncated_image"
    UNREADABLE_IMAGE = "unreadable_image"
    DECOMPRESSION_BOMB = "decompression_bomb"
    TOO_MANY_BYTES = "too_many_bytes"
    UNSUPPORTED_FORMAT = "unsupported_format"
    MISSING_IMAGE = "missing_image"
    AMBIGUOUS_IMAGE = "ambiguous_image"
    MISSING_MASK = "missing_mask"
    DUPLICATE_KEY = "duplicate_key"
    TOO_MANY_CAPTIONS = "too_many_captions"
    UNREADABLE_CAPTION = "unreadable_caption"
    UNREADABLE_TEXT = "unreadable_text"
    UNREADABLE_NAME = "unreadable_name"
    UNREADABLE_FILE = "unreadable_file"
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


class RowExcluded(Exception):
    """A row is excluded: raised where that is found, and kept unchanged in the row ledger.

    `reason` is counted in the report, `message` kept beside the row's uid.
    """

    quarantined: bool  # true: its data are faulty; false: a rule drops it

    def __init__(self, reason: str, message: str = ""):
        super().__init__(reason, message)  # both arguments, for pickling
        self.reason, self.message = reason, message


class RowDropped(RowExcluded):
    """A rule drops a row; its data are correct."""

    quarantined = False


class DataError(RowExcluded):
    """A row's data are faulty."""

    quarantined = True

    def __init__(self, fault: DataFault, message: str):
        super().__init__(fault.value, message)
        self.args = (fault, message)
        self.fault = fault


class StageBug(RuntimeError):
    """Anything unforeseen. The message names the stage, the unit and the row; the job stops."""


class TooManyErrors(UsageError):
    """More rows were quarantined than `execution.max_error_fraction` allows."""


@contextmanager
def naming(row: str) -> Iterator[None]:
    """A context that adds the row to an unforeseen exception or to a mistake found in that row."""
    try:
        yield
    except (RowExcluded, StageBug):
        raise
    except UsageError as error:
        raise UsageError(f"{row}: {error}") from error
    except Exception as error:
        raise StageBug(f"{row}: {type(error).__name__}: {error}") from error

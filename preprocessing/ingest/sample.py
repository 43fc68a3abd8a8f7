"""A sample of a source, or why it has none; and the texts beside a picture."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from realcustom.errors import MissingFile
from realcustom.preprocessing.errors import DataError, DataFault, RowExcluded
from realcustom.preprocessing.ingest.columns import captions_of
from realcustom.preprocessing.settings import IngestSettings
from realcustom.store import OF_ONE_FILE


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture of a source with the texts beside it."""

    data: bytes
    alt_text: str | None  # null: none was given
    captions: tuple[str, ...] = ()  # further ones, each of a row of its own
    keys: str = ""  # where there was none: the keys among which one was looked for
    view_group: str | None = None
    members: tuple[tuple[str, bytes | None], ...] | None = None  # as the column `members` holds them
    columns: str | None = None  # as the column of that name holds them
    others: tuple[str, ...] = ()  # members that are pictures too, and of which none is read


_KEYS = 10  # of a .json without a caption that are named
Entry = tuple[str, Sample | RowExcluded]  # source-relative name; the sample, or why there is none


def too_large(size: int, settings: IngestSettings, what: str = "") -> DataError:
    """The error of a picture, or of `what`, that is larger than the settings allow."""
    return DataError(DataFault.TOO_MANY_BYTES, f"{what}{size} bytes, more than ingest.max_bytes={settings.max_bytes}")


def unsupported(extension: str) -> DataError:
    """The error of a picture in a format that is not decoded here."""
    return DataError(DataFault.UNSUPPORTED_FORMAT, f"pictures in .{extension} are not decoded; convert them before")


def unreadable_name() -> DataError:
    """The error of a file that no path can name, as an object store may hold."""
    message = "no path: an empty part, or one of dots, between slashes of its key; rename it"
    return DataError(DataFault.UNREADABLE_NAME, message)


@contextlib.contextmanager
def file_faults(name: str) -> Iterator[None]:
    """A context in which it is the fault of one file that it is gone or may not be read: a DataError. Other errors of its
    storage pass."""
    try:
        yield
    except OF_ONE_FILE as error:
        is_gone = isinstance(error, MissingFile)
        message = f"{name} was removed after it was listed" if is_gone else f"{name}: no permission to read it"
        raise DataError(DataFault.UNREADABLE_FILE, message) from error


def text_of(data: bytes) -> str:
    """A text as a table or file holds it, stripped. Raises DataError if it is not UTF-8."""
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(DataFault.UNREADABLE_CAPTION, f"the text is not UTF-8: {error}") from error


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: invalid bytes of a file's name and lone surrogates of a .json cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def optional_text(value: str | None) -> str | None:
    """`text_of` for a value that may be missing, in which bytes that are not UTF-8 are surrogates."""
    return text_of(raw_bytes(value)) if value is not None else None


def raw_bytes(text: str) -> bytes:
    """The bytes of a text in which those that are not UTF-8 are surrogates; other lone ones give bytes that are not UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, of a .json
        return text.encode("utf-8", "surrogatepass")


def beside(txt: bytes | None, json_: bytes | None, settings: IngestSettings) -> tuple[list[str], str | None, str]:
    """Captions and view group of a picture with a text and a .json beside it; the keys of a .json without a caption.

    The text is the caption where both are.
    """
    values = _json(json_) if json_ is not None else {}
    group = values.get("view_group")
    if group is not None and not isinstance(group, str):
        raise DataError(DataFault.UNREADABLE_JSON, f"view_group is {group!r}, expected a string")
    if txt is not None:
        return [text_of(txt)], group, ""
    captions = captions_of(values, settings.caption_column)
    return captions, group, "" if captions else ", ".join(map(ascii, list(values)[:_KEYS]))


def _json(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(DataFault.UNREADABLE_JSON, f"the .json beside the picture: {error}") from error
    return values if isinstance(values, dict) else {}

"""A sample of a source, or why it has none; and the texts beside a picture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from realcustom.preprocessing.errors import DataError, DataFault, RowExcluded
from realcustom.preprocessing.ingest.columns import captions_of
from realcustom.preprocessing.settings import IngestSettings


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

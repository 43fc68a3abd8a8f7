"""What `ingest` reads: webdataset tars, Parquet tables, folders of pictures; on a disk or behind `s3://`.

Every entry of a source comes out once, as a `Sample` or as a `Fault`, so that counting them counts the source.
(A table of URLs is not read yet.)
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.errors import DataError, DataFault, retry
from preprocessing.pictures import EXTENSIONS
from preprocessing.settings import ExecutionSettings, IngestSettings
from preprocessing.tar import ChunkedFile, TornTar, read_members
from preprocessing.unit import Unit, UnitKind
from realcustom import storage


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture of a source with what stands beside it."""

    key: str  # source-relative name
    data: bytes
    alt_text: str | None  # null: none was given
    view_group: str | None = None


@dataclass(frozen=True, kw_only=True)
class Fault:
    """An entry of a source that is not a sample."""

    key: str
    fault: DataFault
    message: str


def read_source(unit: Unit, settings: IngestSettings, execution: ExecutionSettings) -> Iterator[Sample | Fault]:
    """All entries of a unit, in the source's own order."""
    if unit.kind is UnitKind.TAR:
        return _read_tar(unit, settings, execution)
    if unit.kind is UnitKind.TABLE:
        return _read_table(unit, settings, execution)
    return _read_pictures(unit, settings, execution)


@dataclass(kw_only=True)
class _Group:
    """Members of a tar that share a key."""

    key: str
    data: dict[str, bytes] = field(default_factory=dict)  # by extension, without the dot
    too_large: dict[str, int] = field(default_factory=dict)  # bytes of members above the limit, which are not read


def _read_tar(unit: Unit, settings: IngestSettings, execution: ExecutionSettings) -> Iterator[Sample | Fault]:
    file = unit.files[0]
    source = ChunkedFile(file.uri, execution.attempts, execution.backoff)
    group: _Group | None = None
    try:
        for member in read_members(source, settings.max_bytes):
            key, extension = _key(member.name)
            if not extension:
                continue
            if group is None or group.key != key:
                if group is not None:
                    yield _finish(file.name, group)
                group = _Group(key=key)
            if member.data is None:
                group.too_large[extension.lower()] = member.size
            else:
                group.data[extension.lower()] = member.data
    except TornTar as torn:
        # a sample that no following key closes belongs to the torn entry
        if group is not None and torn.name is not None and _key(torn.name)[0] != group.key:
            yield _finish(file.name, group)
        message = f"torn at byte {torn.offset} of {source.size}: {torn.reason}"
        yield Fault(key=f"{file.name}@{torn.offset}", fault=DataFault.TORN_TAR, message=message)
        return
    if group is not None:
        yield _finish(file.name, group)


def _key(name: str) -> tuple[str, str]:
    """Key and extension of a member, as webdataset has them: split at the first dot. Hidden files have no extension."""
    folder, file = posixpath.split(name)
    stem, _, extension = file.partition(".")
    return posixpath.join(folder, stem), extension if stem else ""


def _finish(shard: str, group: _Group) -> Sample | Fault:
    extension = next((name for name in (*group.data, *group.too_large) if name in EXTENSIONS), None)
    if extension is None:
        held = ", ".join([*group.data, *group.too_large])
        message = f"the sample holds no picture, only {held}"
        return Fault(key=f"{shard}/{group.key}", fault=DataFault.MISSING_IMAGE, message=message)
    key = f"{shard}/{group.key}.{extension}"
    if extension in group.too_large:
        message = f"{group.too_large[extension]} bytes, more than ingest.max_bytes"
        return Fault(key=key, fault=DataFault.TOO_MANY_BYTES, message=message)
    try:
        alt_text = _text(group.data.get("txt"))
        return Sample(
            key=key, data=group.data[extension], alt_text=alt_text, view_group=_view_group(group.data.get("json"))
        )
    except DataError as error:
        return Fault(key=key, fault=error.fault, message=error.message)


def _text(data: bytes | None) -> str | None:
    if data is None:
        return None
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(DataFault.UNREADABLE_CAPTION, f"the caption is not UTF-8: {error}") from error


def _view_group(data: bytes | None) -> str | None:
    if data is None:
        return None
    try:
        values = json.loads(data)
    except ValueError as error:
        raise DataError(DataFault.UNREADABLE_JSON, f"the .json beside the picture: {error}") from error
    group = values.get("view_group") if isinstance(values, dict) else None
    if group is not None and not isinstance(group, str):
        raise DataError(DataFault.UNREADABLE_JSON, f"view_group is {group!r}, expected a string")
    return group


def _read_pictures(unit: Unit, settings: IngestSettings, execution: ExecutionSettings) -> Iterator[Sample | Fault]:
    captions = {posixpath.splitext(file.name)[0]: file for file in unit.files if file.name.endswith(".txt")}
    for file in unit.files:
        stem, extension = posixpath.splitext(file.name)
        if extension == ".txt":
            continue
        if file.size > settings.max_bytes:
            message = f"{file.size} bytes, more than ingest.max_bytes={settings.max_bytes}"
            yield Fault(key=file.name, fault=DataFault.TOO_MANY_BYTES, message=message)
            continue
        data = _read(file.uri, execution)
        try:
            alt_text = _text(_read(captions[stem].uri, execution)) if stem in captions else None
            yield Sample(key=file.name, data=data, alt_text=alt_text)
        except DataError as error:
            yield Fault(key=file.name, fault=error.fault, message=error.message)


def _read_table(unit: Unit, settings: IngestSettings, execution: ExecutionSettings) -> Iterator[Sample | Fault]:
    file = unit.files[0]
    data = _read(file.uri, execution)
    try:
        table = pq.ParquetFile(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as error:  # from memory: an OSError is about the bytes
        yield Fault(key=file.name, fault=DataFault.TORN_TABLE, message=f"not a readable Parquet file: {error}")
        return
    check_source_table(table.schema_arrow, settings, file.name)
    columns = [settings.image_column]
    columns += [settings.caption_column] if settings.caption_column is not None else []
    columns += ["view_group"] if "view_group" in table.schema_arrow.names else []
    first = 0
    for group in range(table.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        keys = [f"{file.name}#{first + index}" for index in range(count)]
        first += count
        try:
            rows = table.read_row_group(group, columns=columns, use_threads=False)
        except (pa.ArrowInvalid, OSError) as error:
            for key in keys:
                yield Fault(key=key, fault=DataFault.TORN_TABLE, message=f"row group {group} is broken: {error}")
            continue
        for key, row in zip(keys, _iterate(rows), strict=True):
            yield _table_row(key, row, settings)


def _iterate(rows: pa.Table) -> Iterator[dict]:
    for batch in rows.to_batches(max_chunksize=64):  # so few rows at a time become Python objects
        yield from batch.to_pylist()


def check_source_table(schema: pa.Schema, settings: IngestSettings, where: str) -> None:
    """Raise ValueError if the columns that the settings name are not in the table, or not of a usable type."""
    for name, setting in ((settings.image_column, "image_column"), (settings.caption_column, "caption_column")):
        if name is not None and name not in schema.names:
            has = ", ".join(schema.names)
            hint = " (null where there are no captions)" if setting == "caption_column" else ""
            raise ValueError(f"{where} has no column '{name}' but {has}; set ingest.{setting}{hint}")
    kind = schema.field(settings.image_column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ValueError(f"{where}: ingest.image_column='{settings.image_column}' holds {kind}, not encoded pictures")


def _table_row(key: str, row: dict, settings: IngestSettings) -> Sample | Fault:
    image = row[settings.image_column]
    data = image["bytes"] if isinstance(image, dict) else image
    if data is None:
        return Fault(key=key, fault=DataFault.MISSING_IMAGE, message=f"'{settings.image_column}' is null")
    if len(data) > settings.max_bytes:
        message = f"{len(data)} bytes, more than ingest.max_bytes={settings.max_bytes}"
        return Fault(key=key, fault=DataFault.TOO_MANY_BYTES, message=message)
    caption = row[settings.caption_column] if settings.caption_column is not None else None
    if caption is not None and not isinstance(caption, str):
        message = f"'{settings.caption_column}' is {type(caption).__name__}, expected text"
        return Fault(key=key, fault=DataFault.UNREADABLE_CAPTION, message=message)
    group = row.get("view_group")
    text = caption.strip() if caption is not None else None
    return Sample(key=key, data=data, alt_text=text, view_group=group)


def _read(uri: str, execution: ExecutionSettings) -> bytes:
    return retry(lambda: storage.read_bytes(uri), execution.attempts, execution.backoff)

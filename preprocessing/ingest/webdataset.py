"""webdataset shards as a source: members that share a key are a sample, and all of them are kept."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field

from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import DataError, DataFault, RowDropped, RowExcluded
from realcustom.preprocessing.ingest.sample import Entry, Sample, beside, too_large, unsupported
from realcustom.preprocessing.ingest.tar import Member, TornTar, read_members
from realcustom.preprocessing.pictures import EXTENSIONS, UNDECODED_EXTENSIONS
from realcustom.preprocessing.settings import IngestSettings
from realcustom.store import Store


@dataclass(kw_only=True)
class _Group:
    """Members of a tar that share a key."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)  # by extension in lower case, without the dot
    repeated: str | None = None  # an extension that came twice


def read_shard(unit: Unit, settings: IngestSettings, store: Store) -> Iterator[Entry]:
    """The samples of a shard in its order. A torn shard ends with one fault that names the byte."""
    file = unit.files[0]
    source = store.open(file.uri)
    group: _Group | None = None
    try:
        for member in read_members(source, settings.max_bytes):
            key, extension = split_key(member.name)
            if not extension:
                message = "a name without an extension, or a hidden file: no member of a sample"
                yield f"{file.name}/{member.name}", RowDropped("no_extension", message)
                continue
            if group is None or group.key != key:
                if group is not None:
                    yield _finish(file.name, group, settings)
                group = _Group(key=key)
            if extension.lower() in group.members:
                group.repeated = extension.lower()
            group.members.setdefault(extension.lower(), member)
    except TornTar as torn:
        # a sample without a following key belongs to the torn sample
        if group is not None and torn.name is not None and split_key(torn.name)[0] != group.key:
            yield _finish(file.name, group, settings)
        message = f"torn at byte {torn.offset} of {source.size}: {torn.reason}"
        yield f"{file.name}@{torn.offset}", DataError(DataFault.TORN_TAR, message)
        return
    if group is not None:
        yield _finish(file.name, group, settings)


def split_key(name: str) -> tuple[str, str]:
    """Key and extension of a member, split at the first dot as in webdataset. Hidden files have no extension."""
    folder, file = posixpath.split(name)
    stem, _, extension = file.partition(".")
    return posixpath.join(folder, stem), extension if stem else ""


def _finish(shard: str, group: _Group, settings: IngestSettings) -> Entry:
    known = (*EXTENSIONS, *UNDECODED_EXTENSIONS)
    pictures = sorted((name for name in group.members if name in known), key=lambda name: name in UNDECODED_EXTENSIONS)
    key = f"{shard}/{group.key}" + (f".{pictures[0]}" if pictures else "")
    try:
        return key, _sample(pictures[0] if pictures else None, group, settings)
    except RowExcluded as why:
        return key, why


def _sample(extension: str | None, group: _Group, settings: IngestSettings) -> Sample:
    """The group as a sample around its picture, the first that can be decoded."""
    if extension is None:
        raise DataError(DataFault.MISSING_IMAGE, f"the sample holds no picture, only {', '.join(group.members)}")
    if extension in UNDECODED_EXTENSIONS:
        raise unsupported(extension)
    if group.repeated is not None:
        raise DataError(DataFault.DUPLICATE_KEY, f"the sample has two members .{group.repeated}")
    for name, member in group.members.items():
        if member.link is not None:
            raise DataError(DataFault.LINK, f".{name} is a link to {member.link}, and only files are read")
        if member.data is None:  # a member that was not read could not be written back
            raise too_large(member.size, settings, "" if name == extension else f".{name} has ")
    data = {name: member.data for name, member in group.members.items()}
    alt_text, view_group = beside(data.get("txt"), data.get("json"), settings)
    image = data[extension]
    assert image is not None, "checked above"
    members = tuple((member.name, None if name == extension else member.data) for name, member in group.members.items())
    return Sample(data=image, alt_text=alt_text, view_group=view_group, members=members)

"""webdataset shards as a source: members that share a key are a sample, and all of them are kept.

Pictures are counted, not groups: a key is what stands before the first dot of a name, as in webdataset; where the names of
samples have dots themselves (`v1.5_0.jpg`), it is what stands before the last one; in doubt each picture is quarantined.
"""

from __future__ import annotations

import fnmatch
import posixpath
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from tarfile import BLOCKSIZE

from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import DataError, DataFault, RowDropped, RowExcluded
from realcustom.preprocessing.ingest.columns import by_rule
from realcustom.preprocessing.ingest.compressed import File, is_compressed, unpack
from realcustom.preprocessing.ingest.listing import hidden_kind
from realcustom.preprocessing.ingest.sample import Entry, Sample, beside, too_large, unsupported
from realcustom.preprocessing.ingest.tar import Member, TornTar, read_members
from realcustom.preprocessing.pictures import (
    EXTENSIONS,
    FIRST_BYTES,
    UNDECODED_EXTENSIONS,
    is_decoded,
    looks_like_picture,
)
from realcustom.preprocessing.settings import IngestSettings
from realcustom.store import Store

_Split = Callable[[str], tuple[str, str]]
# Bytes of a shard's members that are held until the last is known, which may belong to the first; others are read again.
_HELD = 2**30


@dataclass(kw_only=True)
class _Group:
    """Members of a tar that share a key."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)  # by extension in lower case, without the dot
    repeated: list[tuple[str, Member]] = field(default_factory=list)  # those whose extension the sample has already
    latest: int = -1  # offset of the member that was added last
    no_member: RowDropped | None = None  # why the only member is none of a sample

    def add(self, extension: str, member: Member) -> None:
        """Add a member."""
        if extension in self.members:
            self.repeated.append((extension, member))
        self.members.setdefault(extension, member)
        self.latest = member.offset

    def with_data(self, source: File) -> _Group:
        """The group with its members' data."""
        return replace(
            self,
            members={name: member.with_data(source) for name, member in self.members.items()},
            repeated=[(name, member.with_data(source)) for name, member in self.repeated],
        )

    def divided(self) -> list[_Group]:
        """Its members by what stands before their last dots."""
        return _grouped(sorted((*self.members.values(), *(one for _, one in self.repeated)), key=_offset), _split_last)


def read_shard(unit: Unit, settings: IngestSettings, store: Store) -> Iterator[Entry]:
    """The samples of a shard, in the order of their first members, wherever in the shard the others stand.

    Of a shard larger than `_HELD` the further members are read twice: what they are called first, then sample by sample.
    A torn shard ends with one fault that names the byte.
    """
    file = unit.files[0]
    packed = unpack(file.uri, store) if is_compressed(file.uri) else None
    source = packed or store.open(file.uri)
    members = list[Member]()
    torn: TornTar | None = None
    try:
        for member in read_members(source, settings.max_bytes, _HELD):
            members.append(member)
        if packed is not None and packed.damage:
            torn = TornTar(packed.size, packed.damage)
    except TornTar as error:
        torn = error
    groups = deque(_grouped(members, split_key, source))
    if torn is not None and groups:
        last = next(group for group in reversed(groups) if group.latest == members[-1].offset)
        if torn.name is None or split_key(torn.name)[0] == last.key:  # no following key closes the sample
            groups.remove(last)
    del members  # each sample's data end with it
    while groups:
        yield from _entries(file.name, groups.popleft().with_data(source), settings)
    if torn is not None:
        message = f"torn at byte {torn.offset} of {source.size}: {torn.reason}"
        yield f"{file.name}@{torn.offset}", DataError(DataFault.TORN_TAR, message)


def split_key(name: str) -> tuple[str, str]:
    """Key and extension of a member, split at the first dot as in webdataset. Hidden files have no extension."""
    folder, file = posixpath.split(name)
    stem, _, extension = file.partition(".")
    return posixpath.join(folder, stem), extension if stem else ""


def _split_last(name: str) -> tuple[str, str]:
    stem, extension = posixpath.splitext(name)
    return stem, extension.removeprefix(".")


def _grouped(members: Sequence[Member], split: _Split, source: File | None = None) -> list[_Group]:
    """The members by their keys; one that belongs to no sample is by itself.

    A member joins the sample of the member before it, else the last one of its key, if that lacks such a member.

    Args:
        source: where members without an extension are looked into: a picture belongs to a sample.
    """
    groups: list[_Group] = []
    last: dict[str, _Group] = {}
    current: _Group | None = None
    for member in members:
        key, extension = split(member.name)
        extension = extension.lower()
        why = None if source is None else _no_member(member, extension, source)
        group = last.get(key) if why is None else _Group(key=member.name, no_member=why)
        if group is None or (group is not current and extension in group.members):
            group = last[key] = _Group(key=key)
        if not group.members:
            groups.append(group)
        group.add(extension, member)
        current = group
    return groups


def _no_member(member: Member, extension: str, source: File) -> RowDropped | None:
    """Why a member of a shard is none of a sample; None: it is one."""
    if hidden := next((kind for kind in map(hidden_kind, member.name.split("/")) if kind), ""):
        return RowDropped(f"{hidden}_file", "it or its folder is what systems put beside files: no member of a sample")
    if extension:
        return None
    first = source.read(member.offset + BLOCKSIZE, min(FIRST_BYTES, member.size)) if member.link is None else b""
    if looks_like_picture(first):
        return None
    return RowDropped("no_extension", "a name without an extension, and no picture: no member of a sample")


def _entries(shard: str, group: _Group, settings: IngestSettings) -> Iterator[Entry]:
    """The group's entry, or one for each of its pictures where it has several."""
    if group.no_member is not None:
        yield f"{shard}/{group.key}", group.no_member
        return
    for part in _samples_of(group, settings):
        pictures = _pictures(part, settings)
        several = pictures if len(pictures) > 1 else []
        if not pictures and settings.image_member is None:
            several = _inner_pictures(part)
        again = [member for name, member in part.repeated if name in pictures]
        if again:
            fault = DataError(DataFault.DUPLICATE_KEY, f"the sample has {1 + len(again)} members .{pictures[0]}")
            for member in (part.members[pictures[0]], *again):
                yield f"{shard}/{member.name}@{member.offset}", fault
        elif several:
            for name in several:
                yield f"{shard}/{_member_name(part, name)}", _ambiguous(part, several, settings)
        else:
            yield _entry(shard, part, pictures, settings)


def _samples_of(group: _Group, settings: IngestSettings) -> list[_Group]:
    """The group as one sample; or several, where the names of samples have dots and each of them has a picture."""
    pictures, inner = _pictures(group, settings), _inner_pictures(group)
    if settings.image_member is not None:
        is_one = len(pictures) == 1
    else:  # `0.seg.png` beside `0.jpg` belongs to it, `0.1.jpg` is a picture of its own
        is_one = not inner or (len(pictures) == 1 and not all(name[0].isdigit() for name in inner))
    if is_one:
        return [group]
    parts = group.divided()
    return parts if all(_pictures(part, settings) for part in parts) else [group]


def _pictures(group: _Group, settings: IngestSettings) -> list[str]:
    """The members that may be the sample's picture: as the setting says, else by extension, else by their first bytes."""
    names = list(group.members)
    if settings.image_member is not None:
        wanted = settings.image_member.lower()
        return fnmatch.filter(names, wanted) or fnmatch.filter(names, wanted.removeprefix("*."))
    by_name = [name for name in names if name in EXTENSIONS] or [name for name in names if name in UNDECODED_EXTENSIONS]
    return by_name or [name for name in names if "." not in name and _looks_like_picture(group, name)]


def _inner_pictures(group: _Group) -> list[str]:
    """The members that are pictures and whose names have another dot."""
    return [name for name in group.members if "." in name and _is_picture(group, name)]


def _other_pictures(picture: str, group: _Group) -> list[str]:
    """The members that are pictures besides the one that is the sample's: `seg.png` beside `jpg`."""
    return [name for name in group.members if name != picture and _is_picture(group, name)]


def _is_picture(group: _Group, name: str) -> bool:
    known = _split_last(f"x.{name}")[1] in (*EXTENSIONS, *UNDECODED_EXTENSIONS)
    return known or _looks_like_picture(group, name)


def _looks_like_picture(group: _Group, name: str) -> bool:
    return looks_like_picture(_first_bytes(group, name))


def _first_bytes(group: _Group, name: str) -> bytes:
    return (group.members[name].data or b"")[:FIRST_BYTES]


def _member_name(group: _Group, extension: str) -> str:
    """The name of a member: its key, and its extension in lower case if it has one."""
    return f"{group.key}.{extension}" if extension else group.key


def _offset(member: Member) -> int:
    return member.offset


def _ambiguous(group: _Group, pictures: Sequence[str], settings: IngestSettings) -> DataError:
    names = " and ".join(f".{name}" for name in pictures)
    if settings.image_member is not None:
        message = f"{names} of the sample are members as ingest.image_member={settings.image_member} says"
    else:
        others = ", ".join(f".{name}" for name in group.members)
        message = (
            f"the sample has the members {others}: say which is its picture with --set "
            f"preprocess.ingest.image_member={pictures[0]}, and which its caption with preprocess.ingest.caption_member"
        )
    return DataError(DataFault.AMBIGUOUS_IMAGE, message)


def _entry(shard: str, group: _Group, pictures: Sequence[str], settings: IngestSettings) -> Entry:
    key = f"{shard}/{_member_name(group, pictures[0]) if pictures else group.key}"
    try:
        return key, _sample(pictures[0] if pictures else None, group, settings)
    except RowExcluded as why:
        return key, why


def _sample(extension: str | None, group: _Group, settings: IngestSettings) -> Sample:
    """The group as a sample around its picture."""
    if extension is None:
        wanted = "" if settings.image_member is None else f" as ingest.image_member={settings.image_member} says"
        raise DataError(
            DataFault.MISSING_IMAGE, f"the sample holds no picture{wanted}, only {', '.join(group.members)}"
        )
    if group.repeated:
        raise DataError(DataFault.DUPLICATE_KEY, f"the sample has two members .{group.repeated[0][0]}")
    for name, member in group.members.items():
        if member.link is not None:
            raise DataError(DataFault.LINK, f".{name} is a link to {member.link}, and only files are read")
        if member.data is None:  # a member that was not read could not be written back
            raise too_large(member.size, settings, "" if name == extension else f".{name} has ")
    if extension in UNDECODED_EXTENSIONS and not is_decoded(_first_bytes(group, extension)):
        raise unsupported(extension)
    captions, view_group, keys = _beside(extension, group, settings)
    alt_text, others = by_rule(captions, settings.caption_rule)
    image = group.members[extension].data
    assert image is not None, "checked above"
    members = tuple((member.name, None if name == extension else member.data) for name, member in group.members.items())
    return Sample(
        data=image,
        alt_text=alt_text,
        captions=others,
        view_group=view_group,
        members=members,
        keys=keys,
        others=tuple(_other_pictures(extension, group)) if settings.image_member is None else (),
    )


def _beside(picture: str, group: _Group, settings: IngestSettings) -> tuple[list[str], str | None, str]:
    """What `beside` makes of the group's members: of the caption's, where the setting says which that is; else `0.txt` of
    `0.jpg`, or `0.jpg.txt`."""
    data = {name: member.data for name, member in group.members.items()}
    if settings.caption_member is None:
        known = [name for own in settings.caption_extensions for name in (own, f"{picture}.{own}") if name in data]
        return beside(data[known[0]] if known else None, data.get("json", data.get(f"{picture}.json")), settings)
    found = fnmatch.filter(list(data), settings.caption_member.lower())
    if len(found) > 1:
        names = " and ".join(f".{name}" for name in found)
        raise DataError(DataFault.UNREADABLE_CAPTION, f"{names} match ingest.caption_member={settings.caption_member}")
    if found and _split_last(f"x.{found[0]}")[1] == "json":
        return beside(None, data[found[0]], settings)
    _, view_group, _ = beside(b"", data.get("json"), settings)
    return ([] if not found else beside(data[found[0]], None, settings)[0]), view_group, ""

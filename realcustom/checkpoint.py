"""The adapter checkpoint: what training writes and serving reads. The only reader and writer.

One safetensors file. Tensors: the trained ones only, by module path. Metadata: format version, the full settings, which
base model and image encoder it was trained with, and its provenance. The same adapter gives the same bytes. Files are
read and written through the caller's `Store`, or one with the default retries. A header is read without torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors

from realcustom import config
from realcustom.errors import UsageError
from realcustom.settings import MethodSettings
from realcustom.storage import is_remote
from realcustom.store import Store

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "realcustom-adapter-1"


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A trained adapter and all that is needed to use it."""

    tensors: Mapping[str, Tensor]
    settings: MethodSettings
    base: str  # identity of the base model
    image_encoder: str  # identity of the image encoder
    provenance: Mapping[str, Any] = field(default_factory=dict)  # plain data: records, training settings


@dataclass(frozen=True, kw_only=True)
class Header:
    """A checkpoint's metadata."""

    settings: MethodSettings
    base: str
    image_encoder: str
    provenance: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]  # shapes of the tensors


def save_adapter(uri: str | Path, adapter: Adapter, store: Store | None = None) -> str:
    """Write an adapter atomically to a path or storage URI; returns the file's sha256, 64 hex digits.

    Its settings name the image encoder as the adapter does: by identity, not by a folder's path.
    """
    from safetensors.torch import save

    encoder = replace(adapter.settings.image_encoder, model=adapter.image_encoder)
    metadata = {
        "format": FORMAT,
        "settings": json.dumps(config.to_dict(replace(adapter.settings, image_encoder=encoder)), sort_keys=True),
        "base": adapter.base,
        "image_encoder": adapter.image_encoder,
        "provenance": json.dumps(adapter.provenance, sort_keys=True),
    }
    tensors = {name: adapter.tensors[name].detach().cpu().contiguous() for name in sorted(adapter.tensors)}
    data = _with_sorted_metadata(save(tensors, metadata))
    (store or Store()).write(uri, data)
    return hashlib.sha256(data).hexdigest()


def load_adapter(uri: str | Path, store: Store | None = None) -> Adapter:
    """Read an adapter.

    Raises MissingFile, StorageRefused, or UsageError if the file is not an adapter checkpoint of this project.
    """
    from safetensors.torch import load

    data = _read(uri, store)
    header = _parse_header(data, uri)
    return Adapter(
        tensors=load(data),
        settings=header.settings,
        base=header.base,
        image_encoder=header.image_encoder,
        provenance=header.provenance,
    )


def read_header(uri: str | Path, store: Store | None = None) -> Header:
    """The checkpoint's metadata, without its tensors. Raises as `load_adapter`."""
    return _parse_header(_read(uri, store), uri)


def adapter_sha256(uri: str | Path, store: Store | None = None) -> str:
    """sha256 of the file, 64 hex digits."""
    return hashlib.sha256((store or Store()).read(uri)).hexdigest()


def _read(uri: str | Path, store: Store | None) -> bytes:
    store = store or Store()
    if not is_remote(str(uri)) and store.is_dir(uri):
        found = [name for name in store.list_names(uri) if name.endswith(".safetensors")]
        hint = f": give {str(uri).rstrip('/')}/{found[0]}" if len(found) == 1 else ", such as adapter.safetensors"
        raise UsageError(f"{uri} is a folder, an adapter is one file{hint}")
    return store.read(uri)


def _parse_header(data: bytes, uri: str | Path) -> Header:
    problem = f"{uri} is not an adapter checkpoint of this project"
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        safetensors.deserialize(data)  # type: ignore[no-untyped-call]  # offsets and sizes hold together
    except (ValueError, UnicodeDecodeError, safetensors.SafetensorError) as error:
        raise UsageError(f"{problem}: it is not a complete safetensors file ({error})") from error
    metadata = header.pop("__metadata__", {})
    if metadata.get("format") != FORMAT:
        raise UsageError(f"{problem}: its format is {metadata.get('format')!r}, expected '{FORMAT}'")
    return Header(
        settings=config.build(MethodSettings, config.with_new_names(MethodSettings, json.loads(metadata["settings"]))),
        base=metadata["base"],
        image_encoder=metadata["image_encoder"],
        provenance=json.loads(metadata["provenance"]),
        shapes={name: tuple(entry["shape"]) for name, entry in header.items()},
    )


def _with_sorted_metadata(data: bytes) -> bytes:
    """Sort the metadata, which safetensors writes in a hash map's order, so that the same adapter gives the same bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # the tensors, much larger than all else, are copied once
    return b"".join((len(text).to_bytes(8, "little"), text, memoryview(data)[8 + length :]))

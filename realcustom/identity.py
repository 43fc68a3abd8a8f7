"""Identities of models: a hub id with its revision, or a folder's name and content hash, never its path or URI.

Models that are used together are given in one string, separated by commas, and so are their identities.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from pathlib import Path

from realcustom import storage
from realcustom.errors import UsageError
from realcustom.model_cache import is_stored, local, pin
from realcustom.store import Store, refusals

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")  # folders of every base model


def check_base(base: str) -> None:
    """Raise UsageError if `base` is neither a folder in diffusers' format nor shaped like a hub id; nothing is loaded.

    One in a store is fetched.
    """
    folder = Path(local(base))
    if folder.is_dir():
        missing = [part for part in PARTS if not (folder / part).is_dir()]
        if (folder / "model_index.json").is_file():
            missing += [part for part in _listed(folder) if part not in missing and not any((folder / part).glob("*"))]
        else:
            missing.append("model_index.json")
        if missing:
            raise UsageError(
                f"{base} is not a base model: it has no {', '.join(missing)}; a base model is a folder in diffusers' "
                f"format with {', '.join(PARTS)} (save one with DiffusionPipeline.save_pretrained)"
            )
    elif folder.exists() or base.startswith((".", "/", "~")) or base.count("/") != 1:
        raise UsageError(f"no base model at {base}: give a folder in diffusers' format or a hub id like owner/name")


def _listed(folder: Path) -> list[str]:
    """Parts named by the folder's index, without those that generation does not use."""
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{folder / 'model_index.json'} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{folder / 'model_index.json'} is not valid JSON: {error}") from error
    unused = ("safety_checker", "feature_extractor", "image_encoder")
    return [
        name
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0] is not None and name not in unused
    ]


def split_revision(model: str) -> tuple[str, str | None]:
    """`id@revision` -> (id, revision), as the libraries take them; a folder has no revision. One in a store is fetched: (its
    local copy, None)."""
    if is_stored(model):
        return local(model), None
    if Path(model).exists() or "@" not in model:
        return model, None
    name, _, revision = model.rpartition("@")
    return name, revision


def split_models(models: str) -> list[str]:
    """`"a,b"` -> ["a", "b"]; a folder whose own name has a comma is one model. Raises UsageError for an empty name."""
    names = [models] if Path(models).exists() else [name.strip() for name in models.split(",")]
    if not all(names):
        raise UsageError(f"'{models}' leaves a model's name empty: give folders or hub ids with a comma between two")
    return names


def resolve_model(model: str) -> str:
    """A model for workers to load: a folder's absolute path, or `id@revision` (of a folder in a store `s3://...@revision`),
    so that no later one is loaded.

    Raises UsageError where it is neither a folder nor a model that the hub (or its local cache) knows.
    """
    names = split_models(model)
    if len(names) > 1:
        return ",".join(map(resolve_model, names))
    if is_stored(model):
        return pin(model)
    if os.path.isdir(model):
        return os.path.abspath(model)
    if os.path.exists(model) or model.startswith((".", "/", "~")) or storage.is_remote(model):
        raise UsageError(f"no model folder at {model}: give a folder on this machine or the id of a hub model")
    name, revision = split_revision(model)
    return f"{name}@{revision or _hub_revision(name)}"


def _hub_revision(model: str) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        for name in ("model_index.json", "config.json"):
            cached = try_to_load_from_cache(model, name)
            if isinstance(cached, str):
                return cached.replace(os.sep, "/").split("/snapshots/")[1].split("/")[0]
        return str(HfApi().model_info(model, timeout=10).sha)
    except Exception as error:  # errors of the hub's library, of its HTTP client, or of the network
        raise UsageError(f"'{model}' is neither a folder here nor a model that the hub answers for: {error}") from error


def model_identity(model: str) -> str:
    """`name@sha256-` and 12 hex digits for a folder, over its files' names and bytes, or for a file; a hub id as
    it was given.

    Raises StorageRefused for a file that may not be read.
    """
    names = split_models(model)
    if len(names) > 1:
        return ",".join(map(model_identity, names))
    model = local(model)
    if Path(model).is_file():
        file = Path(model).resolve()
        status = file.stat()
        only = ((file.name, status.st_size, str(status.st_mtime_ns)),)
        return f"{file.name}@sha256-{_content_hash(str(file.parent), only)}"
    if not Path(model).is_dir():
        return model
    folder = Path(model).resolve()
    entries = tuple((entry.name, entry.size, entry.version) for entry in Store().list_files(folder))
    return f"{folder.name}@sha256-{_content_hash(str(folder), entries)}"


def same_content(identity: str, other: str) -> bool:
    """Whether two identities are of the same weights; folder names are ignored."""
    contents = [[name.rpartition("@")[2] for name in names.split(",")] for names in (identity, other)]
    return contents[0] == contents[1]


@functools.lru_cache(maxsize=64)
def _content_hash(folder: str, entries: tuple[tuple[str, int, str], ...]) -> str:
    # the listing is part of the key: a changed folder is hashed again
    digest = hashlib.sha256()
    for name, size, _ in entries:
        digest.update(f"{name}\0{size}\0".encode())
        path = storage.join(folder, name)
        with refusals("read", path), open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()[:12]

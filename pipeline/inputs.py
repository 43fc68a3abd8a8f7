"""Inputs of a command: which models it uses, and checks of inputs before anything starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from realcustom.errors import UsageError
from realcustom.storage import is_remote, join
from realcustom.store import Store, check_readable

RECORDS_BY = ("encode", "views", "subjects")  # stages that write training records, the usual one first


def image_encoder_for(adapter: str | None, given: str | None, own: str) -> str | None:
    """The image encoder to load for `adapter`; None = the one named by the adapter.

    An adapter names a local encoder by its content, not by its path: the recipe's (`own`) is used if it is that one.

    Raises UsageError, before any model is loaded, where there is no such encoder.
    """
    if adapter is None:
        return given
    from realcustom.checkpoint import read_header  # imports torch
    from realcustom.identity import model_identity, same_content

    trained_with = read_header(adapter).image_encoder
    if given is None and same_content(trained_with, model_identity(own)):
        return own
    if given is None and "@sha256-" in trained_with:
        raise UsageError(
            f"--image-encoder: {adapter} was trained with the image encoder '{trained_with}', a folder, and "
            f"method.image_encoder.model={own} is another: say where that folder is"
        )
    require_model(given or trained_with, "--image-encoder")
    return given


def require_model(model: str, option: str) -> None:
    """Raise UsageError if `model` is neither a folder nor a model that the hub (or its local cache) knows."""
    from realcustom.identity import resolve_model

    try:
        resolve_model(model)
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from error


def require_sides(base: str, width: int | None, height: int | None) -> None:
    """Raise UsageError for a side that is not a multiple of the pixels of one of the base's latent cells.

    The base's files alone are read; one of the hub that is not on this machine passes, and its pipeline checks.
    """
    config = vae_config(base)
    if "block_out_channels" not in config:
        return
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    for option, side in (("--width", width), ("--height", height)):
        if side is not None and (side < factor or side % factor):
            raise UsageError(f"{option} must be a positive multiple of {factor} pixels, got {side}")


def vae_config(base: str) -> dict[str, Any]:
    """The configuration of a base's VAE; empty where it is not on this machine, or not readable."""
    from realcustom.identity import split_revision

    name, revision = split_revision(base)
    file: Any = Path(name) / "vae" / "config.json"
    if not Path(name).is_dir():
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(name, "vae/config.json", revision=revision)
    try:
        return dict(json.loads(Path(file).read_text())) if isinstance(file, str | Path) else {}
    except (OSError, ValueError):  # said where the base is loaded
        return {}


def require_path(place: str, option: str, kind: str) -> None:
    """Raise UsageError if the local path `place` does not exist, or an object store refuses to read it."""
    if "://" in place:
        check_readable(place)
        return
    if not Path(place).exists():
        _check_zoo(place)
        raise UsageError(f"{option}: no {kind} at {place}")


def local_folder(place: str) -> Path:
    """The folder that --output names. Raises UsageError for an object store's address, which no Path can hold."""
    if is_remote(place):
        raise UsageError(f"--output: {place} is no folder of this machine, and this verb writes to one")
    return Path(place.removeprefix("file://"))


def _check_zoo(place: str) -> None:
    """For a model that ships with the repository: raise the error with the command that trains it."""
    from realcustom.sprites import ZOO, zoo_path

    if Path(place).is_relative_to(ZOO):
        zoo_path(Path(place).relative_to(ZOO).as_posix())


def require_base(base: str) -> None:
    """Raise UsageError if `base` is neither a diffusers folder nor shaped like a hub id; imports no model library."""
    from realcustom.identity import check_base

    if not Path(base).exists():
        _check_zoo(base)
    try:
        check_base(base)
    except UsageError as error:
        raise UsageError(f"--base: {error}") from error


def find_stage(place: str, reads: Sequence[str], kind: str = "folder or table") -> str:
    """The stage's directory that --input names, in full, by the root of all stages, or by a pattern (`encode@*`).

    Args:
        reads: stages whose output is wanted, the usual one first.
        kind: what is wanted, for the message.
    Raises:
        UsageError: nothing is there, or no directory of these stages that is complete.
    """
    if "://" in place:
        check_readable(place.partition("*")[0])
    elif "*" not in place:
        require_path(place, "--input", kind)
    from realcustom.preprocessing.find import find_directory

    return find_directory(place, reads, Store())


def find_records(place: str) -> str:
    """The training records that --input names, as `find_stage`. Raises UsageError unless they have the schema."""
    records = find_stage(place, RECORDS_BY, "training records")
    store = Store()
    _check_stage(records, store)
    from realcustom.parquet import ParquetFile
    from realcustom.record import check_schema

    files = [entry.uri for entry in store.list_files(records)] if store.is_dir(records) else [records]
    tables = [uri for uri in files if uri.endswith(".parquet")]
    if not tables:
        raise UsageError(
            f"--input: no Parquet file below {records}; `realcustom preprocess subjects` writes such records"
        )
    try:
        check_schema(ParquetFile(tables[0], store).schema)
    except UsageError as error:
        raise UsageError(f"--input: {tables[0]}: {error}") from error
    return records


def _check_stage(records: str, store: Store) -> None:
    """Raise UsageError, naming the stage to run next, for the directory of a stage that writes no records."""
    if not store.is_dir(records) or not store.exists(join(records, "stage.json")):
        return
    from realcustom.preprocessing.engine.directory import read_description
    from realcustom.preprocessing.find import next_after

    wrote = str(read_description(records, store)["stage"])
    if wrote not in RECORDS_BY:
        raise UsageError(
            f"--input: {records} was written by {wrote}, and training reads what {' or '.join(RECORDS_BY)} wrote: "
            f"next is `realcustom preprocess {next_after(wrote)}`"
        )

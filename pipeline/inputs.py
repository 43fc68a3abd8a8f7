"""What a command is given to work on: which models it uses, and what is found out about inputs before anything starts."""

from __future__ import annotations

from pathlib import Path

from realcustom.errors import UsageError
from realcustom.pipeline.recipes import RunSettings


def base_and_adapter(settings: RunSettings, base: str | None, adapter: str | None) -> tuple[str, str | None]:
    """The base model and the adapter to use: the options where given, else the recipe's, which belong together."""
    if base is not None and adapter is None:
        return base, None  # the recipe's adapter was trained for another base
    return base or settings.base, adapter or settings.adapter


def image_encoder_for(adapter: str | None, given: str | None, own: str) -> str | None:
    """The image encoder to load for `adapter`; None = the one that it names.

    An adapter names a local encoder by its content, not by where it lies: the recipe's (`own`) is used if it is that one.
    """
    if adapter is None or given is not None:
        return given
    from realcustom.checkpoint import read_header  # imports torch
    from realcustom.identity import model_identity, same_content

    return own if same_content(read_header(adapter).image_encoder, model_identity(own)) else None


def require_path(place: str, option: str, kind: str) -> None:
    """Raise UsageError if the local path `place` is not there, or an object store does not let us read `place`."""
    if "://" in place:
        from realcustom.store import check_readable

        check_readable(place)
        return
    if not Path(place).exists():
        _check_zoo(place)
        raise UsageError(f"{option}: no {kind} at {place}")


def _check_zoo(place: str) -> None:
    """For a model that ships with the repository: raise the error that says how to make it."""
    from realcustom.sprites import ZOO, zoo_path

    if Path(place).is_relative_to(ZOO):
        zoo_path(Path(place).relative_to(ZOO).as_posix())


def require_base(base: str) -> None:
    """Raise ValueError if `base` is neither a diffusers folder nor like a hub id; imports no models' library."""
    from realcustom.identity import check_base

    if not Path(base).exists():
        _check_zoo(base)
    try:
        check_base(base)
    except UsageError as error:
        raise UsageError(f"--base: {error}") from error


def require_records(records: str) -> None:
    """Raise ValueError unless `records` holds a Parquet table in the schema of training records."""
    require_path(records, "--input", "training records")
    import pyarrow as pa
    import pyarrow.parquet as pq

    from realcustom import storage
    from realcustom.record import check_schema

    files = [entry.uri for entry in storage.list_files(records)] if storage.is_dir(records) else [records]
    tables = [uri for uri in files if uri.endswith(".parquet")]
    if not tables:
        raise UsageError(
            f"--input: no Parquet file below {records}; `realcustom preprocess subjects` writes such records"
        )
    filesystem, path = storage.open_filesystem(tables[0])
    try:
        check_schema(pq.read_schema(path, filesystem=filesystem))
    except (UsageError, pa.ArrowInvalid) as error:
        raise UsageError(f"--input: {tables[0]}: {error}") from error

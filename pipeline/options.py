"""Options that the verbs share, and what is checked of their values before anything heavy is imported or started."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pipeline.configure import resolve, to_yaml
from pipeline.recipes import RunSettings

Recipe = Annotated[str, typer.Option("--recipe", metavar="NAME", help="Complete settings to begin with.")]
ConfigFiles = Annotated[
    list[Path] | None,
    typer.Option("--config", metavar="FILE", help="YAML settings laid over the recipe; may be repeated."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="One setting, laid over recipe and files; may be repeated."),
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved settings as YAML and stop.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="HOST:PORT", help="Ray cluster to run on; else RAY_ADDRESS, else one of its own."
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="FOLDER|HUB_ID", help="Diffusion model in diffusers' format, instead of the recipe's."
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option("--adapter", metavar="FILE", help="Adapter checkpoint, path or URI, instead of the recipe's."),
]
ImageEncoder = Annotated[
    str | None,
    typer.Option("--image-encoder", metavar="FOLDER|HUB_ID", help="Instead of the one that the adapter names."),
]

DEFAULT_RECIPE = "sprites"


def example(*commands: str) -> str:
    """Commands as the closing lines of a verb's help, not wrapped."""
    return "\b\nFor example:\n" + "\n".join(f"  {command}" for command in commands)


def settings_of(
    recipe: str,
    files: Sequence[Path] | None,
    sets: Sequence[str] | None,
    print_config: bool,
    verb: str,
    used: Sequence[str],
) -> RunSettings:
    """The run's settings; with `print_config` they are printed and the command ends.

    Args:
        used: the sections that `verb` reads; an assignment to another one warns that it has no effect.
    """
    settings = resolve(recipe, files or (), sets or ())
    if print_config:
        sys.stdout.write(to_yaml(settings))
        raise typer.Exit
    for text in sets or ():
        name = text.partition("=")[0].strip()
        if not any(name == section or name.startswith(section + ".") for section in used):
            warn(f"--set {name} has no effect in '{verb}', which reads {', '.join(used)}")
    return settings


def models(settings: RunSettings, base: str | None, adapter: str | None) -> tuple[str, str | None]:
    """The base model and the adapter to use: the options where given, else the recipe's, which belong together."""
    if base is not None and adapter is None:
        return base, None  # the recipe's adapter was trained for another base
    return base or settings.base, adapter or settings.adapter


def warn(message: str) -> None:
    """One line on stderr."""
    print(f"warning: {message}", file=sys.stderr)


def require_path(place: str, option: str, kind: str) -> None:
    """Raise ValueError if the local path `place` is not there; an address of an object store is left to its reader."""
    if "://" in place:
        return
    if not Path(place).exists():
        _check_zoo(place)
        raise ValueError(f"{option}: no {kind} at {place}")


def _check_zoo(place: str) -> None:
    """For a model that ships with the repository: raise the error that says how to make it."""
    from sprites import ZOO, zoo_path

    if Path(place).is_relative_to(ZOO):
        zoo_path(Path(place).relative_to(ZOO).as_posix())


def require_base(base: str) -> None:
    """Raise ValueError if `base` is a local folder without a UNet, or a path that is not there. Hub ids pass."""
    folder = Path(base)
    if folder.is_dir():
        missing = [part for part in ("model_index.json", "unet/config.json") if not (folder / part).is_file()]
        if missing:
            raise ValueError(
                f"--base: {base} is not a diffusers pipeline folder ({' and '.join(missing)} missing); "
                "save one with DiffusionPipeline.save_pretrained, or name a model of the hub (owner/name)"
            )
    elif folder.is_absolute() or base.startswith(("./", "../", "~")) or base.count("/") != 1:
        _check_zoo(base)
        raise ValueError(f"--base: no folder at {base}, and it is not a model of the hub (owner/name) either")


def require_records(records: str) -> None:
    """Raise ValueError unless `records` holds a Parquet table in the schema of training records."""
    require_path(records, "--input", "training records")
    import pyarrow.parquet as pq

    from realcustom import storage
    from realcustom.record import check_schema

    files = [entry.uri for entry in storage.list_files(records)] if storage.is_dir(records) else [records]
    tables = [uri for uri in files if uri.endswith(".parquet")]
    if not tables:
        raise ValueError(
            f"--input: no Parquet file below {records}; `realcustom preprocess subjects` writes such records"
        )
    filesystem, path = storage.open_filesystem(tables[0])
    try:
        check_schema(pq.read_schema(path, filesystem=filesystem))
    except ValueError as error:  # pyarrow's own errors are ValueErrors too
        raise ValueError(f"--input: {tables[0]}: {error}") from error

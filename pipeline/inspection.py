"""Descriptions of files and folders: an adapter, a training run, a stage's output, training records, or the shipped models."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import yaml

from realcustom.errors import UsageError
from realcustom.pipeline.configure import to_yaml
from realcustom.pipeline.inputs import require_path
from realcustom.pipeline.stages import account
from realcustom.preprocessing.catalogue import CHAIN
from realcustom.preprocessing.engine.directory import read_description, read_json
from realcustom.preprocessing.find import Found, find_directory, list_directories
from realcustom.store import Store

ROWS = 3  # shown of a table
_ORDER = {stage.name: place for place, stage in enumerate(CHAIN)}
_STORE = Store()


def describe(target: str, images: int = 256, seed: int = 0) -> Iterator[str]:
    """Lines that describe `target`.

    Args:
        target: `zoo`, an adapter checkpoint, a training run, a stage's directory (a pattern such as `select@*` is the newest
            complete one), the root of stages, a folder of records, or a Parquet file.
        images: drawings that `zoo` measures the shipped models on; other seeds give other drawings.
    Raises:
        UsageError: it does not exist, is none of these, or is broken.
    """
    if target == "zoo":
        yield from _zoo(images, seed)
        return
    if "*" in target:
        target = find_directory(target, (), _STORE, option="inspect")
    require_path(target, "inspect", "file or folder")
    if _STORE.is_dir(target):
        yield from _folder(target)
    elif target.endswith(".safetensors"):
        yield from _adapter(target)
    elif target.endswith(".parquet"):
        yield from _table([target])
    else:
        raise UsageError(f"{target} is neither an adapter (.safetensors), a table (.parquet), a folder, nor 'zoo'")


def _folder(folder: str) -> Iterator[str]:
    names = {entry.name: entry.uri for entry in _STORE.list_files(folder, recursive=False)}
    tables = [uri for name, uri in names.items() if name.endswith(".parquet")]
    if "stage.json" in names:
        stage = read_description(folder, _STORE)
        yield yaml.safe_dump(stage, sort_keys=False, allow_unicode=True).rstrip()
        if "report.json" in names:
            yield account(str(stage["stage"]), read_json(names["report.json"], _STORE))
        else:
            yield "unfinished: run the same command again to go on"
        if not tables:
            yield f"{sum(name.endswith('.tar') for name in names)} webdataset shards"
            return
    elif {"settings.yaml", "metrics.jsonl"} <= names.keys():
        from realcustom.training.facts import describe_run

        yield from describe_run(folder, _STORE)
        return
    elif "adapter.safetensors" in names:
        yield from _adapter(names["adapter.safetensors"])
        return
    elif stages := list_directories(folder, _STORE):
        for found in sorted(stages, key=lambda one: (_ORDER.get(one.stage, len(_ORDER)), one.name)):
            yield f"{found.name}: {_account(found) if found.finished else 'unfinished'}"
        return
    if not tables:
        raise UsageError(f"{folder} holds no stage (stage.json), no table (.parquet) and no adapter")
    yield from _table(tables)


def _account(stage: Found) -> str:
    return account(stage.stage, read_json(f"{stage.uri}/report.json", _STORE))


def _table(files: list[str]) -> Iterator[str]:
    from realcustom.parquet import ParquetFile
    from realcustom.record import check_schema

    first = ParquetFile(files[0], _STORE)
    rows = first.num_rows + sum(ParquetFile(uri, _STORE).num_rows for uri in files[1:])
    schema = first.schema
    try:
        check_schema(schema)
        kind = "training records"
    except UsageError:
        kind = "rows"
    yield f"{rows} {kind} in {len(files)} Parquet files"
    for field in schema:
        note = b", ".join(value for _, value in sorted((field.metadata or {}).items())).decode(errors="replace")
        yield f"  {field.name}: {field.type}" + (f"  [{note}]" if note else "")
    shown = [name for name in ("uid", "alt_text", "caption", "target_word", "subject_box") if name in schema.names]
    for row in first.read(shown).slice(0, ROWS).to_pylist():
        yield "  " + json.dumps(row, ensure_ascii=False)


def _adapter(uri: str) -> Iterator[str]:
    from realcustom.checkpoint import adapter_sha256, read_header

    header = read_header(uri)
    numbers = sum(math.prod(shape) for shape in header.shapes.values())
    yield f"adapter of {len(header.shapes)} tensors, {numbers:,} numbers"
    yield f"sha256: {adapter_sha256(uri)}"
    yield f"base: {header.base}"
    yield f"image_encoder: {header.image_encoder}"
    yield to_yaml({"settings": header.settings, "provenance": header.provenance}).rstrip()
    yield "tensors:"
    for name, shape in header.shapes.items():
        yield f"  {name}: {' x '.join(map(str, shape)) or 'scalar'}"


def _zoo(images: int, seed: int) -> Iterator[str]:
    from realcustom.pipeline.zoo import measure_zoo
    from realcustom.sprites import ZOO

    shipped = sorted(path.name for path in ZOO.iterdir()) if ZOO.is_dir() else []
    if not shipped:
        raise UsageError(f"there are no models in {ZOO}; train them with: python -m realcustom.sprites.train all")
    yield f"in {ZOO}: {', '.join(shipped)}"
    yield f"measured on {images} drawings that no model has seen (seed {seed}):"
    for name, value in measure_zoo(images, seed).items():
        yield f"  {name}: {value:.3f}"

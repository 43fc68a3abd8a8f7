"""The bytes that each stage writes for a small fixed corpus, kept beside the stage's version in golden.json.

    python -m tests.support.golden          # record anew; refused where bytes changed and the version did not

Stages without a model are held to the byte. What a model computes may differ in its last bits on another processor: there
the record holds text, identities and counts always, and every byte where processor, torch and writer are the recorded ones.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from realcustom.pipeline.recipes import sprites
from realcustom.preprocessing.catalogue import (
    CAPTION,
    CATALOGUE,
    CHAIN,
    ENCODE,
    EXPORT,
    INGEST,
    SCORE,
    SELECT,
    SUBJECTS,
    VIEWS,
)
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import CaptionSettings, ScoreSettings, ViewsSettings
from realcustom.sprites.corpus import CorpusSettings, write_corpus
from tests.support.corpora import jpeg, picture, sample, tar_bytes

RECORD = Path(__file__).parents[1] / "preprocessing" / "golden.json"
PHOTOS = Path(__file__).parent.parent / "data" / "photos"
# what decides the bytes of a Parquet file and of a decoded picture besides our own code
WRITER = f"pyarrow {pa.__version__}, Pillow {PIL.__version__}"


def machine() -> str:
    """What decides the last bits of what a model computes."""
    return f"{WRITER}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


def outputs(root: Path) -> dict[str, dict[str, str]]:
    """Run every stage, without models and with the shipped ones; "stage" or "stage with models" -> name -> sha256."""
    settings = sprites()
    preprocess = settings.for_stages()
    plain = replace(preprocess, score=ScoreSettings(), caption=CaptionSettings(nouns=("toy", "boot", "star")))
    found: dict[str, dict[str, str]] = {}
    photos = _photos(root / "photos")
    for stage in (INGEST, SCORE, SELECT, CAPTION):
        photos = run_stage(stage, photos, str(root / "plain"), plain, executor=InProcess()).directory
        found[stage.name] = _files(Path(photos))
        if stage is SELECT:
            exported = run_stage(EXPORT, photos, str(root / "plain"), plain, executor=InProcess()).directory
            found["export"] = _files(Path(exported))
    drawn = root / "drawn"
    write_corpus(drawn, CorpusSettings(pictures=12, per_shard=8, corrupted=0))
    source = str(drawn / "shards")
    with_views = replace(
        preprocess, views=ViewsSettings(encoder=settings.method.image_encoder.model, max_similarity=0.98)
    )
    for stage in CHAIN:
        result = run_stage(
            stage, source, str(root / "models"), preprocess, method=settings.method, executor=InProcess()
        )
        source = result.directory
        if stage in (SCORE, CAPTION, SUBJECTS, ENCODE):
            name = f"{stage.name} with models"
            found[f"{name}, values"] = {path.name: _values(path) for path in sorted(Path(source).glob("*.parquet"))}
            found[name] = _files(Path(source))
        if stage is SUBJECTS:
            linked = run_stage(VIEWS, source, str(root / "models"), with_views, executor=InProcess()).directory
            found["views with models"] = _files(Path(linked))
            found["views with models, values"] = {
                path.name: _values(path) for path in sorted(Path(linked).glob("*.parquet"))
            }
    return found


def current(found: dict[str, dict[str, str]]) -> dict[str, Any]:
    """The record as it would be now."""
    versions = {stage.name: stage.version for stage in CATALOGUE.values()}
    return {"writer": WRITER, "machine": machine(), "versions": versions, "sha256": found}


def _photos(folder: Path) -> str:
    """Two shards: photographs with captions, a copy, a picture twice as large, one torn, one that is too small."""
    first: dict[str, bytes] = {}
    for number, path in enumerate(sorted(PHOTOS.glob("*.jpg"))):
        first |= sample(f"photo{number}", path.read_bytes(), f"a photo of a toy boot number {number}")
    first |= sample("copy", (PHOTOS / "duck_toy.jpg").read_bytes(), "the same toy again")
    first |= sample("torn", (PHOTOS / "fancy_boot.jpg").read_bytes()[:-9000], "a boot that ends early")
    second: dict[str, bytes] = {}
    for number in range(4):
        second |= sample(f"drawn{number}", jpeg(picture(number, (320, 288))), "a red star on a toy", view_group="star")
    second |= sample("small", jpeg(picture(9, (20, 16))), "a tiny star")
    folder.mkdir(parents=True)
    (folder / "shard-00000.tar").write_bytes(tar_bytes(first))
    (folder / "shard-00001.tar").write_bytes(tar_bytes(second))
    return str(folder)


def _files(directory: Path) -> dict[str, str]:
    """sha256 of every file that units consist of; stage.json and manifests name paths and fingerprints besides."""
    files = [
        path
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix in (".parquet", ".jsonl", ".tar")
    ]
    return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _values(path: Path) -> str:
    """sha256 over a table's rows without what last bits decide: floats, tensors, masks and the pictures cut along them."""
    table = pq.read_table(path)
    rows = [
        _exact({name: value for name, value in row.items() if name != "subject_image"}) for row in table.to_pylist()
    ]
    return hashlib.sha256(json.dumps([str(table.schema.names), rows], sort_keys=True).encode()).hexdigest()


def _exact(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _exact(inner) for name, inner in value.items() if name not in ("data", "counts")}
    if isinstance(value, list):
        return [_exact(inner) for inner in value]
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    return "a number" if isinstance(value, float) else value


def main() -> int:
    """Write the record, unless a stage's bytes changed under one version."""
    with tempfile.TemporaryDirectory() as root:
        now = current(outputs(Path(root)))
    if RECORD.exists():
        before = json.loads(RECORD.read_text())
        for name, files in now["sha256"].items():
            stage = name.partition(" ")[0]
            exact = "models" in name and not name.endswith(", values")  # last bits differ between processors
            same_place = before["machine" if exact else "writer"] == now["machine" if exact else "writer"]
            raised = before["versions"].get(stage) != now["versions"][stage]
            if same_place and not raised and before["sha256"].get(name, files) != files:
                print(f"{name}: its bytes changed; raise the version of {stage} first", file=sys.stderr)
                return 1
    RECORD.write_text(json.dumps(now, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

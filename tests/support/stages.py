"""Stages run in this process on small corpora, and what they wrote: the rows that were kept and those that were not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from realcustom.preprocessing.catalogue import INGEST, SCORE, SELECT
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.settings import (
    ExecutionSettings,
    IngestSettings,
    PreprocessSettings,
    SelectSettings,
)

TOLERANT = ExecutionSettings(max_error_fraction=1.0)


def ingest(folder: Path, output: Path, **settings: Any) -> StageResult:
    """`ingest` with these settings; any number of rows may be faulty."""
    given = PreprocessSettings(ingest=IngestSettings(**settings), execution=TOLERANT)
    return run_stage(INGEST, str(folder), str(output), given, executor=InProcess())


def ingest_to_select(folder: Path, output: Path, **select: Any) -> StageResult:
    """`select` with these settings, of a corpus that is ingested and scored first."""
    settings = PreprocessSettings(select=SelectSettings(**{"min_side": 16, **select}))
    ingested = run_stage(INGEST, str(folder), str(output), settings, executor=InProcess())
    scored = run_stage(SCORE, ingested.directory, str(output), settings, executor=InProcess())
    return run_stage(SELECT, scored.directory, str(output), settings, executor=InProcess())


def table_of(result: StageResult) -> pa.Table:
    """The rows that a stage kept, of all its files."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(Path(result.directory).glob("*.parquet"))])


def excluded_of(result: StageResult) -> dict[str, dict[str, Any]]:
    """The dropped and quarantined rows of a stage, by their key."""
    lines = [line for path in Path(result.directory).glob("aside/*") for line in path.read_text().splitlines()]
    return {row["key"]: row for row in map(json.loads, lines)}

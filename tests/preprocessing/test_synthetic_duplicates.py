"""The synthetic world holds the search for copies to its ground truth: flat drawings look more alike than photographs."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from realcustom.sprites.corpus import CorpusSettings, Corruption, write_corpus
from tests.support.stages import excluded_of, ingest_to_select, table_of

SHOWN = ("noun", "body", "second", "pattern", "place", "background")


def test_planted_copies_are_found_and_no_distinct_drawings_merged(tmp_path: Path) -> None:
    write_corpus(tmp_path / "drawn", CorpusSettings(pictures=400, per_shard=100, corrupted=10))
    truth = {row["key"]: row for row in pq.read_table(tmp_path / "drawn/truth.parquet").to_pylist()}
    result = ingest_to_select(tmp_path / "drawn/shards", tmp_path / "out")
    merged = {
        key: row["message"].removeprefix("of ")
        for key, row in excluded_of(result).items()
        if "duplicate" in row["reason"]
    }
    assert [(a, b) for a, b in merged.items() if any(truth[a][name] != truth[b][name] for name in SHOWN)] == []
    kinds = (Corruption.EXACT_DUPLICATE.value, Corruption.NEAR_DUPLICATE.value)
    planted = {key for key, row in truth.items() if row["corruption"] in kinds}
    assert len(planted) == 20 and planted <= {*merged, *merged.values()}
    assert not set(merged) & set(table_of(result)["key"].to_pylist())

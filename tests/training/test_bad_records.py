"""Records whose features cannot be used: the run ends and names them, or drops them and gives an account."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from realcustom.errors import UsageError
from realcustom.store import Store
from realcustom.training.account import Dropped
from realcustom.training.data import split
from realcustom.training.features import BadRecord
from realcustom.training.indexing import open_index
from realcustom.training.run import TrainResult
from realcustom.training.settings import BadRecords
from tests.support.training_corpus import to_cell
from tests.support.training_runs import SETTINGS, curve, fit, fit_killed

DROP = replace(SETTINGS, bad_records=BadRecords.DROP, steps=5, checkpoint_every=3, val_every=0)


@pytest.fixture
def spoilt(world: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """Records of which one that is held out, the first, and three that are trained on are bad."""
    index = open_index(world.caches)
    held_out, validated = split(index, SETTINGS.validation_fraction, SETTINGS.validation_records)
    trained = np.setdiff1d(np.arange(len(index)), held_out)
    faults = {int(validated[0]): "nan", int(trained[3]): "nan", int(trained[7]): "dtype", int(trained[9]): "short"}
    spoil(world, tmp_path, faults)
    uids = {index.uid(bad): kind for bad, kind in faults.items()}
    return SimpleNamespace(records=str(tmp_path / "records"), uids=uids, count=len(index), held_out=len(held_out))


def spoil(world: SimpleNamespace, tmp_path: Path, faults: dict[int, str]) -> None:
    """Write `records`, of which those by number have faults."""
    (tmp_path / "records").mkdir()
    number = 0
    for path in sorted(Path(world.caches).iterdir()):
        table, rows = pq.read_table(path), pq.read_table(path).to_pylist()
        for row in rows:
            fault = faults.get(number)
            if fault == "nan":
                values = np.frombuffer(row["image_features"]["data"], np.float32).copy()
                values[5] = np.nan
                row["image_features"]["data"] = values.tobytes()
            elif fault == "dtype":
                row["latents"]["dtype"] = "float8"
            elif fault == "short":
                shape = row["text_features"]["shape"]
                row["text_features"] = to_cell(torch.zeros(shape[0] - 1, shape[1]))
            number += 1
        pq.write_table(type(table).from_pylist(rows, schema=table.schema), tmp_path / "records" / path.name)


def test_the_run_ends_and_names_record_and_file(
    world: SimpleNamespace, spoilt: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(BadRecord, match=r"record \w+ in \S+\.parquet: its image_features hold .*bad_records=drop"):
        fit(world, tmp_path / "run", records=spoilt.records)


def test_dropped_records_are_accounted_for(world: SimpleNamespace, spoilt: SimpleNamespace, tmp_path: Path) -> None:
    whole = fit(world, tmp_path / "whole", DROP, spoilt.records)
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert {one["uid"] for one in report["dropped_records"]} == set(spoilt.uids)
    assert report["in"] == spoilt.count == report["trained"] + report["held_out"] + report["dropped"]
    assert report["held_out"] == spoilt.held_out - 1 and report["dropped"] == 4
    assert all(row["skipped"] == 0 for row in whole.curve if "skipped" in row)
    fit_killed(4, world, tmp_path / "killed", DROP, spoilt.records)
    result = fit(world, tmp_path / "killed", DROP, spoilt.records)
    assert result.sha256 == whole.sha256 and curve(result) == curve(whole)
    assert json.loads((tmp_path / "killed" / "report.json").read_text()) == report


def test_a_bad_first_record_does_not_decide_what_is_good(world: SimpleNamespace, tmp_path: Path) -> None:
    """The length of the text is the tokenizer's, not that of the record which is read first."""
    index = open_index(world.caches)
    _, validated = split(index, SETTINGS.validation_fraction, SETTINGS.validation_records)
    spoil(world, tmp_path, {int(validated[0]): "short"})
    records, uid = str(tmp_path / "records"), index.uid(int(validated[0]))
    with pytest.raises(
        BadRecord, match=rf"record {uid} .*text_features have shape \(76, 24\), the base takes \(77, 24\)"
    ):
        fit(world, tmp_path / "run", records=records)
    fit(world, tmp_path / "dropped", DROP, records)
    report = json.loads((tmp_path / "dropped" / "report.json").read_text())
    assert [one["uid"] for one in report["dropped_records"]] == [uid]


def test_more_bad_records_than_may_be_dropped_end_the_run(
    world: SimpleNamespace, spoilt: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(
        UsageError, match=r"[34] of 23 records cannot be used, more than train.max_dropped_fraction=0.1; the"
    ):
        fit(world, tmp_path / "run", replace(DROP, max_dropped_fraction=0.1), spoilt.records)


@pytest.mark.parametrize(("records", "may_be"), [(40, 8), (800, 160)])
def test_records_that_may_be_dropped_are_counted_over_workers_and_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: int, may_be: int
) -> None:
    """Of 8 workers none drops so many; the files are not listed for each record."""

    def bad(number: int) -> BadRecord:
        error = BadRecord(f"record {number}")
        error.uid, error.number = str(number), number
        return error

    store, listed = Store(), list[str]()
    list_names = store.list_names

    def counted(uri: str) -> list[str]:
        listed.append(uri)
        return list_names(uri)

    monkeypatch.setattr(store, "list_names", counted)

    def start() -> list[Dropped]:
        return [Dropped(str(tmp_path), store, records, 0.2, workers=8) for _ in range(8)]

    dropped, number = start(), 0
    with pytest.raises(UsageError, match=rf"\d+ of {records} records cannot be used, more than \S+=0.2; the last one"):
        for number in range(records):
            dropped[number % 8].add(bad(number))
    assert may_be <= number <= may_be * 9 / 8 and len(listed) <= 12 * 8
    with pytest.raises(UsageError, match="cannot be used"):
        start()[0].add(bad(number + 1))


def test_a_file_that_is_torn_where_only_features_are(world: SimpleNamespace, tmp_path: Path) -> None:
    """It is met when its first features are read, and named with the way out; or its records are dropped."""
    for path in Path(world.caches).iterdir():
        shutil.copy(path, tmp_path)
    torn = tmp_path / "part-001.parquet"
    group, data = pq.read_metadata(torn).row_group(0), bytearray(torn.read_bytes())
    columns = (group.column(number) for number in range(group.num_columns))
    column = next(column for column in columns if column.path_in_schema == "image_features.data")
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size // 2] = bytes(column.total_compressed_size // 2)
    torn.write_bytes(data)
    said = r"part-001.parquet: image_features: \S+/part-001.parquet is not a readable Parquet file: .*; run the encode stage"
    with pytest.raises(BadRecord, match=said):
        fit(world, tmp_path / "run", records=str(tmp_path))
    fit(world, tmp_path / "dropped", replace(DROP, max_dropped_fraction=0.5), str(tmp_path))
    report = json.loads((tmp_path / "dropped" / "report.json").read_text())
    assert report["dropped"] == group.num_rows and report["in"] == 23


def test_a_run_without_bad_records_does_not_change(
    world: SimpleNamespace, undisturbed: TrainResult, tmp_path: Path
) -> None:
    result = fit(world, tmp_path, replace(SETTINGS, bad_records=BadRecords.DROP))
    assert curve(result) == curve(undisturbed)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dropped"] == 0 and report["in"] == report["trained"] + report["held_out"]

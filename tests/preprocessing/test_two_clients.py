"""Two clients at once on every stage, on a store, one of them killed half the time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from realcustom import storage
from realcustom.preprocessing.catalogue import CHAIN
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import IngestSettings
from realcustom.settings import MethodSettings
from tests.support.chaos_checks import chaos_settings
from tests.support.clients import clients
from tests.support.corpora import snapshot, write_shards


@pytest.mark.cluster
@pytest.mark.parametrize("run", range(20))
def test_every_stage_has_one_set_of_outputs(run: int, bucket: str, tmp_path: Path) -> None:
    settings = replace(chaos_settings(tmp_path / "models"), ingest=IngestSettings(corpus="toys"))
    source = there = str(write_shards(tmp_path / "src", 6, 2))
    with clients(2 + len(CHAIN) // 2) as (lasting, *mortal):
        for number, stage in enumerate(CHAIN):
            alone = run_stage(
                stage, source, str(tmp_path / "alone"), settings, method=MethodSettings(), executor=InProcess()
            )
            for client in (lasting, mortal[0]):
                client.begin(stage, there, bucket, settings)
            if (number + run) % 2 == 0:
                units = mortal.pop(0).kill_after_a_unit()
            else:
                units = mortal[0].done()[0]
            done, counts = lasting.done()
            assert counts == (alone.report["units"], alone.report["in"]), stage.name
            assert len(units + done) == len({*units, *done}), f"{stage.name}: a unit was done twice"
            found = {entry.name: storage.read_bytes(entry.uri) for entry in storage.list_files(bucket)}
            assert not [left for left in found if left.startswith("leases/")], stage.name
            name = Path(alone.directory).name
            here = {f"{name}/{file}": data for file, data in snapshot(alone.directory).items()}
            assert {file: data for file, data in found.items() if file.startswith(f"{name}/")} == here
            source, there = alone.directory, f"{bucket}/{name}"

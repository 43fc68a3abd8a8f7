"""Stages on an object store that is overloaded, slow, and cuts connections: the bytes of an undisturbed run.

The fast tests ask moto, the slow one OpenStack Swift with its S3 API where SWIFT_URL names one that runs, both through
a proxy that breaks requests (faulty_proxy.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pytest
from PIL import Image

from realcustom import storage
from realcustom.preprocessing.catalogue import EXPORT, INGEST, SCORE, SELECT
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.settings import ExecutionSettings, IngestSettings, PreprocessSettings, SelectSettings
from tests.support.corpora import encoded, jpeg, picture, sample, tar_bytes, write_shards
from tests.support.faulty_proxy import DRAWN, Trouble, disturbed
from tests.support.object_store import store_address

SETTINGS = PreprocessSettings(
    ingest=IngestSettings(corpus="toys"),
    select=SelectSettings(min_side=16),
    execution=ExecutionSettings(attempts=6, backoff=0.05),
)
WHOLE = (INGEST, SCORE, SELECT, EXPORT)


def run(stages: tuple[Stage, ...], source: str, output: str) -> list[StageResult]:
    results: list[StageResult] = []
    for stage in stages:
        results.append(run_stage(stage, source, output, SETTINGS, executor=InProcess()))
        source = results[-1].directory
    return results


def objects(uri: str) -> dict[str, bytes]:
    return {entry.name: storage.read_bytes(entry.uri) for entry in storage.list_files(uri)}


def corpus(bucket: str, folder: Path, shards: int, corrupted: bool = True) -> str:
    """Shards in the store and, the same, in `folder`; the last one cut."""
    write_shards(folder, shards, 3)
    if corrupted:
        last = folder / f"shard-{shards - 1:05d}.tar"
        last.write_bytes(last.read_bytes()[:5000])
    for path in folder.iterdir():
        storage.write_bytes(f"{bucket}/raw/{path.name}", path.read_bytes())
    return f"{bucket}/raw"


def check_storm(
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stages: tuple[Stage, ...],
    *,
    seed: int,
    probability: float,
    shards: int,
) -> set[Trouble]:
    """Run the stages in a storm and without; their output must be equal. Returns what was met."""
    source = corpus(bucket, tmp_path / "src", shards)
    calm = run(stages, source, f"{bucket}/calm-{seed}")
    with disturbed(store_address(), seed, probability) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        stormy = run(stages, source, f"{bucket}/storm-{seed}")
        assert run(stages, source, f"{bucket}/storm-{seed}")[-1].units_run == 0
    assert [result.report for result in stormy] == [result.report for result in calm]
    assert objects(f"{bucket}/storm-{seed}") == objects(f"{bucket}/calm-{seed}")
    client = boto3.client("s3")
    assert not client.list_multipart_uploads(Bucket=bucket.removeprefix("s3://")).get("Uploads")
    report = calm[0].report
    assert report["in"] == report["kept"] + sum(report["dropped"].values()) + sum(report["quarantined"].values())
    assert report["quarantined"] == {"torn_tar": 1}
    return {trouble for _, trouble in proxy.met}


def test_a_storm_changes_no_byte(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met = check_storm(bucket, tmp_path, monkeypatch, (INGEST,), seed=0, probability=0.15, shards=2)
    assert len(met) >= 4


@pytest.mark.slow
def test_objects_that_are_written_in_parts_come_out_whole(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LARGE", 8 * 2**20)
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (1500, 2000, 3), dtype=np.uint8)) for _ in range(3)]  # 9 MB each
    data = tar_bytes({f"{number}.png": encoded(image, "PNG", compress_level=0) for number, image in enumerate(noise)})
    storage.write_bytes(f"{bucket}/large/s.tar", data)
    calm = run((INGEST,), f"{bucket}/large", f"{bucket}/calm")[0]
    met: set[str] = set()
    for seed in range(8):  # what is met depends on the names of the objects, which hold the stage's version
        with disturbed(store_address(), seed, 0.3) as proxy, monkeypatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", proxy.url)
            stormy = run((INGEST,), f"{bucket}/large", f"{bucket}/storm-{seed}")[0]
        assert stormy.report == calm.report and calm.report["kept"] == 3
        assert objects(f"{bucket}/storm-{seed}") == objects(f"{bucket}/calm")
        met |= {method for method, _ in proxy.met}
        if seed and met >= {"PUT", "POST", "GET"}:
            return
    pytest.fail(f"no request to begin or end an object in parts was disturbed, only {met}")


@pytest.mark.slow  # the SDK's own patience
def test_a_store_that_stays_down_stops_the_job_in_words(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = corpus(bucket, tmp_path / "src", 2, corrupted=False)
    first = run((INGEST,), source, f"{bucket}/out")[0]
    before = objects(f"{bucket}/out")
    storage.write_bytes(f"{bucket}/raw/shard-00002.tar", tar_bytes(sample("new", jpeg(picture(9)))))
    down = "GET /corpus/raw/shard-00002.tar"
    once = replace(SETTINGS, execution=ExecutionSettings(attempts=1))
    with disturbed(store_address(), 0, 0.0, down=down) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        with pytest.raises(ValueError, match=r"cannot read s3://corpus/raw/shard-00002\.tar: the store keeps failing"):
            run_stage(INGEST, source, f"{bucket}/out", once, executor=InProcess())
    after = objects(f"{bucket}/out")
    assert after.items() <= before.items() and set(before) - set(after) == {f"{Path(first.directory).name}/report.json"}
    assert run((INGEST,), source, f"{bucket}/out")[0].units_run == 1


@pytest.mark.slow
@pytest.mark.parametrize("store", ["bucket", "swift"])  # fixtures: moto's, and one of an OpenStack Swift
@pytest.mark.parametrize("seed", range(3))
def test_all_stages_in_a_storm(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, store: str
) -> None:
    uri = request.getfixturevalue(store)
    met = check_storm(uri, tmp_path, monkeypatch, WHOLE, seed=seed, probability=0.3, shards=4)
    assert met == set(DRAWN)

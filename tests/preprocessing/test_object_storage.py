"""The same stages with input and output on object storage."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest

from realcustom import storage
from realcustom.preprocessing.catalogue import INGEST, SCORE, SELECT
from realcustom.preprocessing.engine.fingerprint import describe, fingerprint
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import IngestSettings, PreprocessSettings, SelectSettings
from tests.support.corpora import jpeg, picture, sample, snapshot, tar_bytes, write_shards


def test_stages_read_and_write_object_storage(bucket: str, tmp_path: Path) -> None:
    settings = PreprocessSettings(ingest=IngestSettings(corpus="toys"), select=SelectSettings(min_side=16))
    write_shards(tmp_path / "src", 2, 2)
    for path in (tmp_path / "src").iterdir():
        storage.write_bytes(f"{bucket}/raw/{path.name}", path.read_bytes())
    directories = {"local": str(tmp_path / "src"), "remote": f"{bucket}/raw"}
    outputs = {"local": str(tmp_path / "out"), "remote": f"{bucket}/stages"}
    for stage in (INGEST, SCORE, SELECT):
        for place, directory in directories.items():
            result = run_stage(stage, directory, outputs[place], settings, executor=InProcess())
            assert result.units_run == 2
            assert run_stage(stage, directory, outputs[place], settings, executor=InProcess()).units_run == 0
            directories[place] = result.directory
        here = {name: data for name, data in snapshot(directories["local"]).items() if name.endswith(".parquet")}
        entries = storage.list_files(directories["remote"])
        assert here == {
            entry.name: storage.read_bytes(entry.uri) for entry in entries if entry.name.endswith(".parquet")
        }
    # a shard that changes is done again; one that goes takes its rows along
    storage.write_bytes(f"{bucket}/raw/shard-00000.tar", tar_bytes(sample("new", jpeg(picture(5)))))
    boto3.client("s3").delete_object(Bucket="corpus", Key="raw/shard-00001.tar")
    result = run_stage(INGEST, f"{bucket}/raw", outputs["remote"], settings, executor=InProcess())
    assert (result.units_run, result.report["in"]) == (1, 1)
    names = [entry.name for entry in storage.list_files(result.directory, recursive=False)]
    assert sorted(names) == ["report.html", "report.json", "shard-00000.parquet", "stage.json"]


@pytest.mark.parametrize(
    "name", ["a#b", "a b", "a%20b", "a+b", "a?endpoint_override=127.0.0.1:9&scheme=http&region=x", "ä"]
)
def test_any_key_is_taken_as_it_is(bucket: str, name: str) -> None:
    storage.write_bytes(f"{bucket}/odd/a", b"another")
    storage.write_bytes(f"{bucket}/odd/{name}.tar", name.encode())
    keys = {item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket="corpus", Prefix="odd/")["Contents"]}
    assert f"odd/{name}.tar" in keys
    entry = next(entry for entry in storage.list_files(f"{bucket}/odd") if entry.name == f"{name}.tar")
    assert storage.read_bytes(entry.uri) == name.encode()
    assert storage.exists(entry.uri) and not storage.is_dir(entry.uri)


@pytest.mark.parametrize("uri", ["s3://corpus?endpoint_override=127.0.0.1:9/a", "s3://key:secret@corpus/a", "s3:///a"])
def test_a_bucket_is_a_name_and_nothing_else(uri: str) -> None:
    with pytest.raises(ValueError, match="cannot be a bucket's name"):
        storage.read_bytes(uri)


def test_a_missing_prefix_is_said_plainly(bucket: str) -> None:
    with pytest.raises(ValueError, match="no input at s3://corpus/nothing"):
        run_stage(INGEST, f"{bucket}/nothing", f"{bucket}/out", PreprocessSettings(), executor=InProcess())


def test_an_evaluation_folder_in_the_store_is_known_by_its_content(bucket: str) -> None:
    storage.write_bytes(f"{bucket}/evaluation/a.jpg", jpeg(picture(0)))
    settings = PreprocessSettings(select=SelectSettings(evaluation_folder=f"{bucket}/evaluation"))
    descriptions = [describe(SELECT, settings, "score@0", {}, None)]
    storage.write_bytes(f"{bucket}/evaluation/a.jpg", jpeg(picture(1)))
    descriptions.append(describe(SELECT, settings, "score@0", {}, None))
    assert fingerprint(descriptions[0]) != fingerprint(descriptions[1])
    with pytest.raises(ValueError, match=r"no folder at s3://corpus/nothing"):
        elsewhere = PreprocessSettings(select=SelectSettings(evaluation_folder=f"{bucket}/nothing"))
        describe(SELECT, elsewhere, "score@0", {}, None)


def test_keys_that_are_no_paths_are_quarantined_and_one_form_of_an_address_is_one_corpus(
    bucket: str, tmp_path: Path
) -> None:
    client = boto3.client("s3")
    for number, key in enumerate(
        ["a.jpg", "/b.jpg", "x//c.jpg", "x/./d.jpg", "x/../e.jpg", "x//notes", ".hidden/f.jpg"]
    ):
        client.put_object(Bucket="corpus", Key=f"odd-keys/{key}", Body=jpeg(picture(number)))
    settings = PreprocessSettings()
    results = [
        run_stage(INGEST, place, str(tmp_path), settings, executor=InProcess())
        for place in (f"{bucket}/odd-keys", f"{bucket}/odd-keys/")
    ]
    assert results[0].directory == results[1].directory and results[1].units_run == 0
    report = results[0].report
    assert (report["in"], report["kept"], report["quarantined"]) == (5, 1, {"unreadable_name": 4})
    assert {kind: n for kind, n in report["not_read"].items() if kind != "first"} == {"hidden": 1, "unreadable name": 1}

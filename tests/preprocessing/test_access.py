"""What a storage refuses, and folders that hold something else: said at once, in words, with nothing half-written."""

from __future__ import annotations

import errno
import os
import shutil
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realcustom import storage
from realcustom.preprocessing.catalogue import INGEST, SCORE
from realcustom.preprocessing.engine.stage import Stage
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.settings import IngestSettings, PreprocessSettings, SelectSettings
from realcustom.store import is_transient
from tests.support.corpora import jpeg, picture, sample, snapshot, tar_bytes, write_shards
from tests.support.loopback import LoopbackServer, running


def run(source: str | Path, output: str | Path, stage: Stage = INGEST) -> StageResult:
    return run_stage(
        stage, str(source), str(output), PreprocessSettings(select=SelectSettings(min_side=16)), executor=InProcess()
    )


def test_wrong_credentials(guarded: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"cannot read s3://corpus/raw: wrong credentials, the key .* AWS_ACCESS_KEY_ID"
    ):
        run("s3://corpus/raw", tmp_path / "out")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", guarded["AWS_ACCESS_KEY_ID"])
    with pytest.raises(ValueError, match="wrong credentials, the secret does not fit the key"):
        run("s3://corpus/raw", tmp_path / "out")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="cannot read s3://corpus/raw: no credentials; set AWS_ACCESS_KEY_ID"):
        run("s3://corpus/raw", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_credentials_of_a_profile_and_of_a_session(
    guarded: dict[str, str], session: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in guarded:
        monkeypatch.delenv(name)
    lines = [f"{name.lower()} = {value}" for name, value in guarded.items()]
    (tmp_path / "credentials").write_text("\n".join(["[reader]", *lines]))
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        with pytest.raises(ValueError, match="no credentials"):
            run("s3://corpus/raw", tmp_path / "none")
        patch.setenv("AWS_PROFILE", "reader")
        assert run("s3://corpus/raw", tmp_path / "by-profile").report["kept"] == 1
    for name, value in session.items():
        monkeypatch.setenv(name, value)
    assert run("s3://corpus/raw", tmp_path / "by-session").report["kept"] == 1
    monkeypatch.setenv("AWS_SESSION_TOKEN", "another")
    with pytest.raises(ValueError, match="cannot read s3://corpus/raw: wrong credentials, the session's token"):
        run("s3://corpus/raw", tmp_path / "none")


class Refusing(LoopbackServer):
    """A store that answers each request with one error."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(_Refusal)
        self.status = status
        self.body = f"<Error><Code>{code}</Code><Message>no</Message><Region>eu-west-1</Region></Error>".encode()


class _Refusal(BaseHTTPRequestHandler):
    server: Refusing

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body if self.command == "GET" else b"")

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (403, "RequestTimeTooSkewed", "this machine's clock differs from the store's by too much"),
        (400, "ExpiredToken", "the credentials have expired"),
        (301, "PermanentRedirect", "the bucket is in another region; set AWS_DEFAULT_REGION"),
        (400, "AuthorizationHeaderMalformed", "the bucket is in another region; set AWS_DEFAULT_REGION"),
    ],
)
def test_a_clock_a_token_and_a_region(
    status: int, code: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with running(Refusing(status, code)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        begun = time.monotonic()
        with pytest.raises(ValueError, match=rf"cannot read s3://corpus/raw: {reason}"):
            run("s3://corpus/raw", tmp_path / "out")
    assert time.monotonic() - begun < 10


def test_a_bucket_or_a_server_that_is_not_there(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 1, 1)
    for source, output in ((f"{bucket}s/raw", tmp_path / "out"), (tmp_path / "src", f"{bucket}s/out")):
        with pytest.raises(ValueError, match=r"cannot read s3://corpuss/.*: the bucket does not exist"):
            run(source, output)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"nothing answers at the store's address; is AWS_ENDPOINT_URL right\?"):
        run(f"{bucket}/raw", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_store_that_does_not_give_the_metadata_is_said_of_the_metadata(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.jpg").write_bytes(jpeg(picture(0)))
    settings = PreprocessSettings(ingest=IngestSettings(metadata=f"{bucket}s/list.csv", join="stem=name"))
    for reason in ("the bucket does not exist", "nothing answers at the store's address"):
        with pytest.raises(ValueError, match=rf"cannot read s3://corpuss/list\.csv: {reason}"):
            run_stage(INGEST, str(tmp_path / "src"), str(tmp_path / "out"), settings, executor=InProcess())
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert not (tmp_path / "out").exists()


def test_a_refusal_is_not_tried_again() -> None:
    for code in ("ACCESS_DENIED", "NO_SUCH_BUCKET", "SIGNATURE_DOES_NOT_MATCH"):
        assert not is_transient(
            OSError(f"When reading: AWS Error {code} during HeadObject operation: No response body.")
        )
    assert is_transient(OSError("When reading: AWS Error SLOW_DOWN during GetObject operation: ..."))


def test_a_local_output_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "src", 1, 1)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"cannot write below .*/file/out: .*/file is a file, not a folder"):
        run(tmp_path / "src", tmp_path / "file/out")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)  # tests may run as one who may write anywhere
        with pytest.raises(ValueError, match=r"cannot write below .*/out: no permission in"):
            run(tmp_path / "src", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "src"]


def test_a_file_that_may_not_be_written_stops_the_job_and_a_rerun_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "src", 2, 1)
    whole = run(tmp_path / "src", tmp_path / "whole")
    write = storage.write_bytes

    def full(uri: str | Path, data: bytes) -> None:
        if str(uri).endswith("shard-00001.parquet"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))  # tests may run as one who may write anywhere
        write(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", full)
        with pytest.raises(ValueError, match=r"cannot write .*/shard-00001\.parquet: no permission"):
            run(tmp_path / "src", tmp_path / "out")
    again = run(tmp_path / "src", tmp_path / "out")
    assert again.units_run == 1 and snapshot(again.directory) == snapshot(whole.directory)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    write_shards(tmp_path / "src", 1, 1)
    write_shards(tmp_path / "other", 1, 1, seed=5)
    first = Path(run(tmp_path / "src", tmp_path / "out").directory)
    second = Path(run(tmp_path / "other", tmp_path / "there").directory)
    shutil.rmtree(first)
    shutil.copytree(second, first)
    before = snapshot(first)
    with pytest.raises(ValueError, match="holds the files of another fingerprint"):
        run(tmp_path / "src", tmp_path / "out")
    (first / "report.json").unlink()
    with pytest.raises(ValueError, match="holds the files of another fingerprint"):
        run(tmp_path / "src", tmp_path / "out")
    assert snapshot(first) == {name: data for name, data in before.items() if name != "report.json"}
    shutil.rmtree(first)
    first.mkdir()
    (first / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ValueError, match=r"holds files of no stage \(thesis\.txt\)"):
        run(tmp_path / "src", tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"is a stage's own directory, and the root of all stages is wanted: give .*/there"
    ):
        run(second, second, SCORE)


def test_equal_keys_of_two_sources(tmp_path: Path) -> None:
    data = jpeg(picture(0))
    for folder in ("a", "b"):
        (tmp_path / "src" / folder).mkdir(parents=True)
        (tmp_path / "src" / folder / "s.tar").write_bytes(tar_bytes(sample("same", data)))
    ingested = run(tmp_path / "src", tmp_path / "out")
    tables = [pq.read_table(path) for path in sorted(Path(ingested.directory).glob("*.parquet"))]
    assert ingested.report["kept"] == len({table["uid"][0].as_py() for table in tables}) == 2
    # a table that somebody put together of one picture twice
    (tmp_path / "own").mkdir()
    pq.write_table(pa.concat_tables([tables[0], tables[0]]), tmp_path / "own/t.parquet")
    with pytest.raises(ValueError, match=rf"t\.parquet: two rows have the uid {tables[0]['uid'][0]}"):
        run(tmp_path / "own", tmp_path / "out", SCORE)

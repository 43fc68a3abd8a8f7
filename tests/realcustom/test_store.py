"""Reading through a store: Parquet files, and what is said before work begins."""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore import exceptions
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from realcustom import storage
from realcustom.conditional import age_of, put_if_absent, remove
from realcustom.config import load_file
from realcustom.errors import MissingFile, UsageError
from realcustom.identity import model_identity
from realcustom.model_cache import fetch, pin
from realcustom.parquet import ParquetFile
from realcustom.retry import RetrySettings
from realcustom.store import CONNECT_SECONDS, ChunkedFile, StorageRefused, Store, check_readable, is_transient
from tests.support.loopback import LoopbackServer, running

MINUTE_AND_A_HALF = 95.0


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"uid": [str(number) for number in range(5000)], "row": range(5000)}), path)
    return path


def test_columns_of_a_parquet_file(table: Path) -> None:
    file = ParquetFile(table, Store())
    assert file.schema.equals(pq.read_schema(table))
    assert file.read(["row", "uid"]).equals(pq.read_table(table).select(["row", "uid"]))
    with pytest.raises(MissingFile, match=r"no file at .*b\.parquet"):
        ParquetFile(table.with_name("b.parquet"), Store())


def test_a_damaged_parquet_file_is_named_and_not_read_again(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realcustom.retry.time.sleep", lambda _: pytest.fail("nothing to wait for"))
    data = table.read_bytes()
    for damaged in (b"PAR1 and no more", b"", data[:-20], data[:4] + bytes(4000) + data[4004:]):
        table.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"a\.parquet is not a readable Parquet file"):
            ParquetFile(table, Store()).read(["uid", "row"])


def test_the_storages_errors_within_a_parquet_file_are_retried_and_keep_their_words(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, store = pq.read_table(table), Store(RetrySettings(attempts=3, backoff=0.0))
    read, failures = ChunkedFile.read, 0

    class Failing:
        """The file of a storage that fails now and then."""

        def __init__(self, file: pa.NativeFile) -> None:
            self.file = file

        def read_at(self, size: int, offset: int) -> bytes:
            nonlocal failures
            failures += 1
            if failures % 3:
                raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation")
            return bytes(self.file.read_at(size, offset))

    def through(file: ChunkedFile, offset: int, count: int) -> bytes:
        if not isinstance(file._file, Failing):
            file._file = Failing(file._file)
        return read(file, offset, count)

    monkeypatch.setattr(ChunkedFile, "read", through)
    assert ParquetFile(table, store).read(["uid", "row"]).equals(expected) and failures >= 3
    with pytest.raises(StorageRefused, match=r"cannot read .*a\.parquet: nothing answers"):
        ParquetFile(table, Store(RetrySettings(attempts=2, backoff=0.0)))


class _OneFileOnly(BaseHTTPRequestHandler):
    """A store that lets one object be read, and no bucket be listed."""

    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_response(200 if self.path == "/bucket/mine.safetensors" else 403)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _Overloaded(BaseHTTPRequestHandler):
    """A store that answers 503 for ever."""

    server: Overloaded
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.answers += 1
        body = b"<Error><Code>SlowDown</Code><Message>Reduce your rate</Message></Error>"
        self.send_response_only(503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_DELETE = _answer


class Overloaded(LoopbackServer):
    """Counts its answers."""

    answers = 0

    def __init__(self) -> None:
        super().__init__(_Overloaded)


@contextlib.contextmanager
def overloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Overloaded]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with running(Overloaded()) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server


@pytest.mark.parametrize(
    ("doing", "act"),
    [
        ("list", lambda store: store.list_files("s3://bucket/a")),
        ("list", lambda store: store.list_names("s3://bucket/a")),
        ("write", lambda store: store.write("s3://bucket/a", b"1")),
        ("write", lambda store: put_if_absent("s3://bucket/a", b"1", store)),
        ("read", lambda store: age_of("s3://bucket/a", store)),
        ("delete", lambda store: remove("s3://bucket/a", store)),
    ],
)
def test_a_store_that_answers_503_for_ever_is_said_in_time(
    doing: str, act: Callable[[Store], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waits are ours alone, a minute and a half in all, and each try is one request."""
    waits: list[float] = []
    monkeypatch.setattr("realcustom.retry.time.sleep", waits.append)  # boto3's too
    with overloaded(monkeypatch) as server:
        with pytest.raises(StorageRefused, match=f"cannot {doing} s3://bucket/a: "):
            act(Store())
        assert server.answers == Store().retries.attempts
    assert 60 < sum(waits) < MINUTE_AND_A_HALF


@pytest.mark.parametrize(
    "act",
    [
        lambda: check_readable("s3://bucket/a"),
        lambda: load_file("s3://bucket/settings.yaml"),
        lambda: pin("s3://bucket/model"),
        lambda: fetch("s3://bucket/model"),
    ],
)
def test_before_any_work_it_is_said_in_seconds(act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("realcustom.retry.time.sleep", waits.append)
    with (
        overloaded(monkeypatch),
        pytest.raises(StorageRefused, match="keeps failing, or is asked too much: run it again"),
    ):
        act()
    assert sum(waits) < CONNECT_SECONDS


def _answered(code: str, status: int) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (_answered("RequestTimeout", 400), True),
        (_answered("SlowDown", 400), True),
        (_answered("429", 429), True),
        (_answered("InternalError", 500), True),
        (_answered("NoSuchUpload", 404), True),
        (exceptions.SSLError(endpoint_url="", error=""), True),
        (exceptions.ProxyConnectionError(proxy_url="", error=""), True),
        (exceptions.HTTPClientError(error=""), True),
        (exceptions.EndpointConnectionError(endpoint_url=""), True),
        (exceptions.ConnectionClosedError(endpoint_url=""), True),
        (exceptions.ReadTimeoutError(endpoint_url=""), True),
        (exceptions.ResponseStreamingError(error=""), True),
        (exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2), True),
        (ResponseParserError(), True),
        (_answered("AccessDenied", 403), False),
        (_answered("InvalidArgument", 400), False),
        (_answered("NoSuchKey", 404), False),
        (exceptions.NoCredentialsError(), False),
        (exceptions.ParamValidationError(report=""), False),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_passes_is_tried_again(error: Exception, helps: bool) -> None:
    assert is_transient(error) is helps


def test_a_page_that_is_cut_off_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    page = b"<ListBucketResult><Contents><Key>a/b</Key><Size>1</Size><ETag>x</ETag></Contents></ListBucketResult>"

    class CutOff(BaseHTTPRequestHandler):
        answers = 0

        def do_GET(self) -> None:
            CutOff.answers += 1
            body = page if CutOff.answers > 1 else page[:-20]
            self.send_response_only(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with running(LoopbackServer(CutOff)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        assert Store(RetrySettings(backoff=0.0)).list_names("s3://bucket/a") == ["b"] and CutOff.answers == 2


@pytest.mark.slow  # pyarrow waits for some seconds at each try
def test_so_is_one_of_which_a_whole_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    once, retries = Store(RetrySettings(attempts=1)), RetrySettings()
    begun = time.monotonic()
    with overloaded(monkeypatch), pytest.raises(StorageRefused, match=r"cannot read s3://bucket/a: "):
        once.read("s3://bucket/a")
    tries = retries.attempts * (time.monotonic() - begun)
    assert tries + sum(retries.wait(attempt) for attempt in range(1, retries.attempts)) < 150, "docs/runbook.md"


def test_a_file_that_may_be_read_is_readable_where_its_folder_may_not_be_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with running(LoopbackServer(_OneFileOnly)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        check_readable("s3://bucket/mine.safetensors")
        for place in ("s3://bucket/other.safetensors", "s3://bucket"):
            with pytest.raises(StorageRefused, match="access denied"):
                check_readable(place)


def test_a_models_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("realcustom.identity.open", refuse, raising=False)  # a superuser may read every file
    with pytest.raises(StorageRefused, match=r"cannot read .*config\.json: no permission"):
        model_identity(str(tmp_path))


def test_ctrl_c_while_an_object_is_written_leaves_the_one_before(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    uri, client = f"{bucket}/a", boto3.client("s3")
    storage.write_bytes(uri, b"before")
    monkeypatch.setattr(storage, "LARGE", 10 * 2**20)
    data = bytes(11 * 2**20)
    send = storage.s3_client(storage.PART_ATTEMPTS).meta.events

    pressed, main = threading.Event(), threading.get_ident()

    def interrupt(**_: object) -> None:  # in a thread; what is pressed is for the main one
        if not pressed.is_set():
            pressed.set()
            signal.pthread_kill(main, signal.SIGINT)
            time.sleep(0.3)

    send.register("before-call.s3.UploadPart", interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            storage.write_bytes(uri, data)
    finally:
        send.unregister("before-call.s3.UploadPart", interrupt)
    assert pressed.is_set() and storage.read_bytes(uri) == b"before"
    assert not client.list_multipart_uploads(Bucket=bucket.removeprefix("s3://")).get("Uploads"), "it is aborted"
    storage.write_bytes(uri, memoryview(data))  # as a checkpoint is
    assert storage.read_bytes(uri) == data


def test_another_role_is_another_client(object_store: object, monkeypatch: pytest.MonkeyPatch) -> None:
    first = storage.s3_client()
    assert storage.s3_client() is first
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/other")
    assert storage.s3_client() is not first

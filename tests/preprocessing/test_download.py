"""A table of URLs: what is fetched, what is left alone, and every row accounted for."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from realcustom.preprocessing.catalogue import EXPORT, INGEST
from realcustom.preprocessing.engine.unit import Unit
from realcustom.preprocessing.errors import DataError, RowDropped, TooManyErrors
from realcustom.preprocessing.ingest import hosts, row_groups, urls
from realcustom.preprocessing.ingest.corpus import open_corpus
from realcustom.preprocessing.ingest.download import opted_out
from realcustom.preprocessing.ingest.hosts import Hosts
from realcustom.preprocessing.ingest.url_safety import UrlTarget, is_public, resolve
from realcustom.preprocessing.run import InProcess, OnRay, StageResult, run_stage
from realcustom.preprocessing.settings import (
    DownloadSettings,
    ExecutionSettings,
    IngestSettings,
    PreprocessSettings,
    SourceKind,
)
from realcustom.store import Store
from tests.support.corpora import jpeg, picture, snapshot
from tests.support.picture_server import PictureServer, served
from tests.support.stages import excluded_of, table_of

PATIENT = ExecutionSettings(max_error_fraction=1.0, attempts=3, backoff=0.0)


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with served() as server:
        yield server


def fetch(
    table: Path,
    output: Path,
    execution: ExecutionSettings = PATIENT,
    download: DownloadSettings | None = None,
    **more: object,
) -> StageResult:
    given = {"private_addresses": True, "download": download or DownloadSettings(timeout=20.0), **more}
    settings = PreprocessSettings(ingest=IngestSettings(**given), execution=execution)  # type: ignore[arg-type]
    return run_stage(INGEST, str(table), str(output), settings, executor=InProcess())


def write_table(path: Path, urls: Sequence[str | None], **options: object) -> Path:
    captions = [f"number {index}" for index in range(len(urls))]
    pq.write_table(pa.table({"url": pa.array(urls, pa.string()), "caption": captions}), path, **options)
    return path


def test_every_row_is_a_picture_or_has_its_reason(server: PictureServer, tmp_path: Path) -> None:
    expected = {
        "/picture/1": "",
        "/flaky/2": "",
        "/reset/3": "",
        "/to/picture/4": "",
        "/robots/gptbot:_noai": "",  # addressed to another robot
        "/robots/noindex": "",  # of search engines, not of training
        "/page": "unreadable_image",
        "/status/404": "http_404",
        "/status/403": "http_403",
        "/status/500": "unreachable",
        "/short/5": "unreachable",
        "/robots/noai": "robots_opt_out",
        "/robots/noindex,_noimageai": "robots_opt_out",
        "/to/robots/noai": "robots_opt_out",
        "/loop": "too_many_redirects",
        "/to/file": "forbidden_scheme",
        "/large/declared": "too_many_bytes",
        "/large": "too_many_bytes",
    }
    odd: dict[str | None, str] = {
        "ftp://x/y.jpg": "forbidden_scheme",
        "picture.jpg": "invalid_url",
        "http://": "invalid_url",
        None: "invalid_url",
    }
    urls = [*(server.url + path for path in expected), *odd]
    result = fetch(write_table(tmp_path / "t.parquet", urls), tmp_path / "out", max_bytes=60_000)
    rows, excluded = table_of(result).to_pylist(), excluded_of(result)
    reasons = {row["key"]: "" for row in rows} | {key: line["reason"] for key, line in excluded.items()}
    found = {url: reasons[f"t.parquet#{index}"] for index, url in enumerate(urls)}
    assert found == dict(zip(urls, [*expected.values(), *odd.values()], strict=True))
    assert [row["key"] for row in rows] == [f"t.parquet#{index}" for index in range(6)]
    assert [row["image"] for row in rows[:4]] == [jpeg(picture(seed)) for seed in (1, 2, 3, 4)]
    assert rows[3]["alt_text"] == "number 3" and rows[3]["members"] is None
    report = result.report
    assert report["in"] == len(urls) == report["kept"] + len(excluded)
    assert "HTTP 500, tried 3 times" in excluded["t.parquet#9"]["message"]
    assert server.asked["/status/500"] == 3 and server.asked["/status/404"] == 1 and server.asked["/flaky/2"] == 3
    assert server.agents == {"realcustom"}


def test_without_the_setting_no_row_leads_into_the_own_network(server: PictureServer, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    places = ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "10.0.0.1", "169.254.169.254", "2130706433"]
    table = write_table(tmp_path / "t.parquet", [f"http://{host}:{port}/picture/1" for host in places])
    result = fetch(table, tmp_path / "out", private_addresses=False)
    assert result.report["dropped"] == {"private_address": len(places)}
    assert not server.asked
    assert "ingest.private_addresses=true" in excluded_of(result)["t.parquet#0"]["message"]


def test_a_redirect_is_judged_as_the_first_url_was() -> None:
    # what _follow does with each hop
    for url in ("http://127.0.0.1/", "http://[fe80::1]/", "http://0.0.0.0/"):
        with pytest.raises(RowDropped, match="private_address"):
            asyncio.run(resolve(UrlTarget.parse(url), private_addresses=False))
    for url, error in (("file:///etc/passwd", RowDropped), ("gopher://x/", RowDropped), ("//x/y", DataError)):
        with pytest.raises(error):
            UrlTarget.parse(url)
    request = asyncio.run(resolve(UrlTarget.parse("https://user:word@1.1.1.1:8443/a?b=c"), private_addresses=False))
    assert str(request.url) == "https://1.1.1.1:8443/a?b=c" and request.host_header == "1.1.1.1:8443"


@pytest.mark.parametrize(
    "url", ["http://xn--a/", "http://xn--/", ":http://x]/", "http://\0/", "http:///x", "http://x:65536/", ""]
)
def test_what_is_no_url_is_a_fault_of_its_row(url: str) -> None:
    with pytest.raises((DataError, RowDropped)):
        UrlTarget.parse(url)


def test_public_addresses() -> None:
    public = ("1.1.1.1", "2606:4700::1111")
    inner = ("127.0.0.1", "192.168.1.1", "100.64.0.1", "224.0.0.1", "0.0.0.0", "::1", "fc00::1", "ff02::1")
    wrapped = (
        "::ffff:1.1.1.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "::127.0.0.1",
        "64:ff9b:1::7f00:1",
        "::ffff:0:127.0.0.1",
        "fec0::1",
    )
    assert all(is_public(ipaddress.ip_address(address)) for address in public)
    assert not any(is_public(ipaddress.ip_address(address)) for address in (*inner, *wrapped))


def test_the_host_that_was_named_is_the_one_that_is_asked(server: PictureServer) -> None:
    url = server.url.replace("127.0.0.1", "localhost")
    request = asyncio.run(resolve(UrlTarget.parse(f"{url}/a"), private_addresses=True))
    assert request.url.host == "127.0.0.1" and request.host_header == httpx.URL(url).netloc.decode()
    secure = asyncio.run(resolve(UrlTarget.parse("https://localhost/a"), private_addresses=True))
    assert (secure.server_hostname, request.server_hostname) == ("localhost", None)


def test_a_host_is_asked_only_so_much_at_once(server: PictureServer, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", [f"{server.url}/slow/0.05/{index}" for index in range(12)])
    result = fetch(table, tmp_path / "out", download=DownloadSettings(per_host=2))
    assert result.report["kept"] == 12 and server.most == 2


def test_a_slow_row_holds_up_no_other_unit(server: PictureServer, tmp_path: Path) -> None:
    urls = [
        f"{server.url}/slow/0.6/{index}" if index % 3 == 0 else f"{server.url}/picture/{index}" for index in range(18)
    ]
    table = write_table(tmp_path / "t.parquet", urls)
    result = fetch(table, tmp_path / "out", unit_size=3, download=DownloadSettings(units=6, per_host=6))
    assert result.report["kept"] == 18 and result.units_run == 6
    assert server.most > 3, "rows of several units were asked for at once"
    alone = fetch(table, tmp_path / "alone", unit_size=3, download=DownloadSettings(units=1, per_host=6))
    assert snapshot(Path(result.directory)) == snapshot(Path(alone.directory))


def test_a_name_that_does_not_exist_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def look_up(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME if host.startswith("gone") else socket.EAI_AGAIN, "nothing found")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    urls = [f"http://{host}.test/{index}" for host in ("gone", "silent") for index in range(5)]
    result = fetch(write_table(tmp_path / "t.parquet", urls), tmp_path / "out")
    assert result.report["quarantined"] == {"unreachable": 10}
    assert asked.count("gone.test") == 1 and asked.count("silent.test") == hosts.SILENT
    messages = {line["message"] for line in excluded_of(result).values()}
    assert any("no such host: http://gone.test" in message for message in messages)


def test_a_slow_answer_is_given_up(server: PictureServer, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.parquet", [f"{server.url}/slow/3"])
    once = ExecutionSettings(max_error_fraction=1.0, attempts=1)
    result = fetch(table, tmp_path / "out", execution=once, download=DownloadSettings(timeout=0.3))
    assert result.report["quarantined"] == {"unreachable": 1}
    assert "no answer (TimeoutError)" in excluded_of(result)["t.parquet#0"]["message"]


def test_a_host_that_never_answers_is_waited_for_once(server: PictureServer, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        gone = f"http://127.0.0.1:{silent.getsockname()[1]}"
        urls = [f"{gone}/{index}" for index in range(40)] + [f"{server.url}/picture/{index}" for index in range(4)]
        table = write_table(tmp_path / "t.parquet", urls)
        began = time.monotonic()
        result = fetch(table, tmp_path / "out", download=DownloadSettings(silence=0.5, per_host=2), unit_size=11)
        assert time.monotonic() - began < 5
    assert (result.report["kept"], result.report["quarantined"]) == (4, {"unreachable": 40})
    message = excluded_of(result)["t.parquet#39"]["message"]
    assert "gave no answer before, and is not asked again" in message


def test_a_host_is_dead_until_it_answers_or_time_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Hosts()
    for _ in range(hosts.SILENT):
        assert not known.is_dead("a:80")
        known.was_silent("a:80")
    assert known.is_dead("a:80") and not known.is_dead("a:81")
    monkeypatch.setattr(hosts, "REMEMBERED", 0.0)
    assert not known.is_dead("a:80")
    known.answered("b:80")
    for _ in range(9):
        known.was_silent("b:80")  # one that works, but is slow
    assert not known.is_dead("b:80")


def test_an_outage_stops_the_job(tmp_path: Path) -> None:
    with served() as server:
        gone = server.url
    table = write_table(tmp_path / "t.parquet", [f"{gone}/picture/{index}" for index in range(20)])
    strict = ExecutionSettings(attempts=1)
    with pytest.raises(TooManyErrors, match=r"20 of 20 rows are quarantined \(unreachable 20\)"):
        fetch(table, tmp_path / "out", execution=strict)


def test_tables_are_cut_into_units_of_rows(server: PictureServer, tmp_path: Path) -> None:
    urls = [f"{server.url}/picture/{index}" for index in range(7)]
    table = write_table(tmp_path / "t.parquet", urls, row_group_size=2)
    csv = tmp_path / "list.csv"
    csv.write_text("caption,url\n" + "".join(f'"a ""{index}"",\nb",{url}\n' for index, url in enumerate(urls)))
    for source in (table, csv):
        result = fetch(source, tmp_path / f"out-{source.suffix}", unit_size=3)
        rows = table_of(result).to_pylist()
        assert result.units_run == 3
        settings = PreprocessSettings(ingest=IngestSettings(unit_size=3))
        units = open_corpus(str(source), settings, Store()).units
        assert tuple(Unit.from_json(unit.to_json()) for unit in units) == units
        assert [row["key"] for row in rows] == [f"{source.name}#{index}" for index in range(7)]
        assert [row["image"] for row in rows] == [jpeg(picture(seed)) for seed in range(7)]
    assert rows[4]["alt_text"] == 'a "4",\nb'
    again = fetch(csv, tmp_path / "out-.csv", unit_size=3, download=DownloadSettings(per_host=1))
    assert again.units_run == 0  # how it is fetched changes nothing


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_without_rows_gives_no_rows(kind: str, tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", [])
    (tmp_path / "t.csv").write_text("url,caption\n")
    result = fetch(tmp_path / f"t.{kind}", tmp_path / "out")
    assert (result.report["units"], result.report["in"], result.report["kept"]) == (0, 0, 0)


def test_workers_fetch_and_export_what_one_process_does(
    ray_cluster: str, server: PictureServer, tmp_path: Path
) -> None:
    urls = [f"{server.url}/{'picture' if index % 3 else 'robots/noai'}/{index}" for index in range(8)]
    table = write_table(tmp_path / "t.parquet", urls)
    ingest = IngestSettings(private_addresses=True, unit_size=3)
    settings = PreprocessSettings(ingest=ingest, execution=ExecutionSettings(workers=2))
    snapshots = []
    for place, local in (("one", True), ("two", False)):
        source = str(table)
        for stage in (INGEST, EXPORT):
            source = run_stage(
                stage, source, str(tmp_path / place), settings, executor=InProcess() if local else OnRay()
            ).directory
        snapshots.append(snapshot(tmp_path / place))
    assert snapshots[0] == snapshots[1] and len(snapshots[0]) > 20


def test_tables_that_cannot_be_read_are_said_plainly(tmp_path: Path) -> None:
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"address": ["http://x"], "caption": ["a"]}), table)
    with pytest.raises(ValueError, match=r"no column 'url' but address, caption; --set .*ingest\.url_column=NAME"):
        fetch(
            table,
            tmp_path / "out",
            image_column="address",
            url_column="url",
            source=SourceKind.URLS,
        )
    (tmp_path / "list.csv").write_text("address,caption\nhttp://x,a\n")
    with pytest.raises(ValueError, match=r"list\.csv has no column 'url' but address, caption"):
        fetch(tmp_path / "list.csv", tmp_path / "out")
    with pytest.raises(
        ValueError,
        match=r"no column 'text' but address, caption; --set .*\.caption_column=NAME .* \(null",
    ):
        fetch(tmp_path / "list.csv", tmp_path / "out", url_column="address", caption_column="text")
    assert not (tmp_path / "out").exists()


def test_a_table_that_the_storage_does_not_give_stops_the_job(
    server: PictureServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_table(tmp_path / "t.parquet", [f"{server.url}/picture/1"])

    def failing(uri: str, store: Store) -> pq.ParquetFile:
        raise OSError("AWS Error INTERNAL_FAILURE during GetObject")

    for module in (urls, row_groups):
        with monkeypatch.context() as patch:
            patch.setattr(module, "open_large", failing)
            with pytest.raises(ValueError, match=r"cannot read .*t\.parquet: the store keeps failing"):
                fetch(table, tmp_path / "out")
        assert not list((tmp_path / "out").rglob("*.jsonl"))
    assert fetch(table, tmp_path / "out").report["kept"] == 1


def test_a_torn_table_of_urls_is_one_excluded_row_and_a_bad_row_group_its_rows(
    server: PictureServer, tmp_path: Path
) -> None:
    source = tmp_path / "src"
    source.mkdir()
    urls = [f"{server.url}/picture/{index}" for index in range(4)]
    whole = write_table(source / "b.parquet", urls, row_group_size=2, use_dictionary=False, compression="zstd")
    (source / "a.parquet").write_bytes(whole.read_bytes()[:-30])
    (source / "a0.parquet").write_bytes(whole.read_bytes()[:-30] + b"\xff" * 22 + whole.read_bytes()[-8:])
    data = bytearray(whole.read_bytes())
    start = pq.ParquetFile(whole).metadata.row_group(1).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    whole.write_bytes(bytes(data))
    result = fetch(source, tmp_path / "out", unit_size=2)
    assert (result.report["in"], result.report["kept"], result.report["quarantined"]) == (6, 2, {"torn_table": 4})


@pytest.mark.parametrize(
    ("values", "forbidden"),
    [
        ([], False),
        (["noai"], True),
        (["NoImageAI , noindex"], True),
        (["noindex", "noai"], True),
        (["noindex, nofollow"], False),
        (["realcustom: noai"], True),
        (["otherbot: noai"], False),
        (["noai, unavailable_after: 25 Jun 2027 15:00:00 PST"], True),
        (["unavailable_after: 25 Jun 2027 15:00:00 PST"], False),
        (["unavailable_after: 25 Jun 2027 15:00:00 PST, noai"], True),
        (["unavailable_after: Friday, 25-Jun-27 15:00:00 UTC, noai"], True),
        (["max-image-preview:large"], False),
        (["max-image-preview:large, noai"], True),
        (["max-snippet:-1, max-image-preview:large, noai, noimageai"], True),
        (["otherbot: noai, noimageai"], False),
        (["otherbot: max-snippet:-1, noai"], False),
        (["otherbot: noai, realcustom: noai"], True),
        (["otherbot: noai", "noai"], True),
    ],
)
def test_robots_opt_out(values: list[str], forbidden: bool) -> None:
    for user_agent in ("realcustom", "realcustom/1.0 (+https://example.org)"):
        assert opted_out(values, user_agent) is forbidden


def test_a_table_that_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("url,caption\nhttp://127.0.0.1:1/a,a\nhttp://127.0.0.1:1/b,b\n")
    (unit,) = open_corpus(str(table), PreprocessSettings(), Store()).units
    for now in (
        "url,caption\nhttp://127.0.0.1:1/abcdefghijklmnopqrstuvwxyz\n",
        "url,caption\nhttp://127.0.0.1:1/a,b\n",
    ):
        table.write_text(now)
        with pytest.raises(
            ValueError, match=r"list\.csv was changed while it was read \(58 bytes, now \d+\): run again"
        ):
            list(urls.read_urls(unit, IngestSettings(), Store()))

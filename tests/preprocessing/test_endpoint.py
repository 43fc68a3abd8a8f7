"""Captions from an OpenAI-compatible endpoint, a real one on loopback, and every trouble that it can bring."""

from __future__ import annotations

import io
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from realcustom.http_retry import LONGEST_WAIT, retry_after
from realcustom.preprocessing import tables
from realcustom.preprocessing.caption.endpoint import EndpointRefused
from realcustom.preprocessing.catalogue import CAPTION, INGEST
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.settings import CaptionSettings, EndpointSettings, ExecutionSettings, PreprocessSettings
from tests.support.caption_server import KEY, MODEL, CaptionServer, caption_of, captioning
from tests.support.corpora import jpeg, picture, sample, snapshot, tar_bytes
from tests.support.stages import excluded_of

WIDTHS = (40, 41, 42, 43, 44, 45)


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("endpoint")
    for unit, widths in {"a": WIDTHS[:4], "b": WIDTHS[4:]}.items():
        members: dict[str, bytes] = {}
        for width in widths:
            members |= sample(f"{width}", jpeg(picture(width, (width, 40))), "no noun")
        (root / f"{unit}.tar").write_bytes(tar_bytes(members))
    return run_stage(INGEST, str(root), str(root / "out"), PreprocessSettings(), executor=InProcess()).directory


def caption(ingested: str, output: Path, server: CaptionServer | str, **endpoint: Any) -> StageResult:
    url = server if isinstance(server, str) else server.url
    asked = EndpointSettings(url=url, **{"model": MODEL, "timeout": 10.0, "attempts": 4, "backoff": 0.01, **endpoint})
    settings = PreprocessSettings(
        caption=CaptionSettings(endpoint=asked, nouns=("toy",), max_new_tokens=20),
        execution=ExecutionSettings(backoff=0.01),
    )
    return run_stage(CAPTION, ingested, str(output), settings, executor=InProcess())


def captions(result: StageResult) -> dict[int, str]:
    tables = [pq.read_table(path) for path in sorted(Path(result.directory).glob("*.parquet"))]
    return {row["width"]: row["synthetic_caption"] for table in tables for row in table.to_pylist()}


def excluded(result: StageResult) -> dict[str, dict[str, Any]]:
    """The dropped and quarantined rows, by the width of their picture."""
    return {Path(key).stem: row for key, row in excluded_of(result).items()}


def test_captions_and_what_is_asked(ingested: str, tmp_path: Path) -> None:
    with captioning({None: ["slow 0.05"]}) as server:
        result = caption(ingested, tmp_path, server, concurrency=2, seed=7, prompt="What is it?")
        assert server.most == 2
        again = caption(ingested, tmp_path, server, concurrency=5, seed=7, prompt="What is it?")
        assert again.units_run == 0 and len(server.bodies) == len(WIDTHS)
    found = captions(result)
    for row in pq.read_table(Path(ingested) / "a.parquet").to_pylist():
        assert found[row["width"]] == caption_of(Image.open(io.BytesIO(row["image"])))
    body = server.bodies[0]
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0, 7, 20)
    assert body["messages"][0]["content"][1]["text"] == "What is it?"
    field = pq.read_schema(Path(result.directory) / "a.parquet").field("synthetic_caption")
    assert field.metadata[b"model"].decode() == MODEL


def test_large_pictures_are_sent_small_and_what_is_excluded_does_not_depend_on_concurrency(tmp_path: Path) -> None:
    images = [jpeg(picture(0, (300, 40))), b"no picture", jpeg(picture(1, (30, 200))), None, jpeg(picture(2, (20, 20)))]
    names = [str(index) for index in range(5)]
    columns = {"uid": names, "key": names, "alt_text": names, "view_group": names, "image": images}
    columns |= {"width": [1] * 5, "height": [1] * 5, "sha256": [bytes(32)] * 5}
    schema = pa.schema([field.with_nullable(True) for field in tables.INGESTED])
    pq.write_table(pa.table(columns, schema), tmp_path / "t.parquet")
    found = []
    for concurrency in (1, 8):
        with captioning({20: ["refusal"]}) as server:
            result = caption(
                str(tmp_path / "t.parquet"),
                tmp_path / str(concurrency),
                server,
                concurrency=concurrency,
                longest_side=50,
            )
        found.append(snapshot(result.directory))
        assert set(server.tries) == {50, 7, 20}  # widths
    assert found[0] == found[1]
    assert list(excluded(result)) == ["1", "3", "4"]


def test_the_place_is_no_part_of_the_fingerprint_and_the_words_are(ingested: str, tmp_path: Path) -> None:
    with captioning() as first, captioning() as second:
        one = caption(ingested, tmp_path / "one", first)
        two = caption(ingested, tmp_path / "two", second, concurrency=1, timeout=9.0)
        other = caption(ingested, tmp_path / "two", second, prompt="Else?")
        seeded = caption(ingested, tmp_path / "two", second, seed=1)
    assert snapshot(one.directory) == snapshot(two.directory)
    assert len({Path(result.directory).name for result in (one, two, other, seeded)}) == 3
    assert first.url not in Path(one.directory, "stage.json").read_text()


def test_what_passes_is_tried_again(ingested: str, tmp_path: Path) -> None:
    troubles: dict[int | None, list[str]] = {
        40: ["status 503", "status 500", "status 529"],
        41: ["reset"],
        42: ["malformed", "other"],
        43: ["slow 1.5"],
        44: ["wait 1"],
    }
    with captioning(troubles) as server:
        result = caption(ingested, tmp_path / "out", server, timeout=0.5)
    with captioning() as sound:
        undisturbed = caption(ingested, tmp_path / "sound", sound)
    assert snapshot(result.directory) == snapshot(undisturbed.directory)
    assert server.tries == {40: 4, 41: 2, 42: 3, 43: 2, 44: 2, 45: 1}
    first, second = server.times[44]
    assert second - first >= 1.0  # Retry-After, and not the backoff of 0.01 s


def test_answers_are_data(ingested: str, tmp_path: Path) -> None:
    troubles: dict[int | None, list[str]] = {
        40: ["say  \n "],
        41: ["refusal"],
        42: ["filter"],
        43: ["say I'm sorry, but I can't describe this toy."],
        44: ["malformed"] * 4,
        45: ["status 400"],
    }
    with captioning(troubles) as server:
        result = caption(ingested, tmp_path, server)
    assert result.report["dropped"] == {"empty_caption": 1, "refused_caption": 3}
    assert result.report["quarantined"] == {"unreadable_answer": 1, "endpoint_rejected": 1}
    assert result.report["in"] == len(WIDTHS) and result.report["kept"] == 0
    left = excluded(result)
    assert "not this one" in left["41"]["message"] and "HTTP 400" in left["45"]["message"]


def test_a_short_apology_and_a_cut_caption_are_left_out_and_half_a_surrogate_is_replaced(
    ingested: str, tmp_path: Path
) -> None:
    troubles: dict[int | None, list[str]] = {
        40: ["say Sorry, but I can't help with that."],
        41: ["cut a toy on a"],
        42: ["say a toy \ud83d"],
        43: ["say a sorry toy"],
    }
    with captioning(troubles) as server:
        result = caption(ingested, tmp_path, server)
    assert result.report["dropped"] == {"cut_caption": 1, "refused_caption": 1}
    assert "caption.max_new_tokens=20: 'a toy on a'" in excluded(result)["41"]["message"]
    assert {captions(result)[width] for width in (42, 43)} == {"a toy ?", "a sorry toy"}


@pytest.mark.parametrize("trouble", ["status 500", "reset", "slow 3"])
def test_a_picture_that_an_endpoint_always_fails_at_is_excluded(ingested: str, tmp_path: Path, trouble: str) -> None:
    troubles: dict[int | None, list[str]] = {41: [trouble] * 99}
    with captioning(troubles) as server:
        result = caption(ingested, tmp_path, server, attempts=2, timeout=2.0)
    assert result.report["quarantined"] == {"endpoint_failed": 1} and result.report["kept"] == len(WIDTHS) - 1
    assert "tried 2 times" in excluded(result)["41"]["message"]
    assert server.tries[41] == 2 and server.tries[64] == 1  # a plain picture tells that the endpoint is well


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("status 503", "HTTP 503, tried 4 times"),
        ("status 429", "HTTP 429, tried 4 times"),
        ("reset", "no answer .*, tried 4 times"),
        ("slow 0.6", r"no answer \(TimeoutError\), tried 4 times"),
        ("status 501", "HTTP 501, tried 4 times"),
        ("status 404", "has no model"),
        ("status 301", "HTTP 301"),
    ],
)
def test_what_lasts_stops_the_job_in_words(ingested: str, tmp_path: Path, trouble: str, message: str) -> None:
    timeout = 0.2 if trouble.startswith("slow") else 20.0  # on a busy machine any answer may take more than .2 s
    with captioning({None: [trouble] * 99}) as server, pytest.raises(EndpointRefused, match=message) as error:
        caption(ingested, tmp_path, server, timeout=timeout)
    assert "caption.endpoint" in str(error.value)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_wrong_key_and_an_unknown_model_are_said_before_anything_is_written(
    ingested: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    monkeypatch.delenv("CAPTION_API_KEY", raising=False)
    with captioning(key=KEY) as server:
        with pytest.raises(EndpointRefused, match="HTTP 401; the key is read from CAPTION_API_KEY: it is not set"):
            caption(ingested, output, server)
        monkeypatch.setenv("CAPTION_API_KEY", "sk-wrong")
        with pytest.raises(EndpointRefused, match="the key in it is refused") as error:
            caption(ingested, output, server)
        assert "sk-wrong" not in str(error.value)
        monkeypatch.setenv("CAPTION_API_KEY", KEY)
        with pytest.raises(EndpointRefused, match=f"no model .*'gone': it has {MODEL}"):
            caption(ingested, output, server, model="gone")
        assert not output.exists()
        assert caption(ingested, output, server).report["kept"] == len(WIDTHS)
    with pytest.raises(EndpointRefused, match=r"no answer \(ConnectError\), tried 4 times. Is the server up"):
        caption(ingested, tmp_path / "closed", server.url)  # it has gone
    assert not (tmp_path / "closed").exists()


def test_the_key_is_in_no_file_even_if_the_server_repeats_it(
    ingested: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_KEY", KEY)
    with captioning({41: ["status 422"]}, key=KEY) as server:
        result = caption(ingested, tmp_path, server, key_variable="OTHER_KEY")
    assert "[key]" in excluded(result)["41"]["message"]
    assert not any(KEY.encode() in data for data in snapshot(result.directory).values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "http://h/v1"}, r"caption\.endpoint\.url needs caption\.endpoint\.model"),
        ({"url": "h:8000/v1", "model": "m"}, "must be as http://host:8000/v1"),
        ({"url": "http://me:secret@h/v1", "model": "m"}, "environment variable CAPTION_API_KEY"),
        ({"url": "http://h/v1?key=secret", "model": "m"}, "environment variable CAPTION_API_KEY"),
        ({"prompt": " "}, "prompt is empty"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"attempts": 0}, "attempts must be at least 1"),
        ({"timeout": 0.0}, "timeout must be above 0"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        EndpointSettings(**settings)
    assert "secret" not in str(error.value)


def test_one_captioner_at_a_time() -> None:
    with pytest.raises(ValueError, match=r"caption\.model=null"):
        CaptionSettings(model="blip", endpoint=EndpointSettings(url="http://h/v1", model="m"))


def test_retry_after() -> None:
    assert [retry_after(value) for value in (None, "3", " 0 ", "999", "soon")] == [0, 3, 0, LONGEST_WAIT, 0]
    assert [retry_after(value) for value in ("\xb2", "Mon, 05 Jan 2026 10:00:00 +99999999999999999999")] == [0, 0]
    assert 20 < retry_after(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert retry_after(formatdate(0, usegmt=True)) == 0

"""`realcustom quickstart` end to end with the models that ship, on few pictures and steps; and its page's parts."""

from __future__ import annotations

import io
import itertools
import json
import re
import shlex
import signal
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from realcustom.checkpoint import adapter_sha256
from realcustom.errors import UsageError
from realcustom.evaluation.statistics import Interval
from realcustom.pipeline.chart import loss_svg, measured_svg
from realcustom.pipeline.cli.main import run
from realcustom.pipeline.quickstart.truth import read_table, read_truth
from realcustom.sprites import ZOO

SHORT = (
    *("train.steps=4", "train.batch_size=8", "train.warmup=0", "train.val_every=2", "train.checkpoint_every=1"),
    *("train.sample_records=1", "train.sample_steps=2", "train.validation_records=8"),
    *("evaluate.images=4", "evaluate.num_inference_steps=3", "serve.threads=1"),
)
SETTINGS = {"text_to_image", "subject_without_mask", "subject_with_mask", "wrong_reference_with_mask", "oracle"}


@pytest.fixture(scope="module", autouse=True)
def few_drawings() -> Iterator[None]:
    """The diffusion model is measured on as many images as show that it is measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("realcustom.pipeline.quickstart.run.DRAWINGS", 4)
        yield


@pytest.fixture(scope="module")
def output(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    before = signal.getsignal(signal.SIGINT)
    assert run(_command(folder)) == 0
    assert signal.getsignal(signal.SIGINT) is before  # Ray Train leaves its own, which asks a controller that has ended
    return folder


def _command(folder: Path) -> list[str]:
    return ["quickstart", "--output", str(folder), "--pictures", "72", *(p for s in SHORT for p in ("--set", s))]


def test_the_report_accounts_for_every_row(output: Path) -> None:
    report = json.loads((output / "report.json").read_text())
    assert list(report["stages"]) == ["ingest", "score", "select", "caption", "subjects", "encode"]
    for name, stage in report["stages"].items():
        assert stage["in"] == stage["kept"] + sum(stage["dropped"].values()) + sum(stage["quarantined"].values()), name
    # each corrupted row is under its reason: two of each kind, one torn shard
    assert report["stages"]["ingest"]["quarantined"] == {"torn_tar": 1, "truncated_image": 2}
    select = report["stages"]["select"]["dropped"]
    assert select["exact_duplicate"] == 2 and select["near_duplicate"] >= 2 and select["too_small"] == 2
    assert report["stages"]["encode"]["rows_out"] > 40


def test_the_report_measures_models_training_and_the_method(output: Path) -> None:
    report = json.loads((output / "report.json").read_text())
    models = report["models"]
    assert {"detection_recall", "detection_precision", "mask_iou", "caption_accuracy"} <= set(models)
    assert models["detection_recall"] > 0.5 and models["mask_iou"] > 0.6  # the floors
    training = report["training"]
    assert training["loss_before"] > 0 and training["loss_after"] > 0
    assert training["adapter_sha256"] == adapter_sha256(output / "training" / "adapter.safetensors")
    assert training["adapter_sha256"] != adapter_sha256(ZOO / "adapter.safetensors")
    rows = {row["setting"]: row for row in report["table"]}
    assert set(rows) == SETTINGS
    assert all(row["images"] == 4 and len(row["similarity_ci"]) == 2 for row in rows.values())
    assert rows["oracle"]["similarity"] == max(row["similarity"] for row in rows.values())
    assert set(report["wrong_reference"]) == {"difference", "ci"}
    assert {"corpus", "training", "request", "table", "learned", "films", "total"} <= set(report["seconds"])
    assert report["reused"] == []


def test_training_begins_with_random_weights_and_what_it_saved_on_the_way_is_measured(output: Path) -> None:
    report = json.loads((output / "report.json").read_text())
    assert report["training"]["initial_adapter"] is None
    assert [one["steps"] for one in report["training"]["learned"]] == [1, 2]  # a quarter and a half of the four
    measured = [*report["training"]["learned"], report["shipped"]]
    assert all(row["setting"] == "subject_with_mask" and row["images"] == 4 for row in measured)
    # eight thousand steps against four
    assert report["shipped"]["similarity"] > report["training"]["learned"][-1]["similarity"]


def test_the_page_shows_it_and_needs_nothing_beside_it(output: Path) -> None:
    html = (output / "index.html").read_text()
    tags: list[tuple[str, dict[str, str | None]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, dict(attrs)))

    Reader().feed(html)
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) > 40
    assert all((image["src"] or "").startswith("data:image/") and image["alt"] for image in images)
    assert not [
        attributes for tag, attributes in tags if tag in ("link", "iframe") or ("src" in attributes and tag != "img")
    ]
    links = [attributes["href"] or "" for tag, attributes in tags if tag == "a"]
    assert len(links) == 7 and all(
        (output / link).is_file() for link in links
    )  # pages of the training and of the stages
    report = json.loads((output / "report.json").read_text())
    assert report["training"]["adapter_sha256"][:16] in html and "began as random weights" in html
    assert "Taken over from an earlier run" not in html
    lead = html[: html.index("Watch it draw")]
    assert not re.search(r"\bRay\b|diffusers|torch", re.sub(r"<style>.*?</style>", "", lead, flags=re.DOTALL))


def test_what_to_try_next_runs_as_it_is_printed(output: Path) -> None:
    """The first command of a fresh shell draws the world's subject with the new adapter, large enough to be looked at."""
    html = unescape((output / "index.html").read_text())
    commands = [re.sub("<.*?>", "", command) for command in re.findall("<pre>(.*?)</pre>", html)]
    assert [shlex.split(command)[1] for command in commands] == ["generate", "generate", "serve", "quickstart"]
    program, *arguments = shlex.split(commands[0])
    assert Path(program).is_file() and str(output / "training" / "adapter.safetensors") in arguments
    arguments[arguments.index("--output") + 1] = str(output / "mine")
    assert run(arguments) == 0
    drawn = [Image.open(io.BytesIO(path.read_bytes())) for path in sorted((output / "mine").glob("image-*.png"))]
    assert [image.size for image in drawn] == [(256, 256)] * 4


def test_a_second_run_does_nothing_twice(output: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")}
    adapter = (output / "training" / "adapter.safetensors").stat().st_mtime_ns
    first = json.loads((output / "report.json").read_text())
    assert run(_command(output)) == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")} == before
    assert (output / "training" / "adapter.safetensors").stat().st_mtime_ns == adapter
    second = json.loads((output / "report.json").read_text())
    assert second["reused"] == ["corpus", *first["stages"], "training"]
    assert (
        "Taken over from an earlier run in the same folder, and not done again: corpus, ingest"
        in (output / "index.html").read_text()
    )
    for part in ("stages", "models", "training", "table", "wrong_reference"):
        assert second[part] == first[part], part


def test_an_adapter_to_start_from_that_is_not_there_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["quickstart", "--output", str(tmp_path / "out"), "--initial-adapter", "nowhere.safetensors"]
    assert run(arguments) == 2
    assert "--initial-adapter: no adapter checkpoint at nowhere" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_charts_mark_every_measure() -> None:
    svg = loss_svg([(step, 1 / step) for step in range(1, 20)], [(0, 1.0), (10, 0.5), (19, 0.2)])
    assert svg.count("<circle") == 3 and svg.count("<polyline") == 2 and ">19</text>" in svg
    measures = [(step, Interval(mean=step / 400, low=0.1, high=0.6)) for step in (50, 100, 200)]
    svg = measured_svg("similarity", measures, [("text alone", 0.28), ("oracle", 1.0)])
    assert svg.count("<circle") == svg.count('class="interval"') == 3 and svg.count('class="level"') == 2
    assert "text alone 0.28" in svg and ">0.50<" in svg
    assert re.findall(r">(\d+)</text>", loss_svg([(0, 1.0), (1, 0.5)], [])) == ["1", "0"]


def test_no_text_of_a_chart_lies_on_another() -> None:
    """Also where all values are one, many, or at the bottom."""
    for high, low in ((1.0, 1.0), (0.97, 0.95), (0.02, 0.01)):
        measures = [(step, Interval(mean=high, low=low, high=high)) for step in range(5, 201, 5)]
        levels = [("text_to_image", low), ("oracle", 0.95), ("released", 1.0), ("wrong reference", 1.0)]
        svg = measured_svg("background", measures, levels)
        values = [(float(x), float(y)) for x, y in re.findall(r'class="value" x="([\d.]+)" y="([\d.]+)"', svg)]
        assert 5 < len(values) < 20 and all(b - a > 30 for (a, _), (b, _) in itertools.pairwise(values[:-1]))
        labels = re.findall(r'class="label" x="([\d.]+)" y="([\d.]+)" text-anchor="\w+">(.*?)</text>', svg)
        assert "released, wrong reference 1.00" in svg and len({text for *_, text in labels}) == len(labels) > 1
        near = [(float(x), float(y)) for x, y, _ in labels]
        for number, (x, y) in enumerate(near):
            rows = [other for place, other in [*near[:number], *values] if (place > 259) == (x > 259)]
            assert all(abs(y - other) >= 14 for other in rows), svg


def test_a_damaged_table_of_an_earlier_run_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "truth.parquet").write_bytes(b"PAR1 and no more")
    for read in (read_table, read_truth):
        with pytest.raises(UsageError, match=r"truth\.parquet is not a readable Parquet file"):
            read(str(tmp_path))

"""`realcustom evaluate` end to end with tiny models: images, tables, page, resumption, gates, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from PIL import Image

from realcustom import leases, storage
from realcustom.errors import UsageError
from realcustom.evaluation.given import stem_of
from realcustom.evaluation.suites import read_own
from realcustom.evaluation.tables import read_parquet
from realcustom.leases import only_writer
from realcustom.pipeline.cli.main import run
from realcustom.pipeline.evaluate import drawing
from realcustom.pipeline.evaluate import run as evaluation_run
from realcustom.sprites import zoo_path
from realcustom.store import Store
from tests.support.loopback import free_port
from tests.support.suites import DrawnSuite, write_suite
from tests.support.tiny import TinyModels

DREAMBENCH = Path(__file__).parents[3] / "shared" / "data" / "dreambench"
TABLES = ("table.md", "table.csv", "table.tex", "results.parquet", "index.html", "settings.yaml")
CLIP, DINO = str(zoo_path("clip")), str(zoo_path("image_encoder"))
METRICS = ("--metric", f"clip_t@{CLIP}", "--metric", f"dino_i@{DINO}", "--metric", f"diversity@{DINO}")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> DrawnSuite:
    """Two subjects, by words that the tiny models know."""
    suite = write_suite(tmp_path_factory.mktemp("suite"), subjects=2)
    names = sorted(suite.scenes)
    (suite.folder / "subjects.csv").write_text(f"subject,class\n{names[0]},dog\n{names[1]},cat\n")
    suite.prompts.write_text("a {} on grass\na {} in snow\n")
    return suite


@pytest.fixture(scope="module")
def arguments(drawn: DrawnSuite, tiny_models: TinyModels) -> list[str]:
    """Of the command, but for output and metrics."""
    return [
        *("evaluate", "--suite", "own", "--subjects", str(drawn.folder), "--prompts", str(drawn.prompts)),
        *(
            "--adapter",
            f"a={tiny_models.adapter}",
            "--base",
            tiny_models.base,
            "--image-encoder",
            tiny_models.image_encoder,
        ),
        *("--set", "evaluate.images_per_prompt=2", "--set", "evaluate.resamples=200", "--set", "evaluate.batch_size=4"),
    ]


@pytest.fixture(scope="module")
def finished(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluated") / "output"
    assert run([*arguments, *METRICS, "--output", str(output)]) == 0
    return output


def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy", copy_function=shutil.copy2)
    return tmp_path / "copy"


def hashes(output: Path) -> dict[str, str]:
    return {name: hashlib.sha256((output / name).read_bytes()).hexdigest() for name in TABLES}


def written(output: Path, pattern: str) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in output.rglob(pattern) if path.is_file()}


def test_the_table(finished: Path) -> None:
    table = (finished / "table.md").read_text()
    assert "| row | clip_t@clip | dino_i@image_encoder | diversity@image_encoder |" in table
    assert "| text_to_image |" in table and "| a |" in table and "| oracle | – |" in table
    assert "* `clip_t@clip`: cosine of image and prompt as sampled, not scaled; clip@sha256-" in table
    assert "; pictures: shortest side 32, bicubic, centre 32 x 32\n" in table
    values = read_parquet((finished / "results.parquet").read_bytes())
    assert len(values) == 2 * 8 * 3 + 6  # two rows of 8 images and 3 metrics; the oracle's 6 real pictures and one
    settings = yaml.safe_load((finished / "settings.yaml").read_text())
    assert settings["suite"]["counts"] == "own: 2 subjects x 2 prompts x 2 images = 8"
    assert len(settings["adapters"]["a"]["sha256"]) == 64
    speed = json.loads((finished / "speed.json").read_text())
    assert speed["a"]["unet_rows_per_image"] == 9 and speed["a"]["images"] == 8
    assert (finished / "table.tex").read_text().startswith("\\begin{tabular}{lrrr}")


def test_a_second_evaluation_into_one_output_is_told_who_writes_it(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    with only_writer(str(output / "leases"), str(output), Store()):
        assert run([*arguments, *METRICS, "--output", str(output)]) == 2
    assert f"(process {os.getpid()})" in (said := capsys.readouterr().err) and "is being written by" in said
    assert not output.exists()


def test_an_evaluation_whose_lease_another_took_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was halted for longer than its lease lasts, and another program has begun to write the output."""
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.0)
    monkeypatch.setattr(evaluation_run, "check_places", lambda request: None)

    def halted(*arguments: object) -> None:
        storage.write_bytes(f"{tmp_path}/leases/claims/{leases.WRITER}", b"another")
        for _ in range(100):
            time.sleep(0.1)

    monkeypatch.setattr(evaluation_run, "_evaluate", halted)
    request = Namespace(output=str(tmp_path))
    with pytest.raises(UsageError, match="another program has taken it: wait for that, then run again"):
        evaluation_run.evaluate(cast(Any, request), cast(Any, None))


def test_the_page_stands_alone(finished: Path) -> None:
    page = (finished / "index.html").read_text()
    assert "http://" not in page and "https://" not in page  # no server, no CDN
    data = json.loads(page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0])
    assert data["methods"] == ["text_to_image", "a", "oracle"]
    for case in data["cases"]:
        for method, (source, _, film) in case["images"].items():
            assert (finished / source).exists()
            assert film is None if method != "a" else (finished / film).exists()
        assert data["references"][case["subject"]].startswith("data:image/jpeg;base64,")


def test_a_training_run_is_a_row_for_each_adapter_that_it_saved(
    finished: Path, arguments: list[str], tiny_models: TinyModels, tmp_path: Path
) -> None:
    trained, output = tmp_path / "trained", copied(finished, tmp_path)
    for step in (2, 10):
        (trained / "adapters").mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_models.adapter, trained / "adapters" / f"step-{step:08d}.safetensors")
    (trained / "samples").mkdir()
    Image.new("RGB", (8, 8)).save(trained / "samples" / "step-00000010.png")
    (trained / "settings.yaml").write_text("train: {steps: 10}\n")
    rows = [
        {"step": 0, "val_loss": 0.3},
        {"step": 2, "loss": 0.4},
        {"step": 10, "loss": 0.3},
        {"step": 10, "val_loss": 0.2},
    ]
    (trained / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [f"trained={trained}" if text.startswith("a=") else text for text in arguments]
    assert run([*command, *METRICS, "--output", str(output)]) == 0
    table, page = (output / "table.md").read_text(), (output / "index.html").read_text()
    assert "| trained@2 |" in table and "| trained@10 |" in table
    assert page.count("<svg") == 4  # three metrics and the loss
    assert 'src="../trained/samples/step-00000010.png"' in page


def test_twice_the_same_command_is_the_same_table_and_no_work(
    finished: Path, arguments: list[str], tmp_path: Path
) -> None:
    output = copied(finished, tmp_path)
    before = hashes(output), written(output / "images", "*"), written(output / "vectors", "*")
    assert run([*arguments, *METRICS, "--output", str(output)]) == 0
    assert (hashes(output), written(output / "images", "*"), written(output / "vectors", "*")) == before


def test_the_same_table_elsewhere(finished: Path, arguments: list[str], tmp_path: Path) -> None:
    assert run([*arguments, *METRICS, "--output", str(tmp_path / "again")]) == 0
    for name in ("table.md", "table.csv", "table.tex", "results.parquet", "settings.yaml"):
        assert (tmp_path / "again" / name).read_bytes() == (finished / name).read_bytes(), name


def test_another_metric_draws_nothing(finished: Path, arguments: list[str], tmp_path: Path) -> None:
    output = copied(finished, tmp_path)
    before = written(output / "images", "*"), written(output / "vectors", "*")
    more = ["--metric", f"copying@{DINO}", "--metric", f"leak@{DINO}", "--row", "subject_with_mask"]
    assert run([*arguments, *METRICS, *more, "--output", str(output)]) == 0
    assert written(output / "images", "*") == before[0]
    assert before[1].items() < written(output / "vectors", "*").items()
    assert "copying@image_encoder" in (output / "table.md").read_text()


@pytest.mark.slow
def test_workers_on_ray_draw_the_same_table(
    ray_cluster: str,
    finished: Path,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(drawing, "SAY_SECONDS", 0.02)
    output = tmp_path / "shared"
    assert run([*arguments, *METRICS, "--workers", "3", "--output", str(output)]) == 0
    for name in ("table.csv", "results.parquet"):
        assert (output / name).read_bytes() == (finished / name).read_bytes(), name
    lines = [line.partition(" pipeline: ")[2] for line in capsys.readouterr().err.splitlines()]
    said = [line for line in lines if line.startswith(("waiting for", "no new image"))]
    assert said[0] == "waiting for 3 workers with a CPU each" and said[-1] == "no new image for 0 s"
    assert said == sorted(said, reverse=True), "the workers are waited for until the first image"


def test_somebody_elses_pictures(
    finished: Path, drawn: DrawnSuite, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = read_own(str(drawn.folder), str(drawn.prompts), Store(), images_per_prompt=2, seed=0)
    for case in suite.cases:
        path = tmp_path / "scale=3" / "theirs" / f"{stem_of(case)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(case.references[0].given.uri) as image:
            image.save(path)
    output = copied(finished, tmp_path)
    command = [*arguments, *METRICS, "--images", str(tmp_path / "scale=3" / "theirs"), "--output", str(output)]
    assert run(command) == 0
    table = (output / "table.md").read_text()
    assert "theirs copies: its dino_i@image_encoder is above that of the real pictures" in table
    assert "theirs draws nearly one image for all seeds" in table and "| theirs − a | clip_t@clip |" in table
    path.unlink()
    capsys.readouterr()
    assert run(command) == 2
    assert "1 of 8 pictures are missing, the first is" in capsys.readouterr().err


def test_a_comparison_and_gates(
    finished: Path, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = copied(finished, tmp_path)
    assert run(["evaluate", "compare", str(output), str(finished)]) == 0
    out = capsys.readouterr().out
    assert "clip_t@clip: a - a = +0.0000 [+0.0000, +0.0000], p 1.0000 (Holm), 8 pairs, 0 images to see 0.01" in out
    assert run(["evaluate", "compare", f"{output}#a", f"{finished}#text_to_image"]) == 0
    again = [*arguments, *METRICS, "--output", str(output)]
    assert run([*again, "--fail-below", "clip_t@clip=-1", "--not-worse-than", str(finished)]) == 0
    capsys.readouterr()
    assert run([*again, "--fail-below", "clip_t@clip=2"]) == 4
    assert "failed: a: clip_t@clip is" in capsys.readouterr().err


def test_a_function_of_ones_own(
    finished: Path,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = copied(finished, tmp_path)
    (tmp_path / "my_metrics.py").write_text(
        'def red(images, cases):\n    "Mean of red."\n'
        "    return [image.resize((1, 1)).getpixel((0, 0))[0] / 255 for image in images]\n"
        "def broken(images, cases):\n    return [float('nan')] * len(images)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run([*arguments, "--metric", "my_metrics:red", "--output", str(output)]) == 0
    assert "* `my_metrics:red`: Mean of red.;" in (output / "table.md").read_text()
    capsys.readouterr()
    for metric, said in (
        ("my_metrics:broken", "the metric my_metrics:broken is nan for"),
        ("no_such_package:score", "no_such_package is not installed: pip install it"),
        ("my_metrics:blue", "has no function blue"),
    ):
        assert run([*arguments, "--metric", metric, "--output", str(output)]) == 2
        err = capsys.readouterr().err.splitlines()
        assert err[-1].startswith("error: ") and said in err[-1]


def test_a_judge_that_is_down_leaves_its_values_missing(finished: Path, arguments: list[str], tmp_path: Path) -> None:
    output = copied(finished, tmp_path)
    seeing = [f"evaluate.seeing.url=http://127.0.0.1:{free_port()}/v1", "evaluate.seeing.model=x"]
    quick = ["evaluate.seeing.attempts=1", "evaluate.seeing.concurrency=1"]
    sets = [part for setting in seeing + quick for part in ("--set", setting)]
    metric = ["--metric", "prompt_following@seeing", "--metric", f"clip_t@{CLIP}"]
    assert run([*arguments, *metric, *sets, "--output", str(output)]) == 0
    table = (output / "table.md").read_text()
    assert "| a | – (8 missing) |" in table and "prompt_following@seeing: values are missing, http://127.0.0.1" in table


def test_masks_for_an_adapter_that_is_shown_cut_outs(tmp_path: Path) -> None:
    """The suite has none: the detector and the segmenter of the recipe find them."""
    suite = write_suite(tmp_path / "suite", subjects=2, masks=False)
    given = ["--subjects", str(suite.folder), "--prompts", str(suite.prompts), "--limit", "2", "--steps", "2"]
    cut_out = ["--adapter", str(zoo_path("adapter_crop.safetensors")), "--metric", f"dino_i_segmented@{DINO}"]
    output = tmp_path / "output"
    assert run(["evaluate", "--suite", "own", *given, *cut_out, "--output", str(output)]) == 0
    assert len(list((output / "masks").glob("*.png"))) >= 2
    assert "| adapter_crop |" in (output / "table.md").read_text()


def mistakes(folder: Path, drawn: DrawnSuite, models: TinyModels) -> dict[str, tuple[list[str], str]]:
    (folder / "bad.txt").write_text("a {} on grass\na dog in snow\n")
    (folder / "occupied").mkdir()
    (folder / "occupied" / "thesis.txt").write_text("ten years of work")
    (folder / "one").mkdir()
    shutil.copytree(drawn.folder / sorted(drawn.scenes)[0], folder / "one" / "dog")
    shutil.copytree(drawn.folder, folder / "broken")
    (folder / "broken" / sorted(drawn.scenes)[0] / "01.png").write_bytes(b"GIF89a, nearly")
    shutil.copytree(drawn.folder, folder / "masks")
    Image.new("L", (5, 5)).save(folder / "masks" / sorted(drawn.scenes)[0] / "00.mask.png")
    adapter = ["--adapter", f"a={models.adapter}", "--base", models.base, "--image-encoder", models.image_encoder]
    own = ["--suite", "own", "--subjects", str(drawn.folder), "--prompts", str(drawn.prompts)]
    usual = [*own, *adapter, *METRICS]
    return {
        "suite": (["--suite", "dreambanch", *adapter], "there is no 'dreambanch'; there are dreambench, own"),
        "no subjects": (["--suite", "own", *adapter], "--suite own needs --subjects"),
        "no prompts": (["--suite", "own", "--subjects", str(drawn.folder), *adapter, *METRICS], "needs --prompts"),
        "placeholder": ([*usual, "--prompts", str(folder / "bad.txt")], "bad.txt, line 2: 'a dog in snow' has no {}"),
        "missing subject": (["--suite", "dreambench", "--subjects", str(folder), *adapter, *METRICS], "is missing"),
        "one subject": ([*usual, "--subjects", str(folder / "one")], "has 1 subject(s)"),
        "picture": ([*usual, "--subjects", str(folder / "broken")], "01.png does not decode as a picture"),
        "mask": ([*usual, "--subjects", str(folder / "masks")], "00.mask.png is 5 x 5, its picture 32 x 32"),
        "limit": ([*usual, "--limit", "1"], "--limit 1 leaves 1 of the 2 subjects without an image"),
        "other base": (
            [*usual, "--adapter", f"b={zoo_path('adapter.safetensors')}"],
            "was trained for the base pipeline@sha256-",
        ),
        "two of a name": ([*usual, "--adapter", f"a={models.adapter}"], "two adapters are called 'a'"),
        "no adapter": ([*own, "--base", models.base, *METRICS], "--adapter: none given"),
        "nowhere": ([*usual, "--adapter", "b=/nowhere.safetensors"], "--adapter: no adapter checkpoint at"),
        "other files": ([*usual, "--output", str(folder / "occupied")], "holds other files (thesis.txt ...)"),
        "metric": ([*usual, "--metric", "fid@b32"], "--metric: there is no 'fid@b32'"),
        "row": ([*usual, "--row", "orakle"], "--row: there is no 'orakle'; there are text_to_image"),
        "floor": ([*usual, "--fail-below", "clip_t"], "--fail-below wants METRIC=VALUE, got 'clip_t'"),
        "gate": ([*usual, "--not-worse-than", str(folder)], "is no output of realcustom evaluate"),
        "endpoint": ([*usual, "--metric", "omnicontext@seeing"], "set evaluate.seeing.url and .model"),
        "both": ([*usual, "--local", "--workers", "2"], "give one of them"),
    }


def test_mistakes_are_one_line_and_leave_nothing(
    drawn: DrawnSuite, tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, (given, said) in mistakes(tmp_path, drawn, tiny_models).items():
        output = tmp_path / "new"
        before = sorted(tmp_path.rglob("*"))
        place = [] if "--output" in given else ["--output", str(output)]
        assert run(["evaluate", *given, *place]) == 2, name
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and said in lines[0] and out == "", f"{name}: {err}"
        assert sorted(tmp_path.rglob("*")) == before, name


def test_an_output_of_another_run(finished: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    given = list(arguments)
    given[given.index("own")] = "dreambench"
    assert run([*given, *METRICS, "--output", str(finished)]) == 2
    assert "holds another run, of the suite own, not dreambench; name a new folder" in capsys.readouterr().err


def test_the_help_of_both_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--suite" in out and "--fail-below" in out and "realcustom evaluate --suite drawn" in out
    assert run(["evaluate", "compare", "--help"]) == 0
    assert "Paired differences of two evaluations" in " ".join(capsys.readouterr().out.split())


@pytest.mark.skipif(not DREAMBENCH.is_dir(), reason="the photographs of shared/data are not here")
def test_the_photographs_of_dreambench(
    tiny_models: TinyModels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [
        "--base",
        tiny_models.base,
        "--image-encoder",
        tiny_models.image_encoder,
        "--adapter",
        tiny_models.adapter,
    ]
    suite = ["evaluate", "--suite", "dreambench", "--subjects", str(DREAMBENCH), "--limit", "20", "--steps", "2"]
    assert run([*suite, *models, *METRICS, "--output", str(tmp_path / "output")]) == 0
    err = capsys.readouterr().err
    assert "dreambench: 20 of 30 subjects (6 live, 14 objects) with 105 pictures x 25 prompts x 4 images = 2000" in err
    values = read_parquet((tmp_path / "output" / "results.parquet").read_bytes())
    assert {one.subject for one in values if one.method == "adapter"} == {path.name for path in DREAMBENCH.glob("*/")}


@pytest.mark.slow
def test_an_object_store_holds_the_same(finished: Path, arguments: list[str], bucket: str) -> None:
    output = f"{bucket}/evaluation"
    for _ in range(2):
        assert run([*arguments, *METRICS, "--output", output]) == 0
    store = Store()
    for name in ("table.csv", "results.parquet", "table.md"):
        assert store.read(f"{output}/{name}") == (finished / name).read_bytes(), name
    page = store.read(f"{output}/index.html").decode()
    assert '"images/' in page and "s3://" not in page.partition('id="data">')[2].partition("</script>")[0]

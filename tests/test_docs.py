"""Every command of the README and of docs/ does what it says: it is read from the page and run. References are current."""

from __future__ import annotations

import base64
import glob
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from docs import settings_reference
from realcustom.checkpoint import read_header
from realcustom.identity import model_identity
from realcustom.pipeline.cli.main import run
from realcustom.preprocessing.errors import DataFault
from realcustom.record import check_schema
from realcustom.sprites.corpus import CorpusSettings, write_corpus
from tests.support.picture_server import served
from tests.support.tiny import TinyModels

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("realcustom", "preprocessing", "training", "inference", "evaluation", "pipeline", "sprites")
OWN_PHOTOS = ROOT / "docs" / "own-photos.md"
CLUSTER = ROOT / "docs" / "cluster.md"  # tests/pipeline/test_local_cluster.py
RUNBOOK = ROOT / "docs" / "runbook.md"
APART = (README, OWN_PHOTOS, CLUSTER, RUNBOOK)  # pages whose commands have tests of their own
MODULE = "python -m realcustom."
# What makes training short; a command stays the page's own otherwise. Two workers: tests/pipeline/test_quickstart.py.
SHORT = (
    *("train.steps=2", "train.batch_size=4", "train.warmup=0", "train.sample_records=1", "train.sample_steps=2"),
    "train.num_workers=1",
)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(page: Path) -> list[str]:
    """The lines of a page's bash blocks that begin with `realcustom`, or run a module of ours, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.partition(" # ")[0].strip() for line in lines if line.startswith(("realcustom ", MODULE))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that looks like the repository to a command, with the corpus of a quickstart and a table of URLs."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("sprites", "tests"):
        (folder / name).symlink_to(ROOT / name)
    write_corpus(folder / "outputs" / "quickstart" / "corpus", CorpusSettings(pictures=48, per_shard=24))
    with served() as server:  # in the place of the page's own, whose port may be taken
        (folder / "outputs" / "urls.csv").write_text(f"url,caption\n{server.url}/picture/1,a yellow duck\n")
        yield folder


def arguments_of(command: str) -> tuple[list[str], str | None]:
    """The arguments of a command, as a shell expands them, and the file that its output goes to."""
    command, _, target = command.partition(">")
    filled = []
    for word in shlex.split(command)[1:]:
        found = sorted(glob.glob(word)) if "*" in word else [word]
        assert len(found) == 1, f"{word} is {found}"
        filled += found
    if filled[0] == "train" and "--print-config" not in filled:
        filled += [part for setting in SHORT for part in ("--set", setting)]
    if filled[:2] == ["inspect", "zoo"]:
        filled += ["--images", "4"]  # in the place of the page's number
    return filled, target.strip() or None


def test_there_are_commands_to_run() -> None:
    assert len(commands(README)) >= 10
    pages = {name_of(page) for page in PAGES if commands(page)}
    assert pages >= {"README.md", "docs/configuration.md", "docs/preprocessing/tutorial.md"}


def test_the_methods_equations_stand_beside_the_code_that_is_there() -> None:
    page = (ROOT / "docs" / "method.md").read_text()
    excerpts = re.findall(r"```python\n# ((?:realcustom|training)/\w+\.py)\n(.*?)```", page, re.DOTALL)
    assert len(excerpts) >= 20
    for name, code in excerpts:
        assert code in (ROOT / name).read_text(), f"{name} no longer has:\n{code}"


def run_commands(page: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Run the commands of a page in the current folder. Each must succeed."""
    for command in commands(page):
        if command.startswith(("realcustom serve", "realcustom quickstart")):
            continue  # below, and tests/pipeline/test_quickstart.py
        if command.startswith(MODULE):
            subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True)
            continue
        arguments, target = arguments_of(command)
        capfd.readouterr()
        status = run(arguments)
        out, err = capfd.readouterr()
        assert status == 0, f"{command}\n{err}"
        if target:
            Path(target).write_text(out)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in APART and commands(page)], ids=name_of)
def test_the_commands_of_a_page_run(
    ray_cluster: str, place: Path, page: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    run_commands(page, capfd)


def test_ones_own_photographs_become_an_adapter_and_an_image(
    tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The page's settings file and at most four commands, on the photographs that ship and models at tiny size."""
    text = OWN_PHOTOS.read_text()
    [settings] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    settings = settings.replace("device: cuda", "device: cpu").replace("use_gpu: true", "use_gpu: false")
    (tmp_path / "photos.yaml").write_text(settings)
    (tmp_path / "photos").symlink_to(ROOT / "tests" / "data" / "photos")
    (tmp_path / "models").mkdir()
    for name, model in (
        ("stable-diffusion-v1-5", tiny_models.base),
        ("clip-vit-large-patch14", tiny_models.image_encoder),
    ):
        (tmp_path / "models" / name).symlink_to(model)
    monkeypatch.chdir(tmp_path)
    assert len(settings.splitlines()) <= 12 and len(commands(OWN_PHOTOS)) <= 4
    smaller = {"preprocess": ["--set", "preprocess.encode.resolution=32"], "generate": ["--steps", "2"], "train": []}
    for command in commands(OWN_PHOTOS):
        arguments, _ = arguments_of(command.replace("photos/PICTURE.jpg", "photos/duck_toy.jpg"))  # any picture
        assert run([*arguments, *smaller[arguments[0]]]) == 0, capfd.readouterr().err
    header = read_header("outputs/own/adapter.safetensors")
    assert header.base == model_identity(tiny_models.base)
    assert header.image_encoder == model_identity(tiny_models.image_encoder)
    [encoded] = (tmp_path / "outputs" / "photos").glob("encode@*/*.parquet")
    rows = pq.read_table(encoded).to_pylist()
    assert {row["caption"] for row in rows} == {"a photo of the toy"} and len(rows) == 3
    assert Path("outputs/toy/image-0.png").is_file() and Path("outputs/toy/masks-0.png").is_file()


def test_the_readme_s_commands_leave_records_an_adapter_and_an_image(
    ray_cluster: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Accounts that close, records in the schema, an adapter that began with random weights, an image."""
    monkeypatch.chdir(place)
    run_commands(README, capfd)
    for stage in ("ingest", "score", "select", "caption", "subjects", "encode"):
        [directory] = (place / "outputs" / "records").glob(f"{stage}@*")
        report = json.loads((directory / "report.json").read_text())
        assert report["in"] == report["kept"] + sum(report["dropped"].values()) + sum(report["quarantined"].values())
        assert report["kept"] > 0, stage
    check_schema(pq.read_schema(sorted(directory.glob("*.parquet"))[0]))
    header = read_header(place / "outputs" / "train" / "adapter.safetensors")
    assert header.provenance["initial_adapter"] is None
    assert sorted(path.name for path in (place / "outputs" / "star").iterdir()) == [
        "image-0.png",
        "masks-0.png",
        "settings.yaml",
    ]


def test_the_endpoint_answers_its_example_until_ctrl_c(ray_cluster: str, place: Path) -> None:
    readme = README.read_text()
    section = readme[readme.index("## Over HTTP") :]
    block = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)[0]
    serve, request = block.split("\n", 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONWARNINGS": "ignore"}
    with (
        (place / "serve.log").open("w") as log,
        subprocess.Popen(
            [*shlex.split(serve.partition("#")[0]), "--set", f"serve.port={url.rpartition(':')[2]}"],
            cwd=place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            ready = next((line for line in process.stdout if line.startswith("ready at")), "")
            assert url in ready, (place / "serve.log").read_text()
            request = request.replace("http://127.0.0.1:8000", url)
            subprocess.run(["bash", "-euo", "pipefail", "-c", request], cwd=place, env=environment, check=True)
            assert (place / "star.png").read_bytes().startswith(b"\x89PNG")
            body = {"prompt": "a cat", "subjects": [{"image": _photo(), "word": "star"}]}
            wrong = httpx.post(f"{url}/v1/images/generations", json=body, timeout=60)
            assert wrong.status_code == 422 and "its words are: a, cat" in wrong.text
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        finally:
            if process.poll() is None:
                process.kill()
    said = (place / "serve.log").read_text()
    assert "interrupted\n" in said and "Traceback" not in said
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/healthz", timeout=5)


def _photo() -> str:
    return base64.b64encode((ROOT / "tests" / "data" / "photos" / "duck_toy.jpg").read_bytes()).decode()


def test_every_file_that_a_page_names_is_there() -> None:
    missing = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http") and not (page.parent / target).exists():
                missing.append(f"{name_of(page)}: {target}")
    assert missing == []


def test_every_section_that_a_page_links_to_is_there() -> None:
    missing = []
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            headings = re.findall(r"^#+ (.*)$", (page.parent / target if target else page).read_text(), re.MULTILINE)
            if anchor not in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}:
                missing.append(f"{name_of(page)}: {target}#{anchor}")
    assert missing == []


def test_the_reference_of_settings_is_that_of_the_dataclasses() -> None:
    assert settings_reference.PAGE.read_text() == settings_reference.page(), (
        "out of date: run `python docs/settings_reference.py`"
    )


def test_every_setting_is_described() -> None:
    rows = [line for line in settings_reference.page().splitlines() if line.startswith("| `")]
    cells = [re.split(r"(?<!\\)\|", row) for row in rows]  # a | within a cell is escaped
    about = [(cell[1].strip(), re.sub(r"\[[DP]\]|<br>.*", "", cell[4]).strip()) for cell in cells]
    assert len(rows) > 100 and [name for name, text in about if not text] == []


def test_every_fault_is_explained() -> None:
    page = (ROOT / "docs" / "preprocessing" / "reasons.md").read_text()
    assert [fault.value for fault in DataFault if f"`{fault.value}`" not in page] == []


def test_the_architecture_lists_the_files_that_are_there() -> None:
    listing = (ROOT / "docs" / "architecture.md").read_text().partition("## Files")[2].split("```")[1]
    listed, folder = set(), ""
    for line in listing.strip().splitlines():
        name = line.split()[0]
        if line.startswith(" "):
            listed.add(folder + name)
        else:
            folder = name
    files = {path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert listed == {file for file in files if not file.endswith("__init__.py")}


def test_the_library_example_runs_in_a_fresh_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sprites", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    section = README.read_text().partition("## As a library")[2]
    code = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[0]
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "star.png").is_file()

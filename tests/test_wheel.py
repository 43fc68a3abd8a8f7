"""The wheel, as a user has it: one namespace, whatever else is installed or lies where the command runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.corpora import write_shards

ROOT = Path(__file__).parent.parent
PHOTO = ROOT / "tests" / "data" / "photos" / "duck_toy.jpg"
EXTRAS = [
    "ray",
    "boto3",
    "botocore",
    "pycocotools",
    "fastapi",
    "starlette",
    "httpx",
    "python_multipart",
]  # typer brings pydantic


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages: the wheel's, and one that is named `inference`."""
    built = tmp_path_factory.mktemp("wheel")
    source = built / "source"  # a copy: setuptools builds where the source lies
    kept = ("realcustom", "preprocessing", "training", "inference", "evaluation", "pipeline", "sprites")
    for name in (*kept, "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    # --no-build-isolation: setuptools is here, and nothing is to be fetched
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(built), "."]
    subprocess.run(command, check=True, cwd=source, timeout=300)
    (wheel,) = built.glob("realcustom-*.whl")
    folder = built / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for name in ("inference", "preprocessing"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('another package of this name')\n")
    return folder


def test_only_our_namespace_is_installed(site: Path) -> None:
    ours = {path.name for path in site.iterdir()} - {"inference", "preprocessing"}
    assert {name for name in ours if not name.endswith(".dist-info")} == {"realcustom"}
    assert not list(site.rglob("test_*.py"))
    for file in (
        "py.typed",
        "sprites/zoo/adapter.safetensors",
        "pipeline/quickstart/page.html.j2",
        "pipeline/quickstart/page.js.j2",
        "page.css",
        "preprocessing/report/page.html.j2",
        "inference/page/files/index.html",
        "preprocessing/select/near.py",
    ):
        assert (site / "realcustom" / file).is_file(), file


def test_the_library_alone_asks_for_none_of_the_extras(site: Path) -> None:
    (metadata,) = site.glob("realcustom-*.dist-info/METADATA")
    lines = [
        line.removeprefix("Requires-Dist: ") for line in metadata.read_text().splitlines() if "Requires-Dist" in line
    ]
    plain = {re.split(r"[\W]", line)[0].lower() for line in lines if "extra ==" not in line}
    assert plain >= {"torch", "diffusers", "transformers", "pyarrow"} and not plain & set(EXTRAS)
    for extra, names in (("data", {"ray", "boto3", "pycocotools"}), ("train", {"ray"}), ("serve", {"ray", "fastapi"})):
        assert names <= {
            re.split(r"[\W]", line)[0] for line in lines if f"extra == '{extra}'" in line.replace('"', "'")
        }


def test_without_the_extras_the_library_draws_and_other_verbs_say_what_they_need(tmp_path: Path) -> None:
    """What is not installed is None in sys.modules, which Python's import says as it says a package that is not there."""
    program = (
        f"import sys\nfor name in {EXTRAS}: sys.modules[name] = None\n"
        "from realcustom.pipeline.cli.main import main\nmain()"
    )

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )

    done = call("generate", "--prompt", "a star on grass", "--word", "star", "--image", str(PHOTO), "--steps", "2")
    assert done.returncode == 0 and (tmp_path / "outputs/generate/image-0.png").is_file(), done.stderr
    for arguments, name in (
        (("preprocess", "ingest", "--input", str(PHOTO.parent), "--output", "out"), "ray"),
        (("inspect", "s3://bucket/adapter.safetensors"), "boto3"),
        (("serve",), "ray"),
    ):
        done = call(*arguments)
        assert done.returncode == 2, done.stderr
        assert f"error: this needs {name}, which is not installed: pip install 'PATH_OF_THE_CLONE[all]'" in done.stderr


def test_ingest_runs_on_ray_beside_packages_of_the_same_names(site: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", 2, 2)
    here = tmp_path / "here"
    (here / "preprocessing").mkdir(parents=True)  # the user's own folder, where the command runs
    (here / "preprocessing/__init__.py").write_text("raise RuntimeError('the user\\'s own folder')\n")
    program = "from realcustom.pipeline.cli.main import main; main()"
    arguments = ["preprocess", "ingest", "--input", str(tmp_path / "shards"), "--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    environment.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "ingest: 4 in = 4 kept" in done.stdout
    where = "import realcustom.preprocessing.run as run; print(run.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=here, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(str(site)), found.stdout

"""The image's file and the script with its steps."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "infra" / "image" / "Dockerfile"
STEPS = ROOT / "infra" / "image" / "steps.sh"
DRAIN = ROOT / "infra" / "image" / "drain.sh"
INSTALL = ROOT / "infra" / "install.sh"
PROGRAMS = ROOT / "infra" / "prometheus" / "programs.sh"
LARGEST, BASE = 2.5e9, 0.15e9  # bytes of the image for CPUs, and of what it is made from


def stages() -> dict[str, tuple[str, list[str]]]:
    """Name -> what it is made from, and its instructions."""
    text = re.sub(
        r"\\\n\s*", "", "".join(line for line in FILE.read_text().splitlines(True) if not line.startswith("#"))
    )
    found: dict[str, tuple[str, list[str]]] = {}
    for line in filter(None, text.splitlines()):
        if made := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[made[2]] = (made[1], [])
        elif found:
            found[list(found)[-1]][1].append(line)
    return found


def test_both_targets_hold_no_tools_that_build_and_do_not_run_as_root() -> None:
    known = stages()
    assert list(known)[-1] == "cpu", "what is built where no target is named"
    for target, backend in (("cpu", "cpu"), ("cuda", "cu128")):
        parent, own = known[target]
        assert own[-1] == "USER 1000"
        [built] = re.findall(r"COPY --from=(\S+) /opt/venv /opt/venv", "\n".join(own))
        assert f"TORCH_BACKEND={backend} infra/image/steps.sh install" in "\n".join(known[built][1])
        run = [line for line in (*known[parent][1], *own) if line.startswith("RUN ")]
        assert not re.search(r"\b(apt|apt-get|pip|uv|gcc)\b", "\n".join(run)), run
        assert known[parent][0] == "${BASE}" and any(line.startswith("HEALTHCHECK ") for line in known[parent][1])


def test_every_step_that_is_called_is_one() -> None:
    called = set(re.findall(r"steps\.sh (\w+)", FILE.read_text()))
    [steps] = re.findall(r"^([\w |]+)\) shift", STEPS.read_text(), re.MULTILINE)
    assert called == set(steps.split(" | "))
    wrong = subprocess.run([STEPS, "instal"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "steps are" in wrong.stderr


@pytest.mark.parametrize(
    ("program", "file", "planted"),
    [
        ("hadolint", FILE, ("USER 1000", "RUN apt-get install vim\nUSER root")),
        ("shellcheck", STEPS, ('"$1/bin/', "$1/bin/")),
        ("shellcheck", DRAIN, ('"$seconds" ||', "$seconds ||")),
        ("shellcheck", INSTALL, ('--clear "$venv"', "--clear $venv")),
        ("shellcheck", PROGRAMS, ('mkdir -p "$1"', "mkdir -p $1")),
    ],
)
def test_a_linter_finds_no_mistake_and_finds_one_that_is_planted(
    program: str, file: Path, planted: tuple[str, str], tmp_path: Path
) -> None:
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    linter = shutil.which(program, path=beside)
    if linter is None:
        pytest.skip(f"needs {program}, of the development tools")
    checked = subprocess.run([linter, file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    wrong = tmp_path / file.name
    wrong.write_text(file.read_text().replace(*planted))
    assert subprocess.run([linter, wrong], capture_output=True).returncode != 0


AS_IN_THE_IMAGE = """
set -e
mount --bind / "$1"
mount -o remount,ro,bind "$1"
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
if [[ $4 != /usr/* ]]; then  # a Python in a folder that only its owner may enter
    mount -t tmpfs -o mode=755 tmpfs "$1/$(cut -d/ -f2 <<<"$4")"
    mkdir -p "$1$4"
    mount --bind "$4" "$1$4"
fi
mount -t tmpfs -o mode=1777 tmpfs "$1/mnt"  # as the volumes of a pod are: all else is read-only
exec chroot --userspec=1000:1000 "$1" /usr/bin/env -i PATH="$2/bin:/usr/bin:/bin" HOME=/mnt TMPDIR=/mnt RAY_TMPDIR=/mnt \
    RAY_AUTH_MODE=token PYTHONDONTWRITEBYTECODE=1 bash -e -c "$3"
"""
QUICKSTART = """
cd /mnt
test "$(id -u)" = 1000 && ! touch "$(dirname "$(command -v realcustom)")/x" 2>/dev/null
python -c 'import pathlib; from realcustom.sprites.corpus import *; write_corpus(pathlib.Path("c"), CorpusSettings(pictures=48))'
realcustom preprocess all --input c/shards --output records
realcustom train --input records --output run --set train.steps=4 --set train.warmup=0 --set train.num_workers=1
realcustom inspect run/adapter.safetensors
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter; pytest's own are the user's alone."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.cluster
def test_its_steps_make_what_runs_without_root_on_a_root_that_is_read_only(open_folder: Path) -> None:
    """From nothing but Python: corpus, preprocessing and training, with an empty environment."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare, for a mount namespace of its own")
    tree, venv, root = open_folder / "realcustom", open_folder / "venv", open_folder / "root"
    root.mkdir()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)
    # where packages come from is the machine's business
    places = [f"{name}={value}" for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))]
    for step in ("install", "check", "clean"):
        python = [sys.executable] if step == "install" else []
        command = [str(tree / "infra" / "image" / "steps.sh"), step, *python, str(venv)]
        done = subprocess.run(
            ["env", "-i", "PATH=/usr/bin:/bin", f"HOME={open_folder}", *places, *command],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    size = sum(path.lstat().st_size for place in (venv, tree) for path in place.rglob("*") if path.is_file())
    assert size < LARGEST - BASE, f"{size / 1e9:.2f} GB"
    inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", AS_IN_THE_IMAGE, "-"]
    done = subprocess.run([*inside, str(root), str(venv), QUICKSTART, sys.base_prefix], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "adapter of " in done.stdout


@pytest.mark.cluster
def test_the_image_is_built_and_runs_the_quickstart() -> None:
    """As a user that is not root, on a root that is read-only."""
    engines = [name for name in ("docker", "podman") if shutil.which(name)]
    engine = next(
        (name for name in engines if not subprocess.run([name, "info"], capture_output=True).returncode), None
    )
    if engine is None:
        pytest.skip("needs an engine of containers that runs")
    tag = "realcustom:test-cpu"

    def asked(*arguments: str | Path) -> str:
        done = subprocess.run([engine, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    asked("build", "-f", FILE, "--target", "cpu", "-t", tag, ROOT)
    size = int(asked("image", "inspect", "--format", "{{.Size}}", tag))
    assert size < LARGEST, f"{size / 1e9:.2f} GB"
    volumes = ("--tmpfs", "/tmp", "--tmpfs", "/home/ray:uid=1000", "--shm-size", "1g")
    asked("run", "--rm", "--read-only", *volumes, tag, "realcustom", "quickstart", "--output", "/home/ray/quickstart")

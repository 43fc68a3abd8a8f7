"""`realcustom evaluate` killed -9 at random moments and run again: the same table, nothing drawn or computed twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from realcustom.sprites import ZOO
from tests.support.suites import write_suite

KILLS = 20
# Imports once and forks for each run, so that a kill meets the work and not the imports; prints what it did as JSON.
DRIVER = """
import json, os, random, signal, sys, time
from pathlib import Path
from realcustom.pipeline.cli.main import run
import realcustom.diffusion_pipeline, realcustom.evaluation.embedding
import realcustom.pipeline.evaluate.run, realcustom.pipeline.evaluate.page
command, output, kills = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def start():
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os._exit(run(command))
    return child

def kept():
    files = [path for kind in ("*.json", "*.parquet") for path in output.glob(f"*/**/{kind}")]
    return {str(path): path.stat().st_mtime_ns for path in files}

done, again, drawing = 0, [], 0
draw = random.Random(0)
while done < kills:
    before = kept()
    child = start()
    while len(kept()) == len(before) and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.005)  # until it has done something
    time.sleep(draw.uniform(0, 0.4))
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        break
    done += 1
    after = kept()
    again += [path for path in before if after.get(path) != before[path]]
before = kept()
_, status = os.waitpid(start(), 0)
again += [path for path in before if kept()[path] != before[path]]
print(json.dumps({"kills": done, "again": again, "status": status, "left": len(kept()) - len(before)}))
"""


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path: Path) -> None:
    drawn = write_suite(tmp_path / "suite", subjects=8)
    command = [
        *("evaluate", "--suite", "own", "--subjects", str(drawn.folder), "--prompts", str(drawn.prompts)),
        *("--metric", f"clip_t@{ZOO / 'clip'}", "--metric", f"dino_i@{ZOO / 'image_encoder'}", "--steps", "4"),
        *("--set", "evaluate.images_per_prompt=8", "--set", "evaluate.batch_size=2"),
    ]
    runs = {}
    for name, kills in (("whole", 0), ("killed", KILLS)):
        output = tmp_path / name
        line = [sys.executable, "-c", DRIVER, json.dumps([*command, "--output", str(output)]), str(output), str(kills)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        runs[name] = json.loads(done.stdout)
    assert runs["killed"]["kills"] == KILLS and runs["killed"]["status"] == 0 and runs["killed"]["again"] == []
    for file in ("table.md", "table.csv", "results.parquet"):
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    images = [len(list((tmp_path / name / "images").glob("*.png"))) for name in runs]
    assert images[0] == images[1] == 8 * 3 * 8 + _plain_images(drawn.folder)


def _plain_images(folder: Path) -> int:
    """Images of text alone: subjects of one word share them."""
    words = {line.partition(",")[2] for line in (folder / "subjects.csv").read_text().splitlines()[1:]}
    return len(words) * 3 * 8

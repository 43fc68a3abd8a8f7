"""The benchmarks run; what they find is not judged here, only that all sides compute the same and all is recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.corpora import jpeg, picture, sample, tar_bytes
from tests.support.stages import ingest_to_select, table_of

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_sampler_benchmark_compares_equal_computations() -> None:
    results = ROOT / "benchmarks" / "results" / "sampler.json"
    before = results.read_bytes() if results.exists() else None
    run = subprocess.run(
        [sys.executable, "benchmarks/sampler.py", "--quick"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for metric in (
        "half_reuse_vs_release_order",
        "half_reuse_vs_ip_adapter",
        "early_reuse_vs_ip_adapter",
        "half_reuse_vs_plain_sd",
        "peak_memory_vs_plain_sd",
    ):
        assert f"sampler_quick_{metric}: " in run.stderr
    assert (results.read_bytes() if results.exists() else None) == before, "a smoke run leaves no record"


@pytest.mark.slow
def test_the_training_benchmark_measures_an_index(tmp_path: Path) -> None:
    results = ROOT / "benchmarks" / "results" / "training.json"
    before = results.read_bytes() if results.exists() else None
    command = [sys.executable, "benchmarks/training.py", "--folder", str(tmp_path), "--quick", "--only", "index"]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for metric in ("seconds", "gib", "warm_seconds", "warm_gib"):
        assert f"train_index_{metric}: " in run.stderr
    assert "rows-100000 100000: " in run.stderr
    assert (results.read_bytes() if results.exists() else None) == before, "a smoke run leaves no record"


@pytest.mark.slow
def test_what_an_engine_holds_is_what_the_documentation_says() -> None:
    """The counted table is that of docs/serving.md; and rows of a small UNet hold what is counted of them."""
    page = (ROOT / "docs" / "serving.md").read_text()
    for option, rows in (("--dry", 7), ("--tiny", 0)):
        command = [sys.executable, "benchmarks/serving_memory.py", option]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        counted = [line for line in run.stdout.splitlines() if line.startswith(("| the ", "| each ", "| a "))]
        assert len(counted) == rows and all(line in page for line in counted), counted


def test_a_newer_record_replaces_the_older_of_its_metric(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import record\n"
        "for name, value in (('a', 1.0), ('b', 2.0), ('a', 3.0)):\n"
        "    record.write(Path(sys.argv[1]), [record.record(name, value, 's', command='c', commit='d')])\n"
    )
    path = tmp_path / "results" / "some.json"
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT / "benchmarks", check=True)
    records = json.loads(path.read_text())
    assert {item["metric"]: item["value"] for item in records} == {"a": 3.0, "b": 2.0}
    assert all(item["spread"] == [item["value"]] * 2 and item["n"] == 1 and item["hardware"] for item in records)


def test_the_plain_loop_keeps_the_rows_that_the_stages_keep(tmp_path: Path) -> None:
    large, small = picture(0, (360, 320)), picture(1, (100, 90))
    first = sample("a", jpeg(large)) | sample("small", jpeg(small)) | sample("cut", jpeg(picture(2, (300, 300)))[:-900])
    second = sample("copy", jpeg(large, quality=60)) | sample("b", jpeg(picture(3, (300, 280))))
    (tmp_path / "shards").mkdir()
    for name, members in {"0.tar": first, "1.tar": second}.items():
        (tmp_path / "shards" / name).write_bytes(tar_bytes(members))
    command = [sys.executable, "benchmarks/plain_loop.py", str(tmp_path / "shards"), str(tmp_path / "loop")]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    kept = [key for path in (tmp_path / "loop" / "kept").iterdir() for key in pq.read_table(path)["key"].to_pylist()]
    staged = table_of(ingest_to_select(tmp_path / "shards", tmp_path / "stages", min_side=256))
    assert sorted(kept) == sorted(staged["key"].to_pylist()) == ["0.tar/a.jpg", "1.tar/b.jpg"]


def test_a_process_tree_is_measured_whole(tmp_path: Path) -> None:
    """CPU seconds of a child that was waited for and of an orphan that outlives the command, and their memory."""
    burn = "import time\nballast = bytearray(10**8)\nwhile time.process_time() < {}: pass"
    command = f"""
import os, subprocess, sys
subprocess.run([sys.executable, "-c", {burn.format(0.5)!r}])
if os.fork() == 0:
    if os.fork() == 0:
        os.close(1)
        os.execv(sys.executable, [sys.executable, "-c", {burn.format(1.5)!r}])
    os._exit(0)
os.wait()
print("done")
"""
    program = (
        "import os, sys; from pathlib import Path; from process_tree import run\n"
        "usage = run([sys.executable, '-c', sys.argv[1]], Path(sys.argv[2]), dict(os.environ), memory=True)\n"
        "print(usage.cpu, usage.peak_pss, usage.out)\n"
    )
    run = [sys.executable, "-c", program, command, str(tmp_path)]
    result = subprocess.run(run, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True)
    cpu, peak_pss, out = result.stdout.split()
    assert 1.8 < float(cpu) < 3.5 and 1e8 < float(peak_pss) < 2e8 and out == "done"


def test_parity_needs_a_checkout_of_the_release(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/parity.py", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert run.returncode == 1 and "is no checkout of the released repository" in run.stderr

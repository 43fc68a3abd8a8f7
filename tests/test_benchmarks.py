"""The benchmarks run; what they find is not judged here, only that all sides compute the same and all is recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


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

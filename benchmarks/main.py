"""The two commands of a new user, measured from a clean clone: minutes, and peak memory of the process tree.

    python benchmarks/main.py            # about 30 minutes; needs psutil, make and git
    python benchmarks/main.py --only tests_minutes

Clones HEAD into a temporary folder, runs `make quickstart` there from nothing and once more with a new output folder
and the environment in place, then `make test`, and writes benchmarks/results/main.json. Memory is the proportional set
size (PSS: shared pages counted once) summed over the process tree, sampled once a second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import record
from process_tree import tree_pss
from record import ROOT

RESULTS = record.RESULTS / "main.json"
METRICS = ("quickstart_minutes_fresh", "quickstart_minutes_again", "quickstart_peak_pss_gb", "tests_minutes")


def measured(command: list[str], folder: Path, log: Path, memory: bool = True) -> tuple[float, float]:
    """Run a command to its end; minutes, and peak PSS of its tree in GB. Raises RuntimeError if it fails.

    Args:
        memory: false: it is not sampled, and 0. Of the dozens of processes of `make test` that takes a tenth of a core.
    """
    start, peak, done = time.monotonic(), 0, threading.Event()
    environment = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    with log.open("w") as out:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment
        )

        def sample() -> None:
            nonlocal peak
            while not done.wait(1.0):
                peak = max(peak, tree_pss(process.pid))

        sampler = threading.Thread(target=sample)
        if memory:
            sampler.start()
        code = process.wait()
        done.set()
        if memory:
            sampler.join()
    minutes = (time.monotonic() - start) / 60
    if code:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        raise RuntimeError(f"{' '.join(command)} ended with {code} after {minutes:.1f} minutes:\n{tail}")
    return minutes, peak / 1e9


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=METRICS, action="append", help="measure just this (repeatable)")
    wanted = set(parser.parse_args().only or METRICS)
    with tempfile.TemporaryDirectory(prefix="realcustom-clone-") as temporary:
        clone = Path(temporary) / "realcustom"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        commit = record.head(clone)
        if wanted - {"tests_minutes"}:
            fresh, peak_fresh = measured(["make", "quickstart"], clone, Path(temporary) / "fresh.log")
            print(f"quickstart from nothing: {fresh:.2f} min, peak {peak_fresh:.2f} GB", file=sys.stderr)
            (clone / "outputs").rename(clone / "outputs-before")
            again, peak_again = measured(["make", "quickstart"], clone, Path(temporary) / "again.log")
            print(f"again: {again:.2f} min, peak {peak_again:.2f} GB", file=sys.stderr)
            values = {"quickstart_minutes_fresh": fresh, "quickstart_minutes_again": again}
            write(values | {"quickstart_peak_pss_gb": max(peak_fresh, peak_again)}, commit)
        if "tests_minutes" in wanted:
            subprocess.run(["make", "environment"], cwd=clone, check=True, stdout=subprocess.DEVNULL)
            minutes, _ = measured(["make", "test"], clone, Path(temporary) / "test.log", memory=False)
            print(f"make test: {minutes:.2f} min", file=sys.stderr)
            write({"tests_minutes": minutes}, commit)


def write(values: dict[str, float], commit: str) -> None:
    """Merge new records into the result file."""
    command = "python benchmarks/main.py"
    units = {metric: "GB" if metric.endswith("_gb") else "min" for metric in values}
    records = [
        record.record(name, value, units[name], command=command, commit=commit) for name, value in values.items()
    ]
    record.write(RESULTS, records)


if __name__ == "__main__":
    main()

"""Validate + size + perceptual hash: this project against Daft and data-juicer, CPU seconds over the process tree.

    python benchmarks/preprocess_peers.py --photos FOLDER            # minutes, and at first those of the peers' installation

Needs real photographs, a folder of each subject, as DreamBooth's data set has them. Each peer gets a virtual
environment of its own, made from peers/NAME.txt, and peers/NAME.alone.txt without dependencies, in --cache FOLDER where
it is not there yet (torch's CPU build will do: PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS say where). What each side runs is
peers/run_NAME.py, each in one process with its own operators. All sides take the same files, in turn, in an order that
turns around each round; a side takes them twice and six times (enlarged: once and twice), and what counts is the
difference, without its start-up.
Writes benchmarks/results/preprocessing.json.

    preprocess_kernel_vs_peer          ours over the better peer of the round; hashes of five views, 64 + 256 bits each,
                                       against its one of 64
    preprocess_kernel_vs_peer_large    the same with each photograph enlarged to twice its sides (JPEG, quality 90)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np
import process_tree
import record
from PIL import Image

RESULTS = record.RESULTS / "preprocessing.json"
METRIC, LARGE = "preprocess_kernel_vs_peer", "preprocess_kernel_vs_peer_large"
HERE = Path(__file__).parent / "peers"
PEERS = ("daft", "data_juicer")
OURS = "ours"


def environment(name: str, cache: Path) -> str:
    """The Python of a peer's environment, which is made if what is there rests on other requirements."""
    folder, options = cache / name, {HERE / f"{name}.txt": [], HERE / f"{name}.alone.txt": ["--no-deps"]}
    files = [file for file in options if file.exists()]
    stamp, python = folder / "installed.txt", folder / "bin" / "python"
    wanted = "".join(file.read_text() for file in files)
    if not stamp.exists() or stamp.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        for file in files:
            install = [str(python), "-m", "pip", "install", "--quiet", *options[file], "-r", str(file)]
            subprocess.run(install, check=True)
        stamp.write_text(wanted)
    return str(python)


def seconds(python: str, name: str, files: list[str]) -> float:
    """CPU seconds of one side over some files, its process's start included."""
    variables = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    variables |= {"PYTHONPATH": str(record.ROOT) if name == OURS else ""}
    command = [python, str(HERE / f"run_{name}.py"), *files]
    usage = process_tree.run(command, record.ROOT, {**os.environ, **variables})
    if usage.out.split()[-1] != str(len(files)):
        raise RuntimeError(f"{name} has made {usage.out!r} of {len(files)} files")
    return usage.cpu


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of folders of photographs")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "realcustom-peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=[METRIC, LARGE], help="just this one")
    arguments = parser.parse_args()
    photos = sorted(arguments.photos.glob("*/*.jpg"))
    if not photos:
        parser.error(f"no photographs (*/*.jpg) in --photos {arguments.photos}; name a folder that has some")
    pythons = {OURS: sys.executable, **{name: environment(name, arguments.cache) for name in PEERS}}
    if arguments.only in (None, METRIC):
        measure(METRIC, photos, pythons, arguments.rounds, times=(2, 6))
    if arguments.only in (None, LARGE):
        with tempfile.TemporaryDirectory() as folder:
            larger = [enlarged(path, Path(folder) / f"{number}.jpg") for number, path in enumerate(photos)]
            # a peer holds all of them decoded
            measure(LARGE, larger, pythons, arguments.rounds, times=(1, 2))


def enlarged(path: Path, place: Path) -> Path:
    """A photograph at twice its sides."""
    with Image.open(path) as image:
        larger = image.convert("RGB").resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC)
    larger.save(place, quality=90)
    return place


def measure(metric: str, photos: list[Path], pythons: dict[str, str], rounds: int, times: tuple[int, int]) -> None:
    """Rounds of all sides over some files, so many times as a start-up and in all, and their record."""
    files = [str(path.absolute()) for path in photos]
    few, many = (files * number for number in times)
    ratios, table = [], []
    for number in range(rounds):
        cost: dict[str, float] = {}
        for name in list(pythons)[:: 1 if number % 2 == 0 else -1]:
            cost[name] = seconds(pythons[name], name, many) - seconds(pythons[name], name, few)
        ratios.append(cost[OURS] / min(cost[name] for name in PEERS))
        table.append({name: round(value / (len(many) - len(few)) * 1000, 3) for name, value in cost.items()})
        print(table[-1], f"{ratios[-1]:.3f}", file=sys.stderr)
    low, high = (float(np.percentile(ratios, share)) for share in (5, 95))
    item = record.record(
        metric,
        float(np.median(ratios)),
        "ratio",
        n=rounds,
        spread=(low, high),
        command="python benchmarks/preprocess_peers.py",
        commit=record.head(),
    )
    record.write(RESULTS, [{**item, "detail": {"photographs": len(photos), "ms CPU a picture, by round": table}}])


if __name__ == "__main__":
    main()

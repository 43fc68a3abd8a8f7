"""Near duplicates of preprocessing: the kernel's cost, copies found and pictures merged wrongly, and the search's cost.

    python benchmarks/preprocess.py --photos FOLDER            # about 20 minutes of one core
    python benchmarks/preprocess.py --photos FOLDER --only preprocess_near_dup_recall

Needs real photographs, a folder of each subject with several, as DreamBooth's data set has them.
Writes benchmarks/results/preprocessing.json. Everything runs through the stages themselves, in one process without
Ray, at the default settings. CPU seconds are those of the process (start-up and imports left out), memory its PSS,
sampled once a second.

    preprocess_kernel_ms            CPU per photograph: validate + size + hashes, as ingest does it
    preprocess_near_dup_recall      share of copies found, for the worst augmentation; `detail` has every one
    preprocess_near_dup_recall_beyond_exact      the same beyond select.exact_search_rows
    preprocess_false_merges         distinct photographs merged, alone and among copies
    preprocess_false_merges_drawn   distinct drawings of the sprites world merged, of 16,000; the limits were chosen with
                                    the first 8,000 of them (and the photographs) in view, not with the others
    preprocess_select_100k_missed, _false        of 5,000 copies planted among 100,000 rows
    preprocess_select_seconds_N, _pss_gb_N       `select` over N made-up rows of which 5 % are copies
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import record
from PIL import Image, ImageEnhance, ImageFilter
from process_tree import tree_pss

from realcustom.preprocessing.catalogue import INGEST, SCORE, SELECT
from realcustom.preprocessing.hashes import BASE_SIDE, signature
from realcustom.preprocessing.pictures import decode_with_size
from realcustom.preprocessing.run import InProcess, StageResult, run_stage
from realcustom.preprocessing.select.partitions import Part, bit_tables, fitted
from realcustom.preprocessing.settings import IngestSettings, PreprocessSettings, SelectSettings

RESULTS = record.RESULTS / "preprocessing.json"
KERNEL, RECALL, BEYOND, FALSE, DRAWN = (
    "preprocess_kernel_ms",
    "preprocess_near_dup_recall",
    "preprocess_near_dup_recall_beyond_exact",
    "preprocess_false_merges",
    "preprocess_false_merges_drawn",
)
SIZES = (1_000, 10_000, 100_000, 1_000_000)
SCALE = [f"preprocess_select_{size}" for size in SIZES]
METRICS = (KERNEL, RECALL, BEYOND, FALSE, DRAWN, *SCALE)
DRAWINGS = 8000


def saved(image: Image.Image, quality: int = 90) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def cropped(image: Image.Image, fraction: float) -> Image.Image:
    width, height = image.size
    box = (width * fraction, height * fraction, width * (1 - fraction), height * (1 - fraction))
    return image.crop(tuple(round(edge) for edge in box))  # type: ignore[arg-type]


def scaled(image: Image.Image, factor: float) -> Image.Image:
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)


COUNTED: dict[str, Callable[[Image.Image], bytes]] = {
    "crop of 5 % a side": lambda image: saved(cropped(image, 0.05)),
    "resize to 0.5x": lambda image: saved(scaled(image, 0.5)),
    "resize to 2x": lambda image: saved(scaled(image, 2)),
    "JPEG quality 30": lambda image: saved(image, 30),
    "brightness +20 %": lambda image: saved(ImageEnhance.Brightness(image).enhance(1.2)),
    "brightness -20 %": lambda image: saved(ImageEnhance.Brightness(image).enhance(0.8)),
    "Gaussian blur sigma 2": lambda image: saved(image.filter(ImageFilter.GaussianBlur(2))),
}
# Not counted; they show the limits.
REPORTED: dict[str, Callable[[Image.Image], bytes]] = {
    "crop of 3 % a side": lambda image: saved(cropped(image, 0.03)),
    "crop of 7 % a side": lambda image: saved(cropped(image, 0.07)),
    "crop of 10 % a side": lambda image: saved(cropped(image, 0.1)),
    "crop of 15 % a side": lambda image: saved(cropped(image, 0.15)),
    "crop of 5 % on the left only": lambda image: saved(
        image.crop((round(image.width * 0.05), 0, image.width, image.height))
    ),
}


def kernel(photos: list[bytes]) -> tuple[float, list[float]]:
    """Median CPU milliseconds per photograph over rounds through all of them, and all rounds."""
    limit = IngestSettings().max_pixels
    rounds = []
    for _ in range(11):
        start = time.process_time()
        for data in photos:
            signature(decode_with_size(data, limit, draft_side=BASE_SIDE)[0])
        rounds.append((time.process_time() - start) / len(photos) * 1000)
    return float(np.median(rounds[1:])), rounds[1:]


def selected(folder: Path, output: Path, **select: Any) -> StageResult:
    """A folder of pictures through ingest, score and select."""
    settings = PreprocessSettings(select=SelectSettings(**select))
    place = str(folder)
    for stage in (INGEST, SCORE, SELECT):
        result = run_stage(stage, place, str(output), settings, executor=InProcess())
        place = result.directory
    return result


def merges(result: StageResult) -> list[tuple[str, str]]:
    """(dropped, survivor) by key."""
    lines = [
        json.loads(line)
        for path in sorted((Path(result.directory) / "aside").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    return [(line["key"], line["message"].removeprefix("of ")) for line in lines if "duplicate" in line["reason"]]


def recalls(photos: list[bytes], temporary: Path, **select: Any) -> tuple[dict[str, float], int]:
    """Found copies of each augmentation as a fraction, and how many pictures were merged with another photograph."""
    found, wrong = {}, 0
    for number, (name, augment) in enumerate({**COUNTED, **REPORTED}.items()):
        folder = temporary / f"copies-{number}"
        if not folder.exists():
            folder.mkdir(parents=True)
            for index, data in enumerate(photos):
                (folder / f"{index:03d}-original.jpg").write_bytes(data)
                (folder / f"{index:03d}-copy.jpg").write_bytes(augment(Image.open(io.BytesIO(data)).convert("RGB")))
        pairs = merges(selected(folder, temporary / f"out-{number}", **select))
        right = [pair for pair in pairs if pair[0][:3] == pair[1][:3]]
        found[name], wrong = len(right) / len(photos), wrong + len(pairs) - len(right)
        print(f"{name}: {found[name]:.3f}, {len(pairs) - len(right)} wrong", file=sys.stderr)
    return found, wrong


def met_in_tables(pairs: int = 20_000, rows_of_block: int = 640_000) -> dict[str, dict[str, float]]:
    """Beyond the exact search: the share of pairs at a distance in bits that are compared in a table, by rows of the corpus."""
    rng = np.random.default_rng(0)
    shares: dict[str, dict[str, float]] = {}
    for rows in (5_000_000, 100_000_000, 1_000_000_000):
        block = Part(uri="", content="", group=0, rows=rows_of_block)
        tables = bit_tables(rows, fitted([block] * (rows // rows_of_block), SelectSettings()))
        for distance in (2, 4, 6, 8):
            values = rng.integers(0, 2**64, pairs, dtype=np.uint64)
            bits = np.argsort(rng.random((pairs, 64)), axis=1)[:, :distance].astype(np.uint64)
            copies = values ^ np.bitwise_or.reduce(np.uint64(1) << bits, axis=1)
            met = np.any([table.keys(values) == table.keys(copies) for table in tables], axis=0)
            shares.setdefault(f"{rows} rows", {})[f"{distance} bits"] = round(float(met.mean()), 3)
    return shares


def merged_photographs(photos: list[bytes], temporary: Path) -> int:
    folder = temporary / "distinct"
    folder.mkdir()
    for index, data in enumerate(photos):
        (folder / f"{index:03d}.jpg").write_bytes(data)
    return len(merges(selected(folder, temporary / "distinct-out")))


def merged_drawings(first: int, temporary: Path) -> tuple[int, int, int]:
    """Distinct drawings merged, planted duplicates found, planted; over a drawn corpus with its ground truth.

    Two drawings are the same by ground truth if they show the same subject at the same place on the same background:
    then they differ in a pixel's jitter and in the grain of the background.
    """
    from realcustom.sprites.corpus import CorpusSettings, Corruption, write_corpus

    folder = temporary / f"drawn-{first}"
    write_corpus(folder, CorpusSettings(pictures=DRAWINGS, first=first, per_shard=500, corrupted=10))
    truth = pq.read_table(folder / "truth.parquet").to_pylist()
    shown = {
        row["key"]: tuple(row[name] for name in ("noun", "body", "second", "pattern", "place", "background"))
        for row in truth
    }
    pairs = merges(selected(folder / "shards", temporary / f"drawn-{first}-out", min_side=16))
    kinds = (Corruption.NEAR_DUPLICATE.value, Corruption.EXACT_DUPLICATE.value)
    planted = {row["key"] for row in truth if row["corruption"] in kinds}
    wrong = sum(shown[a] != shown[b] for a, b in pairs)
    return wrong, len(planted & {key for pair in pairs for key in pair}), len(planted)


def scale(size: int, temporary: Path) -> dict[str, float]:
    """`select` over `size` made-up rows: seconds of CPU, peak PSS, copies missed and found wrongly."""
    sys.path.append(str(record.ROOT))  # the tests are not installed
    from tests.support.signatures import planted, write_scored

    table, pairs = planted(size, size // 20, seed=size)
    source = write_scored(temporary / f"rows-{size}", table, 1000)
    del table
    output = temporary / f"selected-{size}"
    program = (
        "import sys, time\n"
        "from realcustom.preprocessing.catalogue import SELECT\n"
        "from realcustom.preprocessing.run import InProcess, run_stage\n"
        "from realcustom.preprocessing.settings import PreprocessSettings\n"
        "start = time.process_time()\n"
        "print(run_stage(SELECT, sys.argv[1], sys.argv[2], PreprocessSettings(), executor=InProcess()).directory)\n"
        "print(time.process_time() - start)"
    )
    command = [sys.executable, "-c", program, str(source), str(output)]
    environment = {**os.environ, "PYTHONPATH": str(record.ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    peak, done = 0, threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=record.ROOT) as process:

        def sample() -> None:
            nonlocal peak
            while not done.wait(0.2):
                peak = max(peak, tree_pss(process.pid))

        sampler = threading.Thread(target=sample)
        sampler.start()
        out, _ = process.communicate()
        done.set()
        sampler.join()
    if process.returncode:
        raise RuntimeError(f"select over {size} rows ended with {process.returncode}")
    directory, seconds = out.split()
    found = {}
    for path in (Path(directory) / "aside").glob("*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            found[line["key"]] = line["message"].removeprefix("of ")
    missed = sum(found.get(copy) != original for copy, original in pairs.items())
    return {
        "seconds": float(seconds),
        "pss_gb": peak / 1e9,
        "missed": missed,
        "false": len(set(found) - set(pairs)),
        "planted": len(pairs),
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=METRICS, action="append", help="measure just this (repeatable)")
    parser.add_argument("--photos", type=Path, help="folder of folders of photographs")
    arguments = parser.parse_args()
    wanted = set(arguments.only or METRICS)
    photos = [path.read_bytes() for path in sorted(arguments.photos.glob("*/*.jpg"))] if arguments.photos else []
    if not photos and wanted - {DRAWN, *SCALE}:
        parser.error(f"no photographs (*/*.jpg) in --photos {arguments.photos}; name a folder that has some")
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="realcustom-preprocessing-") as place:
        temporary = Path(place)
        if KERNEL in wanted:
            value, rounds = kernel(photos)
            records.append(made(KERNEL, value, "ms CPU", len(photos), (min(rounds), max(rounds))))
        wrong = 0
        for metric, select in ((RECALL, {}), (BEYOND, {"exact_search_rows": 0})):
            if metric in wanted or (metric == RECALL and FALSE in wanted):
                found, wrong_here = recalls(photos, temporary, **select)
                wrong += wrong_here
                if metric in wanted:
                    worst = min(found[name] for name in COUNTED)
                    interval = record.wilson(worst, len(photos))
                    detail: dict[str, Any] = {**found, **(met_in_tables() if metric == BEYOND else {})}
                    records.append(made(metric, worst, "recall", len(photos), interval, detail=detail))
        if FALSE in wanted:
            alone = merged_photographs(photos, temporary)
            detail = {"alone": alone, "among copies": wrong}
            pairs = len(photos) * (len(photos) - 1) // 2
            records.append(made(FALSE, alone + wrong, "count", pairs, (alone + wrong,) * 2, detail=detail))
        if DRAWN in wanted:
            total, detail = 0, {}
            for first, name in ((0, "seen"), (DRAWINGS, "held out")):
                merged, kept, planted = merged_drawings(first, temporary)
                total += merged
                detail |= {f"{name}: merged": merged, f"{name}: planted": planted, f"{name}: found": kept}
            records.append(made(DRAWN, total, "count", 2 * DRAWINGS, (total, total), detail=detail))
        for size, metric in zip(SIZES, SCALE, strict=True):
            if metric in wanted:
                result = scale(size, temporary)
                print(f"{size} rows: {result}", file=sys.stderr)
                for what, unit in (("seconds", "s CPU"), ("pss_gb", "GB"), ("missed", "count"), ("false", "count")):
                    value = result[what]
                    count = result["planted"] if what == "missed" else size
                    command = f"python benchmarks/preprocess.py --photos FOLDER --only {metric}"
                    records.append(made(f"{metric}_{what}", value, unit, int(count), (value, value), command=command))
        record.write(RESULTS, records)


def made(
    metric: str,
    value: float,
    unit: str,
    n: int,
    spread: tuple[float, float],
    detail: dict[str, Any] | None = None,
    command: str | None = None,
) -> record.Record:
    """A record of this file, with the details of its value."""
    command = command or f"python benchmarks/preprocess.py --photos FOLDER --only {metric}"
    item = record.record(metric, value, unit, n=n, spread=spread, command=command, commit=record.head())
    return {**item, **({"detail": detail} if detail else {})}


if __name__ == "__main__":
    main()

"""Files under small corpora of every kind that are neither read nor counted, compared with a plain walk.

    python benchmarks/preprocess_cases.py --cases FOLDER            # half a minute

Each subfolder of FOLDER is a corpus (its folder `s` where it has one), or the input of the stage that its name begins with. One
more is made: links to a folder, to a file, to nothing, and a loop. `ingest` runs over each in one process. What its report says is
read, lies beside what is read, or is not read must sum to the files that a walk finds, and its rows to those that came in; all the
files of a corpus that is refused count. Nothing is fetched: every host of a table of URLs is unknown here.
Writes benchmarks/results/preprocessing.json.

    preprocess_unaccounted_files    files beyond the account, of all corpora; n is the number of corpora
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import record

from realcustom.errors import UsageError
from realcustom.pipeline.recipes import sprites
from realcustom.preprocessing.catalogue import ENCODE, INGEST
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import EncodeSettings, ExecutionSettings, IngestSettings, PreprocessSettings
from realcustom.sprites import ZOO

METRIC = "preprocess_unaccounted_files"
COLUMNS = {"cc3m": ("caption", "url")}  # of tables without a header, which nobody can guess


def walked(folder: Path) -> int:
    """Files, and links of any kind, under a folder; none that is behind a link."""
    found = 0
    for top, folders, files in os.walk(folder):
        found += len(files) + sum(os.path.islink(os.path.join(top, name)) for name in folders)
    return found


def with_links(folder: Path, picture: bytes) -> Path:
    """A folder with links, and beside it what they lead to."""
    source, elsewhere = folder / "links", folder / "elsewhere"
    source.mkdir()
    elsewhere.mkdir()
    for path in (source / "a.jpg", elsewhere / "b.jpg"):
        path.write_bytes(picture)
    (source / "again.jpg").symlink_to(source / "a.jpg")
    (source / "other.jpg").symlink_to(elsewhere / "b.jpg")
    (source / "gone.jpg").symlink_to(folder / "nothing")
    (source / "loop").symlink_to(source)
    return source


def unaccounted(case: Path, output: str) -> dict[str, Any]:
    """Files of a corpus beyond its account, and what the report says."""
    source = case / "s" if (case / "s").is_dir() else case
    settings = PreprocessSettings(
        ingest=IngestSettings(columns=COLUMNS.get(case.name, ())),
        execution=ExecutionSettings(max_error_fraction=1.0, attempts=1),
    )
    try:
        report = run_stage(INGEST, str(source), output, settings, executor=InProcess()).report
    except UsageError as error:
        return {"unaccounted": walked(source), "refused": str(error).replace(str(case), case.name)}
    not_read = sum(number for kind, number in report["not_read"].items() if kind != "first")
    rows = report["kept"] + sum(report["dropped"].values()) + sum(report["quarantined"].values())
    if rows != report["in"]:
        raise RuntimeError(f"{case.name}: {report['in']} rows came in, {rows} are in the report")
    files = {**report["files"], "not read": not_read}
    return {"unaccounted": abs(walked(source) - sum(files.values())), **files, "rows": rows, "kept": report["kept"]}


def encoded(case: Path, output: str) -> dict[str, Any]:
    """Records that `encode` neither kept nor excluded."""
    recipe = sprites()
    encode = EncodeSettings(base=str(ZOO / "pipeline"), image_encoder=str(ZOO / "image_encoder"), resolution=32)
    result = run_stage(
        ENCODE, str(case), output, PreprocessSettings(encode=encode), method=recipe.method, executor=InProcess()
    )
    rows = sum(pq.read_metadata(path).num_rows for path in case.glob("*.parquet"))
    excluded = sum(result.report["dropped"].values()) + sum(result.report["quarantined"].values())
    return {"unaccounted": abs(rows - result.report["kept"] - excluded), "rows": rows, "kept": result.report["kept"]}


def main(arguments: Sequence[str]) -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--dry", action="store_true", help="write no record")
    options = parser.parse_args(arguments)
    nobody = socket.gaierror(socket.EAI_NONAME, "nobody is asked")
    with tempfile.TemporaryDirectory(prefix="realcustom-cases-") as place:
        # outside the folder: what a run writes is no part of it
        folders = sorted(path for path in options.cases.iterdir() if path.is_dir())
        cases = [shutil.copytree(folder, Path(place) / "cases" / folder.name) for folder in folders]
        cases.append(with_links(Path(place), next(options.cases.rglob("*.jpg")).read_bytes()))
        detail = {}
        with mock.patch("socket.getaddrinfo", side_effect=nobody):
            for case in cases:
                measure = encoded if case.name.startswith("encode") else unaccounted
                detail[case.name] = measure(case, f"{place}/out")
                print(case.name, detail[case.name], file=sys.stderr, flush=True)
    value = sum(found["unaccounted"] for found in detail.values())
    command = "python benchmarks/preprocess_cases.py --cases FOLDER"
    item = record.record(METRIC, value, "count", n=len(cases), command=command, commit=record.head())
    print(f"{METRIC}: {value} of {len(cases)} corpora", file=sys.stderr)
    if not options.dry:
        record.write(record.RESULTS / "preprocessing.json", [{**item, "detail": detail}])


if __name__ == "__main__":
    main(sys.argv[1:])

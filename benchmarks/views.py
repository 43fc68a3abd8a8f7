"""Precision and recall of the stage `views` on drawn pictures, against the identities that were drawn; or on photographs.

    python benchmarks/views.py [--pictures 600] [--encoder sprites/zoo/image_encoder]
    python benchmarks/views.py --only-record            # about 5 minutes; writes benchmarks/results/preprocessing.json
    python benchmarks/views.py --photos FOLDER [--encoder facebook/dinov2-base]    # a subfolder for each subject

The corpus has three pictures of each subject; `subjects` finds them with the zoo's models, what it knows of views is taken away,
and `views` looks for them. Two records are truly views if noun, both colours and pattern agree and they are of two pictures.
Of photographs the whole picture is the crop and all have one word, so that every subject is compared with every other.
Precision: the share of the links that are; recall: the share of the true pairs that are linked. A Markdown table by
`views.min_similarity` and `views.max_similarity`.

    preprocess_views_precision      of the drawn corpus at views.min_similarity=0.9, as docs/preprocessing/views.md advises for
                                    this encoder; `detail` has the recall, and both at the default
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import record as benchmark_record
import torch
from PIL import Image

from realcustom import record
from realcustom.pipeline.quickstart.truth import read_truth
from realcustom.pipeline.recipes import sprites
from realcustom.pipeline.stages import run_stages
from realcustom.preprocessing import tables
from realcustom.preprocessing.catalogue import CHAIN, ENCODE, VIEWS
from realcustom.preprocessing.run import InProcess, run_stage
from realcustom.preprocessing.settings import PreprocessSettings, ViewsSettings
from realcustom.sprites import ZOO
from realcustom.sprites.corpus import CorpusSettings, write_corpus

ADVISED = 0.9  # views.min_similarity for the shipped encoder
SIMILARITIES = (0.8, 0.85, 0.9, 0.95)
COPIES = (0.98, 0.995, 1.01)  # the last: nothing is a copy
IDENTITY = ("noun", "body", "second", "pattern")
Identities = Mapping[str, tuple[str, ...]]  # by the picture's uid


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--encoder", default=str(ZOO / "image_encoder"))
    parser.add_argument("--only-record", action="store_true", help="measure only what is recorded, and record it")
    options = parser.parse_args()
    if options.only_record and options.photos is not None:
        parser.error("--only-record is of the drawn corpus")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="realcustom-views-") as folder:
        root = Path(folder)
        made = make_records(root, options.pictures) if options.photos is None else from_photos(root, options.photos)
        records, truth = made
        if options.only_record:
            record_precision(records, root / "out", options.encoder, truth)
            return
        print("| `min_similarity` | `max_similarity` | precision | recall | links |\n|---|---|---|---|---|")
        for low, high in itertools.product(SIMILARITIES, COPIES):
            views = ViewsSettings(encoder=options.encoder, min_similarity=low, max_similarity=high)
            precision, recall, links = measure(records, root / "out", views, truth)
            print(f"| {low} | {high} | {precision:.3f} | {recall:.3f} | {links} |", flush=True)


def record_precision(records: str, output: Path, encoder: str, truth: Identities) -> None:
    """Measure at the similarity that is advised and at the default, and write the record of the first."""
    found = {}
    for low in (ADVISED, ViewsSettings().min_similarity):
        precision, recall, links = measure(records, output, ViewsSettings(encoder=encoder, min_similarity=low), truth)
        found[low] = {"precision": round(precision, 4), "recall": round(recall, 4), "links": links}
    value, links = found[ADVISED]["precision"], int(found[ADVISED]["links"])
    item = benchmark_record.record(
        "preprocess_views_precision",
        value,
        "precision",
        n=links,
        spread=benchmark_record.wilson(value, links),
        command="python benchmarks/views.py --only-record",
        commit=benchmark_record.head(),
    )
    detail = {f"min_similarity {low}": values for low, values in found.items()}
    print(item["value"], detail)
    benchmark_record.write(benchmark_record.RESULTS / "preprocessing.json", [{**item, "detail": detail}])


def from_photos(root: Path, photos: Path) -> tuple[str, Identities]:
    """Records of whole photographs, and the subfolder that each came from."""
    files = sorted(path for path in photos.glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    uids = [record.picture_uid(path.relative_to(photos).as_posix()) for path in files]
    sizes = [Image.open(path).size for path in files]
    columns: dict[str, list[Any]] = {
        "uid": [record.record_uid(uid, "thing", 0) for uid in uids],
        "parent_uid": uids,
        "sha256": [bytes(32)] * len(files),
        "image": [path.read_bytes() for path in files],
        "width": [size[0] for size in sizes],
        "height": [size[1] for size in sizes],
        "caption": ["a thing"] * len(files),
        "caption_source": ["word"] * len(files),
        "target_word": ["thing"] * len(files),
        "target_start": [2] * len(files),
        "target_end": [7] * len(files),
        "view_uids": [[]] * len(files),
    }
    (root / "records").mkdir()
    (root / "records" / "photos.parquet").write_bytes(tables.to_parquet(tables.record_table(columns, {})))
    return str(root / "records"), {uid: (path.parent.name,) for uid, path in zip(uids, files, strict=True)}


def make_records(root: Path, pictures: int) -> tuple[str, Identities]:
    """Records of drawn pictures without views, and the truth by the pictures' uids."""
    write_corpus(root / "corpus", CorpusSettings(pictures=pictures, per_shard=300, corrupted=0))
    source = str(root / "corpus" / "shards")
    for stage in CHAIN:
        if stage is ENCODE:
            break
        *_, source = run_stages([stage], source, str(root / "stages"), sprites(), local=True)
    blind = root / "blind"
    blind.mkdir()
    for file in sorted(Path(source).glob("*.parquet")):
        table = pq.read_table(file)
        none = pa.array([[]] * table.num_rows, pa.list_(pa.string()))
        table = tables.with_column(table, record.SCHEMA.field("view_uids"), none)
        (blind / file.name).write_bytes(tables.to_parquet(table))
    truth = read_truth(str(root / "corpus"))
    return str(blind), {uid: tuple(row[name] for name in IDENTITY) for uid, row in truth.items()}


def measure(records: str, output: Path, views: ViewsSettings, truth: Identities) -> tuple[float, float, int]:
    """Precision, recall, and the number of links in one direction."""
    settings = PreprocessSettings(views=views)
    directory = run_stage(VIEWS, records, str(output), settings, executor=InProcess()).directory
    table = pa.concat_tables(pq.read_table(file) for file in sorted(Path(directory).glob("*.parquet")))
    rows = table.select(["uid", "parent_uid", "view_uids"]).to_pylist()
    identities = {row["uid"]: truth[row["parent_uid"]] for row in rows}
    links = {frozenset((row["uid"], other)) for row in rows for other in row["view_uids"]}
    by_identity: dict[tuple[str, ...], list[str]] = {}
    for uid, identity in identities.items():
        by_identity.setdefault(identity, []).append(uid)
    true = {frozenset(pair) for uids in by_identity.values() for pair in itertools.combinations(uids, 2)}
    return len(links & true) / max(1, len(links)), len(links & true) / max(1, len(true)), len(links)


if __name__ == "__main__":
    main()

"""What a photograph costs a CPU in the stages with models beside the models: decoding, scaling, compressing, reading, writing.

    python benchmarks/beside_models.py --photos FOLDER            # a minute of one core

Nothing is drawn and no model is run: the image processors are those of the models that the recipe `photos_sd15` names, as their
public configurations have them. Photographs are taken as they are; the subject is the ellipse in the middle half of each, with one
record. A unit of all of them is read and written once for each stage, in memory. CPU milliseconds of one thread a photograph,
the median of three rounds. Writes benchmarks/results/preprocessing.json.

    preprocess_beside_ms_STAGE      `detail` has its parts
    preprocess_png_ratio            bytes of the cut-outs at the level of compression that `subjects` takes over those at zlib's
                                    usual 6; `detail` has kB and milliseconds a cut-out by level
"""

from __future__ import annotations

import argparse
import hashlib
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import record
import torch
from transformers import (
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    GroundingDinoImageProcessorPil,
    SamImageProcessorPil,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)

from realcustom.cells import decode_mask, encode_mask
from realcustom.pixels import subject_crop
from realcustom.preprocessing import tables
from realcustom.preprocessing.pictures import decode, sharpness, to_png
from realcustom.preprocessing.settings import ScoreSettings
from realcustom.reference import cut_out

ROUNDS = 3
COMMAND = "python benchmarks/beside_models.py --photos FOLDER"
RESOLUTION = 512  # of the latents
FEATURES = 2 * (4 * 64 * 64 + 77 * 768 + 256 * 1024)  # bytes of a record's caches in float16: latents, text, image


class Photo:
    """A photograph in the forms that the parts take it in."""

    def __init__(self, data: bytes):
        self.data = data
        self.picture = decode(data)
        height, width = self.picture.height, self.picture.width
        y, x = np.ogrid[:height, :width]
        self.mask = (x / width - 0.5) ** 2 + (y / height - 0.5) ** 2 < 1 / 16
        self.cell = encode_mask(self.mask)
        self.cut = cut_out(self.picture, self.mask)


def parts() -> dict[str, dict[str, Callable[[Photo], object]]]:
    """Stage -> part -> its work on one photograph."""
    side = ScoreSettings().sharpness_side
    clip, vit, siglip, blip = (
        CLIPImageProcessorPil(),
        ViTImageProcessorPil(),
        SiglipImageProcessorPil(),
        BlipImageProcessorPil(),
    )
    dino, sam = GroundingDinoImageProcessorPil(), SamImageProcessorPil()

    def decoded(photo: Photo) -> object:
        return decode(photo.data)

    def detected(photo: Photo) -> object:
        size = {"height": 800, "width": 1067}  # as the stage makes it of a 4:3 picture
        size = size if photo.picture.width >= photo.picture.height else {"height": 1067, "width": 800}
        size = {"height": 800, "width": 800} if photo.picture.width == photo.picture.height else size
        return dino([photo.picture], pad_size=size, return_tensors="pt")

    return {
        "score": {
            "decode": decoded,
            "sharpness": lambda photo: sharpness(decode(photo.data, draft_side=side), side),
            "CLIP's processor": lambda photo: clip([photo.picture], return_tensors="pt"),
            "two classifiers' processors": lambda photo: (
                vit([photo.picture], return_tensors="pt"),
                siglip([photo.picture], return_tensors="pt"),
            ),
        },
        "caption": {"decode": decoded, "BLIP's processor": lambda photo: blip([photo.picture], return_tensors="pt")},
        "subjects": {
            "decode": decoded,
            "Grounding DINO's processor": detected,
            "SAM's processor": lambda photo: sam([photo.picture], return_tensors="pt"),
            "mask to run lengths": lambda photo: encode_mask(photo.mask),
            "cut-out and PNG": lambda photo: to_png(cut_out(photo.picture, photo.mask)),
        },
        "encode": {
            "decode": decoded,
            "mask from run lengths": lambda photo: decode_mask(photo.cell),
            "square": lambda photo: subject_crop(photo.picture, photo.mask, (RESOLUTION, RESOLUTION)),
            "CLIP's processor": lambda photo: clip([photo.picture], return_tensors="pt"),
        },
    }


def read_and_written(photos: Sequence[Photo], with_cut: bool, with_features: bool) -> float:
    """Milliseconds a photograph of reading a unit's table and of writing one, its hash included."""
    columns: dict[str, pa.Array] = {"image": pa.array([photo.data for photo in photos], pa.large_binary())}
    source = tables.to_parquet(pa.table(columns))
    if with_cut:
        columns["cut"] = pa.array([to_png(photo.cut) for photo in photos], pa.large_binary())
    if with_features:
        values = np.random.default_rng(0).normal(size=FEATURES // 2).astype(np.float16).tobytes()
        columns["features"] = pa.array([values] * len(photos), pa.large_binary())
    rows = pa.table(columns)
    begun = time.process_time()
    tables.from_parquet(source)
    hashlib.sha256(tables.to_parquet(rows)).hexdigest()
    return (time.process_time() - begun) / len(photos) * 1000


def by_level(photos: Sequence[Photo]) -> record.Record:
    """Size and time of the cut-outs at some levels of compression."""
    detail = {}
    for level in (1, 2, 3, 6, 9):
        begun, size = time.process_time(), 0
        for photo in photos:
            buffer = io.BytesIO()
            photo.cut.save(buffer, "PNG", compress_level=level)
            size += len(buffer.getvalue())
        taken = (time.process_time() - begun) / len(photos) * 1000
        detail[f"level {level}"] = {"kB": round(size / len(photos) / 1e3, 1), "ms": round(taken, 1)}
    own = sum(len(to_png(photo.cut)) for photo in photos) / len(photos) / 1e3
    ratio = own / detail["level 6"]["kB"]
    item = record.record("preprocess_png_ratio", ratio, "ratio", n=len(photos), command=COMMAND, commit=record.head())
    return {**item, "detail": detail}


def milliseconds(work: Callable[[Photo], object], photos: Sequence[Photo]) -> float:
    """CPU of this thread a photograph."""
    work(photos[0])
    begun = time.process_time()
    for photo in photos:
        work(photo)
    return (time.process_time() - begun) / len(photos) * 1000


def main(arguments: Sequence[str]) -> None:
    """Measure and write the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of folders of photographs")
    parser.add_argument("--dry", action="store_true", help="write no record")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    photos = [Photo(path.read_bytes()) for path in sorted(options.photos.glob("*/*.jpg"))[::2]]
    records = [by_level(photos)]
    print(f"preprocess_png_ratio: {records[0]['value']:.3f} {records[0]['detail']}", file=sys.stderr, flush=True)
    for stage, works in parts().items():
        rounds = []
        for _ in range(ROUNDS):
            taken = {name: milliseconds(work, photos) for name, work in works.items()}
            taken["reading and writing"] = read_and_written(photos, stage in ("subjects", "encode"), stage == "encode")
            rounds.append(taken)
        detail = {name: round(statistics.median(taken[name] for taken in rounds), 2) for name in rounds[0]}
        totals = [sum(taken.values()) for taken in rounds]
        value = statistics.median(totals)
        print(f"preprocess_beside_ms_{stage}: {value:.1f} {detail}", file=sys.stderr, flush=True)
        item = record.record(
            f"preprocess_beside_ms_{stage}",
            value,
            "ms CPU",
            n=len(photos),
            spread=(min(totals), max(totals)),
            command=COMMAND,
            commit=record.head(),
        )
        records.append({**item, "detail": detail})
    if not options.dry:
        record.write(record.RESULTS / "preprocessing.json", records)


if __name__ == "__main__":
    main(sys.argv[1:])

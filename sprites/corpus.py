"""The world as an image-text corpus: webdataset shards of any size, and their ground truth.

`FOLDER/shards/shard-00000.tar` holds `000000.jpg`, `000000.txt` (the caption) and `000000.json` (which pictures are
known to show the same subject); `FOLDER/truth.parquet` holds the ground truth, which only a judge may read. Also used
for tests of throughput:

    python -m realcustom.sprites.corpus FOLDER --pictures 1000000 --per-shard 10000    # folder or s3:// URI
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import io
import itertools
import json
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from realcustom import record, storage
from realcustom.errors import UsageError
from realcustom.sprites.world import Drawing, Scene, Split, draw, is_held_out, scene


class Corruption(enum.Enum):
    """The deliberate corruption of a picture of a corpus."""

    TRUNCATED_JPEG = "truncated_jpeg"
    TORN_TAR = "torn_tar"  # the shard ends in the middle of this sample
    EXACT_DUPLICATE = "exact_duplicate"
    NEAR_DUPLICATE = "near_duplicate"  # the same drawing, compressed more
    TINY_IMAGE = "tiny_image"
    EMPTY_CAPTION = "empty_caption"  # not an error: it is kept and captioned


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """Size and content of a corpus."""

    pictures: int = 240
    per_shard: int = 48
    views: int = 3  # consecutive pictures of the same subject
    second: float = 0.0  # probability of a second subject
    first: int = 0  # index of the first scene
    corrupted: int = 2  # pictures corrupted in each way (one torn shard at most)
    leave_out: bool = False  # show no noun on a background and at a place that `world.is_held_out` names
    split: Split = Split.CORPUS

    def __post_init__(self) -> None:
        for name in ("pictures", "per_shard", "views"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture as stored in a shard."""

    scene: Scene
    drawing: Drawing
    jpeg: bytes
    caption: str
    view_group: str
    corruption: Corruption | None = None


def write_corpus(folder: str | Path, settings: CorpusSettings) -> dict[str, int]:
    """Write shards and truth below `folder`; the same settings give the same bytes.

    Returns:
        The number of pictures corrupted in each way, by name, and `pictures`: the number of all.
    """
    samples, counts = _samples(settings), dict.fromkeys(("pictures", *(kind.value for kind in Corruption)), 0)
    if settings.corrupted:
        samples = _corrupt_some(samples, settings)
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, _TRUTH) as truth:
        # memory holds one shard at a time, and the truth so far
        for number, chunk in enumerate(iter(lambda: list(itertools.islice(samples, settings.per_shard)), [])):
            name = f"shard-{number:05d}.tar"
            storage.write_bytes(storage.join(folder, "shards", name), _shard(chunk))
            rows = [_truth(name, f"{i:06d}", sample) for i, sample in enumerate(chunk)]
            truth.write_table(pa.Table.from_pylist(rows, schema=_TRUTH))
            counts["pictures"] += len(chunk)
            for sample in chunk:
                if sample.corruption is not None:
                    counts[sample.corruption.value] += 1
    storage.write_bytes(storage.join(folder, "truth.parquet"), buffer.getvalue())
    return counts


def read_picture(folder: str | Path, key: str) -> bytes:
    """The encoded bytes of the picture `key` (`shard-00000.tar/000031.jpg`) of a corpus, corrupted or not."""
    shard, _, name = key.partition("/")
    data = storage.read_bytes(storage.join(folder, "shards", shard))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:  # in order, so that members before a tear can be read
            if member.name == name:
                file = tar.extractfile(member)
                assert file is not None, f"{key} is not a file"
                return file.read()
    raise UsageError(f"no picture {key} in {folder}")


def jpeg_bytes(image: np.ndarray, quality: int = 95) -> bytes:
    """A picture, uint8 (H, W, 3), as JPEG without colour subsampling."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _samples(settings: CorpusSettings) -> Iterator[Sample]:
    scenes = ((index, _scene(index, settings)) for index in itertools.count(settings.first))
    kept = ((index, item) for index, item in scenes if not (settings.leave_out and _is_held_out(item)))
    for index, item in itertools.islice(kept, settings.pictures):
        drawing = draw(item)
        group = f"{settings.split.name.lower()}-{index // settings.views}"
        yield Sample(
            scene=item, drawing=drawing, jpeg=jpeg_bytes(drawing.image), caption=item.caption, view_group=group
        )


def _scene(index: int, settings: CorpusSettings) -> Scene:
    return scene(settings.split, index, views=settings.views, second=settings.second)


def _is_held_out(item: Scene) -> bool:
    return any(is_held_out(placed.identity.noun, item.background, placed.place) for placed in item.subjects)


def _corrupt_some(samples: Iterator[Sample], settings: CorpusSettings) -> Iterator[Sample]:
    """Corrupt pictures spread over the corpus; duplicates are added, the rest is changed in place."""
    in_place = (Corruption.TRUNCATED_JPEG, Corruption.TINY_IMAGE, Corruption.EMPTY_CAPTION)
    last = settings.pictures - 1
    spots = np.random.default_rng(settings.first).permutation(last)[: settings.corrupted * 5]
    kinds = dict(
        zip(
            spots.tolist(),
            [*in_place, Corruption.EXACT_DUPLICATE, Corruption.NEAR_DUPLICATE] * settings.corrupted,
            strict=False,
        )
    )
    duplicates: list[Sample] = []
    for index, sample in enumerate(samples):
        kind = kinds.get(index)
        if index == last:
            yield from duplicates
            yield dataclasses.replace(sample, corruption=Corruption.TORN_TAR)
        elif kind in in_place:
            yield _corrupted(sample, kind)
        else:
            yield sample
            if kind is not None:
                duplicates.append(_corrupted(sample, kind))


def _corrupted(sample: Sample, kind: Corruption) -> Sample:
    jpeg, caption = sample.jpeg, sample.caption
    if kind is Corruption.TRUNCATED_JPEG:
        jpeg = jpeg[: len(jpeg) * 3 // 5]
    elif kind is Corruption.NEAR_DUPLICATE:
        jpeg = jpeg_bytes(sample.drawing.image, quality=75)
    elif kind is Corruption.TINY_IMAGE:
        jpeg = jpeg_bytes(np.ascontiguousarray(sample.drawing.image[::4, ::4]))
    elif kind is Corruption.EMPTY_CAPTION:
        caption = ""
    return dataclasses.replace(sample, jpeg=jpeg, caption=caption, corruption=kind)


def _shard(samples: list[Sample]) -> bytes:
    buffer = io.BytesIO()
    torn_at = None
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for index, sample in enumerate(samples):
            meta = json.dumps({"view_group": sample.view_group}).encode()
            members = {"jpg": sample.jpeg, "json": meta, "txt": sample.caption.encode()}
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{index:06d}.{suffix}")
                info.size = len(data)
                if sample.corruption is Corruption.TORN_TAR and suffix == "jpg":
                    torn_at = buffer.tell() + 512 + len(data) // 2
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()[:torn_at]


_TRUTH = pa.schema(
    [
        ("uid", pa.string()),
        ("key", pa.string()),
        ("caption", pa.string()),
        ("noun", pa.string()),
        ("background", pa.string()),
        ("place", pa.string()),
        ("body", pa.string()),
        ("second", pa.string()),
        ("pattern", pa.string()),
        ("box", pa.list_(pa.int32(), 4)),
        ("mask", pa.binary()),  # SIZE x SIZE bits, row-major, numpy.packbits
        ("corruption", pa.string()),
    ]
)


def _truth(shard: str, key: str, sample: Sample) -> dict[str, object]:
    first = sample.scene.subjects[0]
    return {
        "uid": record.picture_uid(f"{shard}/{key}.jpg"),
        "key": f"{shard}/{key}.jpg",
        "caption": sample.scene.caption,
        "noun": first.identity.noun,
        "background": sample.scene.background,
        "place": first.place,
        "body": first.identity.body,
        "second": first.identity.second,
        "pattern": first.identity.pattern,
        "box": list(sample.drawing.boxes[0]),
        "mask": np.packbits(sample.drawing.masks[0]).tobytes(),
        "corruption": None if sample.corruption is None else sample.corruption.value,
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line of this file."""
    plain = CorpusSettings()
    parser = argparse.ArgumentParser(
        prog="python -m realcustom.sprites.corpus", description="Draw an image-text corpus."
    )
    parser.add_argument("folder", help="a folder or s3:// URI; gets shards/ and truth.parquet")
    parser.add_argument("--pictures", type=int, default=plain.pictures)
    parser.add_argument("--per-shard", type=int, default=plain.per_shard)
    parser.add_argument("--views", type=int, default=plain.views, help="consecutive pictures of the same subject")
    parser.add_argument("--second", type=float, default=plain.second, help="probability of a second subject")
    parser.add_argument(
        "--first", type=int, default=plain.first, help="index of the first scene: others for other pictures"
    )
    parser.add_argument("--corrupted", type=int, default=0, help="pictures corrupted in each way")
    options = vars(parser.parse_args(arguments))
    counts = write_corpus(options.pop("folder"), CorpusSettings(**options))
    print(", ".join(f"{name} {number}" for name, number in counts.items() if number), file=sys.stderr)


if __name__ == "__main__":
    main()

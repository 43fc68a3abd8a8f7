"""The training record: what preprocessing writes and training reads. The only definition of its schema.

One row per subject. Each field is explained beside it; a user's own Parquet table in this schema can be used instead of
one that our stages wrote.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from realcustom.errors import UsageError

# A cached tensor: raw little-endian values, row-major.
TENSOR = pa.struct([("data", pa.large_binary()), ("shape", pa.list_(pa.int32())), ("dtype", pa.string())])
# COCO run-length encoding in picture coordinates: size = (height, width), counts = the compressed string.
MASK = pa.struct([("size", pa.list_(pa.int32(), 2)), ("counts", pa.binary())])
SCORE_NAMES = ("detection", "segmentation", "aesthetic", "image_text", "nsfw", "watermark", "sharpness")
SCORES = pa.struct([(name, pa.float32()) for name in SCORE_NAMES])  # null = not computed

SCHEMA = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field("parent_uid", pa.string(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("image", pa.large_binary()),  # encoded bytes; null where latents are cached and pictures not kept
        pa.field("width", pa.int32(), nullable=False),  # pixels, after EXIF orientation
        pa.field("height", pa.int32(), nullable=False),
        pa.field("alt_text", pa.string()),
        pa.field("synthetic_caption", pa.string()),
        pa.field("caption", pa.string(), nullable=False),
        pa.field(
            "caption_source", pa.dictionary(pa.int8(), pa.string()), nullable=False
        ),  # alt_text | synthetic | word
        pa.field("target_word", pa.string(), nullable=False),
        pa.field("target_start", pa.int32(), nullable=False),  # character span in `caption`
        pa.field("target_end", pa.int32(), nullable=False),
        pa.field("subject_image", pa.large_binary()),  # PNG, cut out on white
        pa.field("subject_mask", MASK),
        pa.field("subject_box", pa.list_(pa.float32(), 4)),  # x0 y0 x1 y1, pixels
        pa.field("view_uids", pa.list_(pa.string())),  # other views of the same subject; empty where unknown
        pa.field("scores", SCORES),
        pa.field("latents", TENSOR),
        pa.field("text_features", TENSOR),
        pa.field("image_features", TENSOR),
    ]
)
# Beside the latter where the base is SDXL-shaped: the pooled text of the caption.
POOLED = pa.field("pooled_text", TENSOR)


def picture_uid(key: str) -> str:
    """uid of a picture: hash of its source-relative key (`shard-00012.tar/000031.jpg`), 32 hex digits."""
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def record_uid(parent_uid: str, phrase: str, index: int) -> str:
    """uid of a record: hash of the picture's uid, the phrase and the subject's index among that phrase's."""
    return hashlib.sha256(f"{parent_uid}\0{phrase}\0{index}".encode()).hexdigest()[:32]


def picture_ranks(parent_uids: pa.Array) -> np.ndarray:
    """A number in [0, 1) of each picture, a hash of its uid, (n,): training holds out the pictures of the least."""
    blake2b = hashlib.blake2b
    uids = parent_uids.cast(pa.binary()).to_pylist()
    digests = b"".join([blake2b(b"validation/" + uid, digest_size=8).digest() for uid in uids])
    ranks: np.ndarray = (np.frombuffer(digests, "<u8") >> 11) / 2**53
    return ranks


def check_schema(schema: pa.Schema) -> None:
    """Raise UsageError that names the first field by which `schema` is not that of a training record."""
    for field in SCHEMA:
        if field.name not in schema.names:
            raise UsageError(f"not a table of training records: the column '{field.name}' is missing")
        actual = schema.field(field.name).type
        if actual != field.type:
            raise UsageError(f"not a table of training records: '{field.name}' is {actual}, expected {field.type}")

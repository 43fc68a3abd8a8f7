"""Daft: read, decode to RGB (a picture that does not decode gives null), size, 64-bit DCT hash; its own expressions."""

import sys

import daft
from daft.functions import decode_image, download, image_hash, image_height, image_width

files = sys.argv[1:]
frame = daft.from_pydict({"path": files}).with_column(
    "image", decode_image(download(daft.col("path")), on_error="null")
)
image = daft.col("image")
found = frame.select(image_width(image).alias("width"), image_height(image).alias("height"), image_hash(image))
print(sum(width is not None for width in found.to_pydict()["width"]))

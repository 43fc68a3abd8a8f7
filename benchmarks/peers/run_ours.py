"""This project: read, decode to the last byte and size, hash five views with 64 and 256 bits; what `ingest` does."""

import sys
from pathlib import Path

from realcustom.preprocessing.hashes import BASE_SIDE, signature
from realcustom.preprocessing.pictures import decode_with_size
from realcustom.preprocessing.settings import IngestSettings

limit, done = IngestSettings().max_pixels, 0
for path in sys.argv[1:]:
    picture, _ = decode_with_size(Path(path).read_bytes(), limit, draft_side=BASE_SIDE)
    signature(picture)
    done += 1
print(done)

"""This project: read, check and size (ingest), decode and hash five views with 64 and 256 bits (score)."""

import sys
from pathlib import Path

from preprocessing.hashes import signature
from preprocessing.pictures import check, decode
from preprocessing.settings import IngestSettings, ScoreSettings

limit, side, done = IngestSettings().max_pixels, ScoreSettings().sharpness_side, 0
for path in sys.argv[1:]:
    data = Path(path).read_bytes()
    check(data, max_pixels=limit)
    signature(decode(data, draft_side=side))
    done += 1
print(done)

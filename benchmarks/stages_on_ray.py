"""Ingest, score and select without neural scores at their defaults, on the embedded Ray of the command line.

python benchmarks/stages_on_ray.py SHARDS OUTPUT [--local]
"""

from __future__ import annotations

import contextlib
import sys

from realcustom.pipeline.cluster import connected
from realcustom.preprocessing.catalogue import INGEST, SCORE, SELECT
from realcustom.preprocessing.run import InProcess, OnRay, run_stage
from realcustom.preprocessing.settings import PreprocessSettings


def main(place: str, output: str, local: bool) -> None:
    """Prints the last stage's directory."""
    with contextlib.ExitStack() as stack:
        for stage in (INGEST, SCORE, SELECT):
            place = run_stage(
                stage,
                place,
                output,
                PreprocessSettings(),
                executor=InProcess() if local else OnRay(lambda: stack.enter_context(connected("local"))),
            ).directory
    print(place)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:] == ["--local"])

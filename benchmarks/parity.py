"""What the released RealCustom++ code computes, and what this library computes from the same numbers.

    pip install einops
    git clone https://github.com/bytedance/RealCustom FOLDER
    python benchmarks/parity.py FOLDER

The release's own functions are imported from FOLDER and run on random tensors and on tiny models with random weights;
none of its code is here. A difference is the largest one of a comparison, relative to the release's largest value, in
millionths. The whole step is the release's order of calls (its UNet, mask, guidance and solver, written here from the
order in its pipeline) against a call of `RealCustomPipeline` with the preset `released_sdxl`, to the last latents.

Left out: the image encoders, which need timm and downloaded weights: both sides get the same features.

Writes benchmarks/results/parity.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import record

sys.path.append(str(record.ROOT))  # the tests are not installed

import parity_parts as parts
import parity_step
from parity_release import Release

RESULTS = record.RESULTS / "parity.json"

Comparison = Callable[[Release], list[float]]

COMPARISONS: dict[str, tuple[Comparison, str]] = {
    "mask": (parts.masks, "influence masks: norms, top-k and threshold, binary"),
    "guidance": (parts.guidance, "guidance: five modes of the release"),
    "projector": (parts.projectors, "projectors, deep and shallow"),
    "word_search": (parts.word_search, "tokens of target words; a difference of 1e6 is another set of tokens"),
    "solver": (parts.solver, "solver: what each of 10, 25 and 30 steps leaves behind"),
    "timesteps": (parts.timesteps, "timesteps of 1 to 50 steps"),
    "converter": (parity_step.converter, "weights of the release's UNet through the converter"),
    "text": (parity_step.text, "text features and pooled text"),
    "whole_step": (parity_step.whole_step, "latents and masks of each of six whole steps"),
}


def main() -> None:
    """Compare, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="a checkout of the released repository")
    parser.add_argument("--no-record", action="store_true", help="only print")
    arguments = parser.parse_args()
    command, commit = "python benchmarks/parity.py FOLDER", record.head()
    warnings.filterwarnings("ignore", message="User provided device_type of 'cuda'")  # the release's autocast, on a CPU
    records = []
    with tempfile.TemporaryDirectory() as scratch:
        release = Release(arguments.folder.resolve(), Path(scratch))
        for name, (compare, what) in COMPARISONS.items():
            found = [1e6 * difference for difference in compare(release)]
            print(f"{name:12} {max(found):12.4f} millionths at most, of {len(found):3}: {what}", file=sys.stderr)
            spread = (min(found), max(found))
            records.append(
                record.record(
                    f"parity_{name}",
                    max(found),
                    "millionths",
                    n=len(found),
                    spread=spread,
                    command=command,
                    commit=commit,
                )
            )
    if not arguments.no_record:
        record.write(RESULTS, records)


if __name__ == "__main__":
    main()

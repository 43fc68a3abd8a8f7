"""Training with cached features against training that computes them at each use, with the shipped models of sprites.

python benchmarks/training_speed.py FOLDER STEPS PAIRS    # prints one line of JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from training_sprites import paired, prepare

from realcustom.training.run import TrainResult, train


def cached_vs_online(folder: Path, steps: int, pairs: int) -> dict[str, list[float]]:
    """Images a second with caches over those without, of each pair; and with caches, the share of waiting for data.

    The second half of a run's steps counts.
    Raises AssertionError where the two do not have the same losses (1e-3).
    """
    run = prepare(folder, steps=steps, num_workers=1, log_every=steps // 2, memory_gib=0.0)  # nothing is kept
    results: dict[tuple[str, int], TrainResult] = {}

    def trained(records: str, number: int) -> float:
        output = str(folder / f"{records}-{number}")
        result = train(str(folder / records), output, run.base, None, run.method, run.train, local=True)
        results[records, number] = result
        return float(_row(result)["images_per_second"])

    def cached(number: int) -> float:
        return trained("caches", number)

    def online(number: int) -> float:
        return trained("pictures", number)

    ratios = paired(pairs, (cached, online))
    for number in range(pairs):
        one, other = results["caches", number], results["pictures", number]
        assert abs(_row(one)["loss"] - _row(other)["loss"]) < 1e-3
        assert abs(one.loss_after - other.loss_after) < 1e-3
    return {"ratios": ratios, "waits": [_row(results["caches", number])["data_wait"] for number in range(pairs)]}


def _row(result: TrainResult) -> dict[str, float]:
    """The row of the second half of the steps; the last one is a validation."""
    return result.curve[-2]


if __name__ == "__main__":
    place, steps, pairs = sys.argv[1:]
    print(json.dumps(cached_vs_online(Path(place), int(steps), int(pairs))))

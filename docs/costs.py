"""Write the tables of docs/costs.md from counted figures: `python docs/costs.py`.

    python docs/costs.py --print --price p5.48xlarge=31.46 --utilisation 0.4    # with your own, on the terminal

Counted: FLOPs of a picture by stage (benchmarks/results/preprocessing.json), FLOPs of a training step (TRAINING). Measured: the
CPU seconds of stages without models, and of the others beside their models. Everything else is an assumption, and stands on the
page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from realcustom.pipeline.recipes import RECIPES

PAGE = Path(__file__).with_name("costs.md")
RECORDS = Path(__file__).parents[1] / "benchmarks" / "results" / "preprocessing.json"
COUNTS = {"10 million": 10**7, "1 billion": 10**9}
CPU_SECONDS = (
    0.0039  # of `ingest` and `score` without models, a photograph of 768 x 768 (preprocessing/measurements.md)
)
# CPU seconds beside the models: decoding, scaling, compressing, reading and writing, a photograph, by stage
# (`python benchmarks/beside_models.py`)
BESIDE = {"score": 0.0307, "caption": 0.0129, "subjects": 0.075, "encode": 0.0297}
# of `select`, beyond its exact search, a row (`python benchmarks/select_cost.py`)
SELECT_SECONDS = 0.00039
PICTURE_BYTES = 200_000
STORE_PRICE = 0.023  # of a GB for a month
UTILISATION = 0.3  # of a GPU's peak
# TFLOP of a picture in a step, forward and backward: `python benchmarks/training_flops.py`
TRAINING = {"paper_sd15": (0.828, 0.895), "released_sdxl": (7.711, 9.066)}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What a GPU holds in training: `python benchmarks/training_memory.py RECIPE`."""

    frozen: int  # parameters of the UNet
    trained: int  # parameters
    row: int  # bytes of a row's activations in bf16
    beside: int  # bytes of activations whatever the rows
    checkpointed_row: int  # the same with gradient checkpointing
    checkpointed_beside: int

    def state(self, workers: int = 1, moment_bytes: int = 4) -> float:
        """Bytes of weights, gradients and moments of a worker; sharded over several, whole weights and gradients come in a step."""
        gathered = 8 * self.trained if workers > 1 else 0
        return 2 * self.frozen + gathered + (8 + 2 * moment_bytes) * self.trained / workers

    def activations(self, rows: int, checkpointed: bool) -> int:
        """Bytes of a forward of so many rows."""
        if checkpointed:
            return rows * self.checkpointed_row + self.checkpointed_beside
        return rows * self.row + self.beside


MEMORY = {
    "paper_sd15": Memory(
        frozen=859_520_964,
        trained=27_005_700,
        row=1_029_092_864,
        beside=541_440,
        checkpointed_row=243_382_528,
        checkpointed_beside=67_840,
    ),
    "released_sdxl": Memory(
        frozen=2_567_463_684,
        trained=400_436_224,
        row=7_357_349_625,
        beside=794_057_216,
        checkpointed_row=898_734_841,
        checkpointed_beside=110_387_456,
    ),
}
ROWS = (1, 4, 16)  # of a forward
SHARDED = 8  # workers
# examples of hours' prices on demand in one region of one cloud; they change
CPU_MACHINE, CPU_MACHINE_CORES, CPU_PRICE = "m6i.xlarge", 4, 0.192


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A type of machine with GPUs."""

    name: str
    cpus: int
    gpus: int
    gpu: str
    tflops: float  # dense bf16, of each GPU, by the maker's data sheet
    price: float  # an hour


MACHINES = (
    Machine(name="g5.2xlarge", cpus=8, gpus=1, gpu="A10G", tflops=70.0, price=1.212),
    Machine(name="g6e.2xlarge", cpus=8, gpus=1, gpu="L40S", tflops=362.0, price=2.242),
    Machine(name="p5.48xlarge", cpus=192, gpus=8, gpu="H100", tflops=989.0, price=55.04),
)


def tables(machines: tuple[Machine, ...], utilisation: float) -> dict[str, str]:
    """The tables of the page by their names."""
    return {
        "machines": "\n".join(_machines(machines)),
        "corpus": "\n".join(_corpus(machines, utilisation)),
        "training": "\n".join(_training(machines, utilisation)),
        "weights": "\n".join(_weights()),
        "memory": "\n".join(_memory()),
    }


def page(text: str, found: Mapping[str, str]) -> str:
    """The page with these tables in the place of its own."""
    for name, table in found.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert begin and end, f"{PAGE.name} has no table {name}"
        text = f"{before}{begin}{table}\n{end}{after}"
    return text


def _machines(machines: tuple[Machine, ...]) -> Iterator[str]:
    yield "| machine | CPUs | GPUs | TFLOP/s of each | an hour |\n|---|---|---|---|---|"
    yield f"| {CPU_MACHINE} | {CPU_MACHINE_CORES} | none | | ${CPU_PRICE:g} |"
    for one in machines:
        yield f"| {one.name} | {one.cpus} | {one.gpus} {one.gpu} | {one.tflops:g} | ${one.price:g} |"


def _corpus(machines: tuple[Machine, ...], utilisation: float) -> Iterator[str]:
    stages = {
        stage: {one: _slower(tflop, BESIDE[stage], one, utilisation) for one in machines}
        for stage, tflop in _stage_tflops().items()
    }
    stages["all four"] = {one: sum(hours[one] for hours in stages.values()) for one in machines}
    yield f"| pictures | stage | {' | '.join(one.name for one in machines)} |\n|---|---|{'---|' * len(machines)}"
    for words, count in COUNTS.items():
        for name, hours in stages.items():
            shown = name if name == "all four" else f"`{name}`"
            yield f"| {words} | {shown} | {_cells({one: count * each for one, each in hours.items()})} |"
    yield f"\n| pictures | `ingest`, `score` without models, on {CPU_MACHINE} | `select`, there | stored once, a month |"
    yield "|---|---|---|---|"
    for words, count in COUNTS.items():
        size = count * PICTURE_BYTES / 1e9
        of_cpus = (count * seconds / CPU_MACHINE_CORES / 3600 for seconds in (CPU_SECONDS, SELECT_SECONDS))
        cells = [f"{_hours(hours)}, {_dollars(hours * CPU_PRICE)}" for hours in of_cpus]
        yield f"| {words} | {' | '.join(cells)} | {size / 1000:,.0f} TB, {_dollars(size * STORE_PRICE)} |"


def _training(machines: tuple[Machine, ...], utilisation: float) -> Iterator[str]:
    last = machines[-1]
    two = replace(last, name=f"2 {last.name}", gpus=2 * last.gpus, price=2 * last.price)  # the recipes are for 16 GPUs
    machines = (*machines, two)
    names = " | ".join(one.name for one in machines)
    yield f"| recipe | steps x batch | PFLOP a step | {names} |\n|---|---|---|{'---|' * len(machines)}"
    for recipe, (forward, backward) in TRAINING.items():
        settings = RECIPES[recipe]().train
        assert settings.gradient_checkpointing
        step = settings.batch_size * (2 * forward + backward)
        cells = _cells({one: _slower(settings.steps * step, 0.0, one, utilisation) for one in machines})
        yield f"| `{recipe}` | {settings.steps:,} x {settings.batch_size} | {step / 1000:.2f} | {cells} |"


def _weights() -> Iterator[str]:
    head = ("recipe", "frozen weights", "trained weights", "gradients", "moments", "moments in 8 bits", "EMA")
    yield f"| {' | '.join(head)} |\n|{'---|' * len(head)}"
    for recipe, memory in MEMORY.items():
        trained = 4 * memory.trained
        parts = (2 * memory.frozen, trained, trained, 2 * trained, trained / 2, trained)
        yield f"| `{recipe}` | {' | '.join(map(_gib, parts))} |"


def _memory() -> Iterator[str]:
    head = ("recipe", "rows", "activations", "checkpointed", "all", "all, checkpointed", "and `adamw_8bit`")
    yield f"| {' | '.join(head)} | or sharded over {SHARDED} |\n|{'---|' * (len(head) + 1)}"
    for recipe, memory in MEMORY.items():
        for rows in ROWS:
            kept, less = (memory.activations(rows, checkpointed) for checkpointed in (False, True))
            states = (memory.state(), memory.state(moment_bytes=1), memory.state(SHARDED))
            sizes = (kept, less, kept + states[0], *(less + state for state in states))
            yield f"| `{recipe}` | {rows} | {' | '.join(map(_gib, sizes))} |"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f}" if size < 2**30 else f"{size / 2**30:.1f}"


def _slower(tflop: float, cpu_seconds: float, machine: Machine, utilisation: float) -> float:
    """Hours of a machine whose GPUs and CPUs work side by side."""
    of_gpus = tflop / (machine.tflops * machine.gpus * utilisation)
    return max(of_gpus, cpu_seconds / machine.cpus) / 3600


def _cells(hours: Mapping[Machine, float]) -> str:
    """Hours of each machine, and what they cost."""
    return " | ".join(f"{_hours(each)}, {_dollars(each * one.price)}" for one, each in hours.items())


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.1f} h"


def _stage_tflops() -> dict[str, float]:
    """TFLOP of one picture with one target word and one box, by stage."""
    records = {record["metric"]: record["value"] for record in json.loads(RECORDS.read_text())}
    return {stage: records[f"preprocess_gflops_{stage}"] / 1000 for stage in ("score", "caption", "subjects", "encode")}


def _dollars(amount: float) -> str:
    digits = max(0, len(f"{amount:.0f}") - 3)  # three are more than the assumptions allow
    return f"${round(amount, -digits):,.0f}"


def main() -> None:
    """Write the page, or print its tables."""
    parser = argparse.ArgumentParser(description="Tables of docs/costs.md.")
    parser.add_argument("--print", action="store_true", help="print the tables and write nothing")
    parser.add_argument(
        "--price", action="append", default=[], metavar="MACHINE=DOLLARS", help="of an hour; repeatable"
    )
    parser.add_argument("--utilisation", type=float, default=UTILISATION, help="of a GPU's peak, 0 to 1")
    given = parser.parse_args()
    prices = dict(text.split("=", 1) for text in given.price)
    unknown = set(prices) - {one.name for one in MACHINES}
    if unknown:
        parser.error(f"--price: {', '.join(sorted(unknown))} is not among {', '.join(one.name for one in MACHINES)}")
    machines = tuple(replace(one, price=float(prices.get(one.name, one.price))) for one in MACHINES)
    found = tables(machines, given.utilisation)
    if given.print:
        print("\n\n".join(found.values()))
        return
    PAGE.write_text(page(PAGE.read_text(), found))


if __name__ == "__main__":
    main()

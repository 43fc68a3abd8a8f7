"""What a run's folder says about the run: read by report.html and by `realcustom inspect`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from realcustom import storage
from realcustom.store import Store
from realcustom.training.checkpoints import list_checkpoints, step_of
from realcustom.training.metrics_file import Row, read_rows, read_starts
from realcustom.training.validations import read_results


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A run that is under way or finished."""

    settings: Mapping[str, Any]  # settings.yaml
    rows: tuple[Row, ...]  # metrics.jsonl
    account: Mapping[str, Any]  # report.json; empty before the end
    result: Mapping[str, Any]  # result.json; empty before the end
    sheets: tuple[str, ...]  # names in samples/
    checkpoints: tuple[int, ...]  # their steps
    dropped: int  # records, so far
    starts: tuple[Row, ...]  # `step` and `repeated`
    failed: tuple[Row, ...]  # of validations and sheets beside the training: `step` and `error`

    @property
    def steps(self) -> int:
        """Asked for."""
        return int(self.settings["train"]["steps"])

    @property
    def step(self) -> int:
        """The last one that metrics.jsonl knows."""
        return max((int(row["step"]) for row in self.rows), default=0)

    @property
    def training(self) -> list[Row]:
        """Rows of steps."""
        return [row for row in self.rows if "val_loss" not in row]

    @property
    def validation(self) -> list[Row]:
        """Rows of validations."""
        return [row for row in self.rows if "val_loss" in row]


def read_facts(output: str, store: Store) -> Facts:
    """The facts of the run in a folder."""

    def read(name: str) -> dict[str, Any]:
        uri = storage.join(output, name)
        found: dict[str, Any] = json.loads(store.read(uri)) if store.exists(uri) else {}
        return found

    return Facts(
        settings=yaml.safe_load(store.read(storage.join(output, "settings.yaml"))),
        rows=tuple(read_rows(output, store)),
        account=read("report.json"),
        result=read("result.json"),
        sheets=tuple(name for name in store.list_names(storage.join(output, "samples")) if name.endswith(".png")),
        checkpoints=tuple(step_of(uri) for uri in list_checkpoints(storage.join(output, "checkpoints"), store)),
        dropped=len(store.list_names(storage.join(output, "dropped"))),
        starts=tuple(read_starts(output, store)),
        failed=tuple(row for row in read_results(output, store) if "error" in row),
    )


def table(facts: Facts) -> Iterator[tuple[str, str]]:
    """The facts as names and values, of those that there are."""
    yield "steps", f"{facts.step} of {facts.steps}" + ("" if facts.result else "; not finished")
    if parent := facts.settings.get("parent"):
        yield "branched from", f"step {parent['step']} of the run with identity {parent['identity']}"
    if len(facts.starts) > 1:
        again = sum(start["repeated"] for start in facts.starts)
        yield "starts", f"{len(facts.starts)}; at least {again} steps were done again"
    if facts.validation:
        first, last = facts.validation[0], facts.validation[-1]
        best = min(facts.validation, key=lambda row: row["val_loss"])
        yield (
            "validation loss",
            f"{first['val_loss']:.5f} -> {last['val_loss']:.5f}; best {best['val_loss']:.5f}, step {best['step']}",
        )
        yield "the same by noise, least first", ", ".join(f"{loss:.4f}" for loss in last["val_losses"])
    if facts.training:
        row = facts.training[-1]
        yield "images/s", f"{row['images_per_second']:g}, data wait {row['data_wait']:.1%}"
        parts = ", ".join(f"{name} {seconds:.3g}" for name, seconds in row.get("seconds", {}).items())
        yield "seconds of a step", parts or "unknown"
        if "mfu" in row:
            yield "MFU", f"{row['mfu']:.1%}"
        yield "skipped steps", str(sum(row["skipped"] for row in facts.training))
    if facts.account:
        known = facts.account
        said = f"{known['in']} in = {known['trained']} trained on + {known['held_out']} held out + {known['dropped']} dropped"
        yield "records", said
    elif facts.dropped:
        yield "records dropped so far", str(facts.dropped)
    if facts.failed:
        yield "validations that failed", "; ".join(f"step {row['step']}: {row['error']}" for row in facts.failed)
    yield "checkpoints", ", ".join(map(str, facts.checkpoints)) or "none yet"
    if facts.result:
        yield "adapter", "adapter.safetensors"
        yield "its sha256", facts.result["sha256"]


def describe_run(output: str, store: Store) -> Iterator[str]:
    """Lines about a run, for a terminal."""
    facts = read_facts(output, store)
    yield "training run"
    yield from (f"{name}: {value}" for name, value in table(facts))
    yield from (f"dropped {one['uid']}: {one['reason']}" for one in facts.account.get("dropped_records", []))
    yield yaml.safe_dump({"settings": dict(facts.settings)}, sort_keys=False).rstrip()

"""Bugs of the kinds that libraries raise, planted in a training worker: in this process, or in one of a cluster's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from realcustom.training import distributed
from realcustom.training.batches import BatchMaker
from realcustom.training.worker import Worker


def broadcasting() -> object:
    """A ValueError of numpy's."""
    return np.ones(3) + np.ones(4)


def missing_key() -> object:
    """A KeyError."""
    return {"uid": 1}["uids"]


def arrow() -> object:
    """pyarrow's ArrowInvalid, which is a ValueError."""
    return pa.array(["four"]).cast(pa.int32())


BUGS: dict[Callable[[], object], type[Exception]] = {
    broadcasting: ValueError,
    missing_key: KeyError,
    arrow: pa.ArrowInvalid,
}


@dataclass(frozen=True, kw_only=True)
class PlantedWorker:
    """Stands in for `distributed._train_worker`: the same work with a bug at a place of one worker."""

    bug: Callable[[], object]
    in_set_up: bool
    rank: int = 1

    def __call__(self, config: dict[str, Any]) -> None:
        """Runs in a worker of the cluster, whose code is its own to change."""
        kind, method = (Worker, "_resume") if self.in_set_up else (BatchMaker, "training")
        original = getattr(kind, method)

        def planted(owner: Any, *arguments: Any) -> Any:
            if owner.world.rank == self.rank:
                self.bug()
            return original(owner, *arguments)

        setattr(kind, method, planted)
        distributed._train_worker(config)

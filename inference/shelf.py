"""The adapters that are loaded: one that a request names is loaded beside the running batch; those not used for longest go.

The adapter that the engine was started with stays: it lives in the UNet's own layers.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from realcustom.checkpoint import adapter_sha256
from realcustom.errors import UsageError
from realcustom.inference.engine import Engine
from realcustom.inference.errors import QueueFull, Unavailable
from realcustom.inference.models import ServedModel

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class _Place:
    """An adapter that is loaded, or is being loaded."""

    loading: Future[None]
    users: int = 0  # requests that draw with it, or wait for it


class AdapterShelf:
    """Loads adapters into an engine and takes them out again. Threads may share it.

    Args:
        max_adapters: kept at the same time, the engine's own among them.
    """

    def __init__(self, engine: Engine, max_adapters: int) -> None:
        self.engine, self.max_adapters = engine, max_adapters
        self._own = None if engine.adapter is None else str(engine.adapter["sha256"])
        self._places: collections.OrderedDict[str, _Place] = collections.OrderedDict()  # by sha256, oldest use first
        self._lock = threading.Lock()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="adapter")

    def loaded(self) -> list[str]:
        """sha256 of the adapters that can be drawn with at once."""
        with self._lock:
            ready = [sha for sha, place in self._places.items() if _is_ready(place)]
        return [*([self._own] if self._own is not None else []), *ready]

    async def hold(self, model: ServedModel) -> Callable[[], None]:
        """Wait until the model's adapter is loaded; it stays so until the returned function is called.

        Raises QueueFull where all places are in use, Unavailable where it cannot be loaded.
        """
        sha256 = model.sha256
        if sha256 is None or sha256 == self._own:
            return lambda: None
        place = self._enter(model, sha256)
        try:
            await asyncio.shield(asyncio.wrap_future(place.loading))  # others may wait for it too
        except BaseException:
            self._leave(place)
            raise
        return lambda: self._leave(place)

    def close(self) -> None:
        """Load no more."""
        self._loader.shutdown(cancel_futures=True)

    def _enter(self, model: ServedModel, sha256: str) -> _Place:
        with self._lock:
            place = self._places.get(sha256)
            if place is None:
                self._make_room()
                place = self._places[sha256] = _Place(loading=self._loader.submit(self._load, model, sha256))
            self._places.move_to_end(sha256)
            place.users += 1
        return place

    def _leave(self, place: _Place) -> None:
        with self._lock:
            place.users -= 1

    def _make_room(self) -> None:
        """Take out the adapter that was not used for longest, where all places are taken (the lock is held)."""
        room = self.max_adapters - (self._own is not None)
        if len(self._places) < room:
            return
        idle = next((sha for sha, place in self._places.items() if place.loading.done() and not place.users), None)
        if idle is None:
            raise QueueFull(f"model: all {self.max_adapters} adapters that this server holds are in use; try again", 5)
        self.engine.remove_adapter(idle)
        del self._places[idle]

    def _load(self, model: ServedModel, sha256: str) -> None:
        assert model.source is not None
        try:
            pipeline = self.engine.pipeline.with_adapter(model.source)
            if adapter_sha256(model.source) != sha256:
                raise UsageError(f"{model.source} is another file than at this server's start")
            self.engine.add_adapter(sha256, pipeline)
        except Exception as error:
            logger.error("%s was not loaded: %s", model.id, error, exc_info=not isinstance(error, UsageError))
            with self._lock:
                self._places.pop(sha256, None)
            raise Unavailable(f"model: {model.id} could not be loaded; the server's log says why") from error


def _is_ready(place: _Place) -> bool:
    return place.loading.done() and not place.loading.cancelled() and place.loading.exception() is None

"""Leases: a request in an engine ends when the API that asked for it says no more that someone waits. No Ray.

It covers what a cancelled call misses: an API process that died, a network that lost the word. An engine that Serve takes out
of service, and lets drain, is told of no renewals any more; Serve does not ask for its health any more either. So a request
ends only if a renewal is missing and the engine was asked for its health since.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

RENEW_SECONDS = 1.0  # the API renews so often
LEASE_SECONDS = 6.0  # the engine ends what was not renewed for so long


@dataclass(kw_only=True)
class _Lease:
    until: float  # time.monotonic()
    cancel: Callable[[], None]


class Leases:
    """Those of one engine; used from one event loop.

    Args:
        seconds: a lease ends when it was not renewed for so long.
        every: seconds after which `end_late` is called again. Where it comes later the event loop stood still, and what
            renews leases with it: that time does not count.
    """

    def __init__(self, seconds: float = LEASE_SECONDS, every: float = RENEW_SECONDS) -> None:
        self.seconds, self.every = seconds, every
        self._leases: dict[str, _Lease] = {}
        self._swept = self._in_service = time.monotonic()

    def begin(self) -> None:
        """From now on `end_late` is called: no time before this is one in which the event loop stood still."""
        self._swept = time.monotonic()

    def __len__(self) -> int:
        return len(self._leases)

    def in_service(self) -> None:
        """The engine is asked for its health, so it is told of renewals. Any thread may call."""
        self._in_service = time.monotonic()

    def add(self, name: str, cancel: Callable[[], None]) -> None:
        """A request that `cancel` ends. One of the same name is replaced."""
        self._leases[name] = _Lease(until=time.monotonic() + self.seconds, cancel=cancel)

    def remove(self, name: str) -> None:
        """It has ended."""
        self._leases.pop(name, None)

    def renew(self, names: Iterable[str]) -> None:
        """Someone waits for these; unknown ones are of other engines."""
        until = time.monotonic() + self.seconds
        for name in names:
            if name in self._leases:
                self._leases[name].until = until

    def end_late(self) -> int:
        """Cancel the requests that nobody renews, though the engine is in service; returns how many."""
        now = time.monotonic()
        stood_still, self._swept = max(0.0, now - self._swept - self.every), now
        for lease in self._leases.values():
            lease.until += stood_still
        late = [name for name, lease in self._leases.items() if min(now, self._in_service) > lease.until]
        for name in late:
            self._leases.pop(name).cancel()
        return len(late)

"""What a worker has learnt of the hosts that it asked: which of them never answer.

A corpus has many URLs of few hosts, and in an old one many hosts are gone. The wait for one that is gone is paid once.
"""

from __future__ import annotations

import functools
import threading
import time
from dataclasses import dataclass, field

SILENT = 2  # tries without any answer, and none with one before, after which a host is taken for dead
REMEMBERED = 600.0  # seconds for which it is; a host may come back while a long job runs


@dataclass(kw_only=True)
class Hosts:
    """A memory of hosts by name and port. Several threads may use it."""

    _answered: set[str] = field(default_factory=set)
    _silent: dict[str, int] = field(default_factory=dict)  # tries without an answer
    _since: dict[str, float] = field(default_factory=dict)  # time of the last of them
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answered(self, host: str) -> None:
        """Note that a host gave some answer."""
        with self._lock:
            self._answered.add(host)
            self._silent.pop(host, None)

    def has_answered(self, host: str) -> bool:
        """Whether a host ever gave some answer."""
        return host in self._answered

    def is_gone(self, host: str) -> None:
        """Note that there is no such host."""
        with self._lock:
            self._silent[host], self._since[host] = SILENT, time.monotonic()

    def was_silent(self, host: str) -> None:
        """Note that a host could not be found or reached, or said nothing in time."""
        with self._lock:
            if host not in self._answered:
                self._silent[host] = self._silent.get(host, 0) + 1
                self._since[host] = time.monotonic()

    def is_dead(self, host: str) -> bool:
        """Whether a further try is in vain."""
        with self._lock:
            if self._silent.get(host, 0) < SILENT:
                return False
            if time.monotonic() - self._since[host] < REMEMBERED:
                return True
            del self._silent[host]
            return False


@functools.cache
def hosts_of_worker() -> Hosts:
    """The memory of this process, for all its units."""
    return Hosts()

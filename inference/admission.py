"""Who asks, and whether it is their turn: the bearer key, its rate and its number of requests at once.

Counted in one process: with several replicas of the API each counts its own.
"""

from __future__ import annotations

import contextlib
import hmac
import math
import time
from collections.abc import Iterator, Sequence

from starlette.requests import Request

from realcustom.inference.errors import RateLimited, Unauthorized
from realcustom.inference.front import record_of
from realcustom.inference.keys import Key, digest_of

ANYONE = Key(name="", digest=b"")


class Admission:
    """The keys of a server.

    Args:
        keys: none = anyone may ask.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = tuple(keys)
        self._turns = {key.name: _Turns(key) for key in (*keys, ANYONE)}

    def identify(self, request: Request) -> Key:
        """The key of a request. Raises Unauthorized."""
        if not self._keys:
            return ANYONE
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        given, found = digest_of(text.strip()), None
        for key in self._keys:  # all of them: the time tells nothing
            if hmac.compare_digest(given, key.digest):
                found = key
        if scheme.lower() != "bearer" or found is None:
            raise Unauthorized("send a key of this server in the header 'Authorization: Bearer KEY'")
        record_of(request).key = found.name
        return found

    @contextlib.contextmanager
    def during(self, key: Key) -> Iterator[None]:
        """A request that is counted while the block runs. Raises RateLimited with the seconds to wait."""
        turns = self._turns[key.name]
        turns.enter()
        try:
            yield
        finally:
            turns.running -= 1


class _Turns:
    """A bucket of one minute's requests, filled evenly, and the number that runs."""

    def __init__(self, key: Key) -> None:
        self.limits, self.running = key.limits, 0
        self._left, self._at = key.limits.requests_per_minute or 0.0, time.monotonic()

    def enter(self) -> None:
        per_minute, most = self.limits.requests_per_minute, self.limits.max_running
        if most is not None and self.running >= most:
            raise RateLimited(f"this key has {self.running} requests running, its limit", 1)
        if per_minute is not None:
            full, now = max(1.0, per_minute), time.monotonic()
            self._left = min(full, self._left + (now - self._at) * per_minute / 60)
            self._at = now
            if self._left < 1:
                wait = math.ceil((1 - self._left) * 60 / per_minute)
                raise RateLimited(f"this key's limit is {per_minute:g} requests a minute", wait)
            self._left -= 1
        self.running += 1

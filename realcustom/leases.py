"""Who may write: leases on a disk or an object store, so that no two programs write one output at once.

    <folder>/holders/ID       a program that is at work; it renews this file while it lives
    <folder>/claims/NAME      what a holder has taken: its ID

A claim is as good as its holder: it ends when the holder's file is gone or was not renewed for `EXPIRY_SECONDS` of the
store's own time; nobody's clock is asked. Claims are taken by a write that fails where there is one already; on a store that
has no such write by write, wait, read and compare: there a write that takes longer than the wait may make two owners. Taking
what is held by a program of this machine that has ended waits for nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from realcustom import storage, this_machine
from realcustom.conditional import age_of, can_condition, put_if_absent, put_over, remove
from realcustom.errors import UsageError
from realcustom.retry import RetrySettings
from realcustom.store import Store

logger = logging.getLogger(__name__)

WRITER = "writer"  # the claim of a whole output
RENEW_SECONDS = 5.0
EXPIRY_SECONDS = 20.0
SETTLE_SECONDS = 1.0  # between writing and reading back, where a store has no conditional write
POLL_SECONDS = 0.5
CLOCK_SECONDS = 1.0  # what a store tells of times
# For what is removed when a program ends: it may end because the store is away.
_AT_AN_END = Store(RetrySettings(attempts=3, backoff=0.5))


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What one holder takes, from any process; it is sent to workers."""

    folder: str
    holder: str
    conditional: bool  # whether the store writes only where nothing is there
    store: Store

    def take(self, name: str) -> str | None:
        """Take `name`; None: it is ours now, or was. Else the id of the living holder that has it."""
        uri = self._claim(name)
        while True:
            if self._put(uri, None):
                return None
            try:
                other = self.store.read(uri)
            except FileNotFoundError:
                continue  # it was released just now
            if other == self.holder.encode():
                return None
            if is_alive(self.folder, other.decode(), self.store):
                return other.decode()
            if self._put(uri, other):
                return None
            time.sleep(POLL_SECONDS)  # another one was faster

    def release(self, name: str) -> None:
        """Give back what we have taken; of another's claim nothing happens."""
        if self.has(name):
            remove(self._claim(name), self.store)

    def has(self, name: str) -> bool:
        """Whether `name` is ours."""
        try:
            return self.store.read(self._claim(name)) == self.holder.encode()
        except FileNotFoundError:
            return False

    def is_held(self, name: str) -> bool:
        """Whether a living holder other than us has `name`."""
        try:
            holder = self.store.read(self._claim(name)).decode()
        except FileNotFoundError:
            return False
        return holder != self.holder and is_alive(self.folder, holder, self.store)

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """A context in which `name` is ours; waits, and says so, while another has it."""
        said = False
        while (other := self.take(name)) is not None:
            if not said:
                logger.info("waiting for %s, which does this now", describe(self.folder, other, self.store))
            said = True
            time.sleep(POLL_SECONDS)
        with self._released(name):
            yield

    @contextlib.contextmanager
    def _released(self, name: str) -> Iterator[None]:
        """A context at whose end `name` is given back. After an error that is tried few times: the store may be why, and the error
        is the one to show."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(UsageError, OSError):
                replace(self, store=_AT_AN_END).release(name)
            raise
        self.release(name)

    def _claim(self, name: str) -> str:
        return storage.join(self.folder, "claims", name)

    def _put(self, uri: str, over: bytes | None) -> bool:
        """Write our id where nothing is (`over` None), or in the place of what is there; whether it is ours then."""
        data = self.holder.encode()
        if self.conditional or not storage.is_remote(uri):
            return put_if_absent(uri, data, self.store) if over is None else put_over(uri, data, over, self.store)
        try:
            there: bytes | None = self.store.read(uri)
        except FileNotFoundError:
            there = None
        if there != over:
            return False
        self.store.write(uri, data)
        time.sleep(SETTLE_SECONDS)
        return self.store.read(uri) == data


@contextlib.contextmanager
def holding(folder: str, store: Store, lost: Callable[[str], object] | None = None) -> Iterator[Claims]:
    """A context in which this program is a holder.

    Args:
        folder: of the leases; it is made, and removed when nobody uses it any more.
        lost: called, in a thread, with the reason, when another program has become the writer meanwhile, as this one was
            halted or the store was away for longer than a lease lasts.
    """
    holder = uuid.uuid4().hex
    missing = _missing(folder)
    conditional = can_condition(storage.join(folder, f"probe-{holder}"), store)
    claims = Claims(folder=folder, holder=holder, conditional=conditional, store=store)
    store.write(_holder(folder, holder), json.dumps(this_machine.program()).encode())
    try:
        with _renewed(claims, lost):
            yield claims
    finally:
        _leave(claims, missing)


@contextlib.contextmanager
def only_writer(folder: str, what: str, store: Store, lost: Callable[[str], object] | None = None) -> Iterator[None]:
    """A context in which nobody else writes `what`.

    Raises UsageError, naming the holder, where another program does: at once where that runs on this machine, else when it has
    renewed its lease. One that was killed on another machine is waited for, for `EXPIRY_SECONDS` at most.
    """
    with holding(folder, store, lost) as claims:
        began = time.monotonic()
        said = False
        while (other := claims.take(WRITER)) is not None:
            if _is_of_this_machine(folder, other, store) or _was_renewed(folder, other, store, began):
                raise UsageError(
                    f"{what} is being written by {describe(folder, other, store)}: wait for it, end it, or give another output"
                )
            if not said:
                logger.info("%s is held by %s; looking whether that lives", what, describe(folder, other, store))
            said = True
            time.sleep(POLL_SECONDS)
        with claims._released(WRITER):
            yield


def is_alive(folder: str, holder: str, store: Store) -> bool:
    """Whether a holder is at work, by its own file and the store's time."""
    age = age_of(_holder(folder, holder), store)
    if age is None or age > EXPIRY_SECONDS:
        return False
    program = _read(folder, holder, store)
    if program.get("machine") != this_machine.identity():
        return True
    return this_machine.start_of(int(program["pid"])) == str(program["started"])


def describe(folder: str, holder: str, store: Store) -> str:
    """Words for a holder: `mara@node-3 (process 4711)`."""
    program = _read(folder, holder, store)
    return (
        f"{program['user']}@{program['host']} (process {program['pid']})"
        if program
        else "a program that has just ended"
    )


def _is_of_this_machine(folder: str, holder: str, store: Store) -> bool:
    return bool(_read(folder, holder, store).get("machine") == this_machine.identity())


def _was_renewed(folder: str, holder: str, store: Store, since: float) -> bool:
    """Whether a holder has renewed its lease since a moment of `time.monotonic`."""
    age = age_of(_holder(folder, holder), store)
    return age is not None and age + CLOCK_SECONDS < time.monotonic() - since


@contextlib.contextmanager
def _renewed(claims: Claims, lost: Callable[[str], object] | None) -> Iterator[None]:
    ended = threading.Event()
    thread = threading.Thread(target=_renew, args=(claims, ended, lost), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(RENEW_SECONDS)


def _renew(claims: Claims, ended: threading.Event, lost: Callable[[str], object] | None) -> None:
    """Renew the holder until `ended`. While the store is away nobody can take what is ours; afterwards it may be another's."""
    uri = _holder(claims.folder, claims.holder)
    renewed = time.monotonic()
    while not ended.wait(RENEW_SECONDS):
        try:
            _touch(uri)
            late = time.monotonic() - renewed > EXPIRY_SECONDS
            if late and lost is not None and not claims.has(WRITER):
                lost(
                    f"{claims.folder} was not renewed for more than {EXPIRY_SECONDS:.0f} s, and another program has taken it"
                )
                return
            renewed = time.monotonic()
        except Exception as error:  # of the store, or of the network: the next time may do
            logger.debug("%s is not renewed: %s", uri, error)


def _touch(uri: str) -> None:
    if not storage.is_remote(uri):
        with contextlib.suppress(FileNotFoundError):  # it was taken for dead, and removed
            os.utime(storage.open_filesystem(uri)[1])
            return
    storage.write_bytes(uri, json.dumps(this_machine.program()).encode())


def _missing(folder: str) -> list[Path]:
    """The leases' folder and the one that it is in, as far as they are not there yet; an object store has none."""
    if storage.is_remote(folder):
        return []
    place = Path(storage.open_filesystem(folder)[1])
    return [each for each in (place, place.parent) if not each.exists()]


def _leave(claims: Claims, missing: list[Path]) -> None:
    """Remove the holder with what it has taken, and the folders that it made where they are empty. Where the store does not let us,
    the error that ended the program is the one to show."""
    ended_by, folder = sys.exception(), claims.folder
    try:
        try:
            _sweep(replace(claims, store=_AT_AN_END))
        finally:
            remove(_holder(folder, claims.holder), _AT_AN_END)
        _remove_empty(folder)
        for each in missing:
            with contextlib.suppress(OSError):  # it is used
                each.rmdir()
    except (UsageError, OSError) as error:
        level = logging.WARNING if ended_by is None else logging.DEBUG
        logger.log(level, "a lease stays in %s until its time is over: %s", folder, error)


def _sweep(claims: Claims) -> None:
    """Remove the claims that are ours, and what programs that were killed have left."""
    folder, store = claims.folder, claims.store
    try:
        entries = store.list_files(folder)
    except FileNotFoundError:
        entries = []
    for entry in entries:  # claims come before holders
        kind, _, name = entry.name.partition("/")
        with contextlib.suppress(FileNotFoundError):  # removed by another program just now
            if kind == "claims" and _is_free(claims, entry.uri):
                remove(entry.uri, store)
            elif kind == "holders" and not is_alive(folder, name, store):
                remove(entry.uri, store)


def _is_free(claims: Claims, uri: str) -> bool:
    """Whether a claim is ours, or is now, as its holder has ended: another program that takes it just now is not to lose it."""
    holder = claims.store.read(uri)
    if holder == claims.holder.encode():
        return True
    return not is_alive(claims.folder, holder.decode(), claims.store) and claims._put(uri, holder)


def _remove_empty(folder: str) -> None:
    """Remove the folders where nothing is in them any more; an object store has none."""
    if not storage.is_remote(folder):
        with contextlib.suppress(FileNotFoundError):  # removed by another program just now
            storage.remove_partial_files(folder)
        place = Path(storage.open_filesystem(folder)[1])
        parents = [place.parent] if place.parent.name == "leases" else []  # those of stages share one
        for each in (place / "claims", place / "holders", place, *parents):
            with contextlib.suppress(OSError):  # it is used, or another program has removed it
                each.rmdir()


def _holder(folder: str, holder: str) -> str:
    return storage.join(folder, "holders", holder)


def _read(folder: str, holder: str, store: Store) -> dict[str, Any]:
    try:
        program: dict[str, Any] = json.loads(store.read(_holder(folder, holder)))
    except FileNotFoundError:
        return {}
    return program

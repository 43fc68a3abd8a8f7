"""Leases on a disk and on an object store: one writer, whoever asks; what a killed program held comes free."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from realcustom import conditional, leases, storage, this_machine
from realcustom.errors import UsageError
from realcustom.leases import Claims, holding, is_alive, only_writer
from realcustom.retry import RetrySettings
from realcustom.store import Store

STORE = Store(RetrySettings(attempts=3, backoff=0.05))


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "leases")
    return f"{request.getfixturevalue('bucket')}/leases"


def names(folder: str) -> list[str]:
    try:
        return [entry.name for entry in storage.list_files(folder)]
    except FileNotFoundError:
        return []


def test_of_many_that_take_one_name_one_has_it(folder: str) -> None:
    with holding(folder, STORE) as first, holding(folder, STORE) as second, holding(folder, STORE) as third:
        assert first.conditional
        for turn in range(5):
            with ThreadPoolExecutor(3) as pool:
                taken = list(pool.map(Claims.take, (first, second, third), [f"unit-{turn}"] * 3))
            winner = taken.index(None)
            assert taken.count(None) == 1
            assert {other for other in taken if other} == {(first, second, third)[winner].holder}
        assert (first, second, third)[winner].take("unit-4") is None, "it was ours already"
    assert names(folder) == []


def test_what_is_released_is_free(folder: str) -> None:
    with holding(folder, STORE) as first, holding(folder, STORE) as second:
        assert not second.is_held("a")
        assert first.take("a") is None
        second.release("a")  # not its own
        assert second.take("a") == first.holder
        assert second.is_held("a") and not first.is_held("a")
        first.release("a")
        assert not second.is_held("a")
        assert second.take("a") is None
        assert not first.has("a")


def test_a_killed_program_of_this_machine_is_not_waited_for(folder: str, tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from realcustom.leases import holding\n"
        "from realcustom.store import Store\n"
        "with holding(sys.argv[1], Store()) as claims:\n"
        "    claims.take('a')\n"
        "    print(claims.holder, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    other = process.stdout.readline().strip()
    with holding(folder, STORE) as claims:
        assert claims.take("a") == other
        process.kill()
        process.wait()
        process.stdout.close()
        begun = time.monotonic()
        assert claims.take("a") is None
        assert time.monotonic() - begun < 5
    assert names(folder) == []


def test_one_of_another_machine_ends_with_its_lease(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody renews: after its time, by the store's clock, the claim is taken."""
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 6.0)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 600.0)
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        with monkeypatch.context() as patch:
            patch.setattr(this_machine, "identity", lambda: "another")
            theirs = stack.enter_context(holding(folder, STORE))
        theirs.take("writer")
        assert is_alive(folder, theirs.holder, STORE)
        with only_writer(folder, "the run", STORE):
            assert 5 < time.monotonic() - begun < 60  # the store's times are of whole seconds
            assert not theirs.has("writer")
    assert names(folder) == []


@pytest.mark.parametrize("machine", ["this", "another"])
def test_the_second_writer_is_told_who_the_first_is(
    folder: str, machine: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of this machine at once; of another one when it has renewed its lease."""
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.5)
    caplog.set_level(logging.INFO, "realcustom")
    theirs = {**this_machine.program(), **({} if machine == "this" else {"machine": machine})}
    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(this_machine, "program", lambda: theirs)
        stack.enter_context(only_writer(folder, "s3://bucket/run", STORE))
        begun = time.monotonic()
        mine = rf"s3://bucket/run is being written by .*\(process {os.getpid()}\)"
        with pytest.raises(UsageError, match=mine), only_writer(folder, "s3://bucket/run", STORE):
            raise AssertionError
        assert time.monotonic() - begun < 10
    assert ("looking whether that lives" in caplog.text) == (machine == "another")
    with only_writer(folder, "s3://bucket/run", STORE):
        pass
    assert names(folder) == []


def test_a_store_without_conditional_writes(
    bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One that takes every write: found out by the probe, and said; then by writing, waiting and reading back."""
    caplog.set_level(logging.INFO, "realcustom")
    plain: Callable[..., bool] = conditional._put_object
    monkeypatch.setattr(conditional, "_put_object", lambda uri, data, condition: plain(uri, data, {}))
    monkeypatch.setattr(leases, "SETTLE_SECONDS", 0.5)
    conditional._heeds.cache_clear()
    folder = f"{bucket}/leases"
    with holding(folder, STORE) as first, holding(folder, STORE) as second:
        assert not first.conditional
        assert caplog.text.count("s3://corpus has no conditional writes") == 1
        with ThreadPoolExecutor(2) as pool:
            taken = list(pool.map(Claims.take, (first, second), "aa"))
        assert taken.count(None) == 1
    assert names(folder) == []
    conditional._heeds.cache_clear()


def test_a_claim_that_a_killed_program_was_writing_leaves_no_file(tmp_path: Path) -> None:
    place = tmp_path / "leases" / "stage"
    (place / "claims").mkdir(parents=True)
    (place / "claims" / ".tmp-killed").touch()
    with holding(str(place), STORE) as claims:
        assert claims.take("unit") is None
        claims.release("unit")
    assert not place.parent.exists()


def test_a_writer_that_was_away_is_told_that_another_writes(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its store was away for longer than a lease lasts: alone it goes on; where another has begun, it hears of that."""
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.4)
    told, away = threading.Event(), threading.Event()
    touch = leases._touch

    def unless_away(uri: str) -> None:
        if away.is_set():
            raise OSError("the network is gone")
        touch(uri)

    monkeypatch.setattr(leases, "_touch", unless_away)
    with only_writer(folder, "the run", STORE, lambda reason: told.set()):
        away.set()
        time.sleep(0.7)
        away.clear()
        assert not told.wait(0.4)
        away.set()
        storage.write_bytes(storage.join(folder, "claims", leases.WRITER), b"another")
        time.sleep(0.7)
        away.clear()
        assert told.wait(5)
        storage.delete(storage.join(folder, "claims", leases.WRITER))


def test_a_probe_that_fails_leaves_no_holder(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str, data: bytes, condition: object) -> bool:
        raise PermissionError("the store refuses it")

    conditional._heeds.cache_clear()
    monkeypatch.setattr(conditional, "_put_object", refuse)
    with pytest.raises(PermissionError), holding(f"{bucket}/leases", STORE):
        raise AssertionError
    assert names(f"{bucket}/leases") == []
    conditional._heeds.cache_clear()


def test_the_error_that_ends_a_writer_is_the_one_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the store, which may be why, does not let the lease be given back."""

    def gone(uri: str) -> bytes:
        raise PermissionError(uri)

    with pytest.raises(UsageError, match="the store is away"), only_writer(str(tmp_path / "leases"), "the run", STORE):
        monkeypatch.setattr(storage, "read_bytes", gone)
        raise UsageError("the store is away")


def test_who_leaves_does_not_remove_what_another_takes_over_meanwhile(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed program's claim, of which one that ends sees that its holder is gone, and another takes it before it is removed."""
    uri = storage.join(folder, "claims", "a")
    looked = leases.is_alive
    with holding(folder, STORE) as stays:
        with holding(folder, STORE):
            storage.write_bytes(uri, b"killed")

            def taken_over_meanwhile(place: str, holder: str, store: Store) -> bool:
                alive = looked(place, holder, store)
                if holder == "killed" and not stays.has("a"):
                    monkeypatch.setattr(leases, "is_alive", looked)
                    assert stays.take("a") is None
                return alive

            monkeypatch.setattr(leases, "is_alive", taken_over_meanwhile)
        assert stays.has("a")
    assert names(folder) == []


WRONG_CLOCK = """
import sys, time
from realcustom import leases
from realcustom.store import Store
right, said = time.time, []
for hours in (-1, 1):
    time.time = lambda: right() + hours * 3600
    with leases.holding(sys.argv[1], Store()) as ours:
        said.append(ours.take("writer"))  # held by a program that is alive
        leases.EXPIRY_SECONDS = -1.0  # as if its time were over
        said.append(leases.is_alive(sys.argv[1], sys.argv[2], Store()))
        leases.EXPIRY_SECONDS = 20.0
print(*said)
"""


def test_a_clock_that_is_wrong_breaks_nothing(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour early or late, in the program that looks whether one of another machine is alive."""
    monkeypatch.setattr(this_machine, "identity", lambda: "another")
    with holding(folder, STORE) as theirs:
        assert theirs.take("writer") is None
        command = [sys.executable, "-c", WRONG_CLOCK, folder, theirs.holder]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stdout.split() == [theirs.holder, "False"] * 2, done.stderr

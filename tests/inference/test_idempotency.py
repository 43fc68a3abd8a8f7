"""Answers by Idempotency-Key of several processes: here each is an `Answers` with the same keeper."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from realcustom.inference.answer_keeper import AnswerKeeper, Claim
from realcustom.inference.errors import Conflict, EngineLost
from realcustom.inference.idempotency import Answers
from realcustom.inference.remote_keeper import RemoteKeeper

NAME = ("alice", "key")
PATIENCE = 10.0


class Maker:
    """Makes answers that differ, once it may."""

    def __init__(self) -> None:
        self.made, self.began, self.go_on = 0, asyncio.Event(), asyncio.Event()

    async def __call__(self) -> bytes:
        self.made += 1
        number = self.made
        self.began.set()
        await self.go_on.wait()
        return b"%d" % number


def _run(talk: Callable[[AnswerKeeper, Maker], Awaitable[None]], lease_seconds: float = PATIENCE) -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE):
            await talk(AnswerKeeper(20, 60.0, lease_seconds), Maker())

    asyncio.run(run())


def test_an_answer_is_made_once_for_all_processes() -> None:
    async def talk(keeper: AnswerKeeper, make: Maker) -> None:
        one, other = Answers(keeper), Answers(keeper)
        asked = [asyncio.ensure_future(process.once(NAME, b"x", make)) for process in (one, other, one, other)]
        await make.began.wait()
        with pytest.raises(Conflict):
            await other.once(NAME, b"another", make)
        make.go_on.set()
        assert await asyncio.gather(*asked) == [b"1"] * 4
        assert await other.once(NAME, b"x", make) == b"1" and make.made == 1
        assert await other.once(("bob", "key"), b"another", make) == b"2"

    _run(talk)


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "failed"])
def test_the_next_makes_it_where_the_first_does_not(gone: bool) -> None:
    async def talk(keeper: AnswerKeeper, make: Maker) -> None:
        async def fails() -> bytes:
            await make()
            raise ValueError

        one, other = Answers(keeper), Answers(keeper)
        first = asyncio.ensure_future(one.once(NAME, b"x", fails))
        await make.began.wait()
        second = asyncio.ensure_future(other.once(NAME, b"x", make))
        await asyncio.sleep(0.01)
        assert make.made == 1
        if gone:
            first.cancel()
        make.go_on.set()
        with pytest.raises((ValueError, asyncio.CancelledError)):
            await first
        assert await second == b"2"

    _run(talk)


def test_the_next_makes_it_where_the_first_says_nothing_more() -> None:
    async def talk(keeper: AnswerKeeper, make: Maker) -> None:
        assert await keeper.claim(NAME, b"", "killed") == Claim()
        waiting = asyncio.ensure_future(keeper.claim(NAME, b"", "next"))
        for _ in range(5):
            await asyncio.sleep(0.06)
            await keeper.renew(NAME, "killed")
        assert not waiting.done()
        assert await waiting == Claim()
        await keeper.keep(NAME, b"", "killed", b"late")  # it is not its own any more
        await keeper.keep(NAME, b"", "next", b"in time")
        assert await keeper.claim(NAME, b"", "third") == Claim(answer=b"in time")

    _run(talk, lease_seconds=0.1)


def test_who_waits_for_another_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realcustom.inference.answer_keeper.HOLD_SECONDS", 0.02)

    async def talk(keeper: AnswerKeeper, make: Maker) -> None:
        first = asyncio.ensure_future(Answers(keeper).once(NAME, b"x", make))
        await make.began.wait()
        second = asyncio.ensure_future(Answers(keeper).once(NAME, b"x", make))
        await asyncio.sleep(0.1)  # several times as long as a claim is held
        assert not second.done()
        make.go_on.set()
        assert await first == await second == b"1" and make.made == 1

    _run(talk)


class Silent:
    """A deployment that answers nothing, or (with an answer) at once."""

    def __init__(self, answer: Claim | None = None) -> None:
        self.answer, self.cancelled = answer, 0

    def __getattr__(self, method: str) -> Silent:
        if method not in ("claim", "renew", "keep", "give_up"):
            raise AttributeError(method)
        return self

    def remote(self, *_: object) -> Silent:
        return self

    def __await__(self) -> Any:
        return (asyncio.sleep(60) if self.answer is None else asyncio.sleep(0, self.answer)).__await__()

    def cancel(self) -> None:
        self.cancelled += 1


def test_a_keeper_of_another_process_that_is_silent_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realcustom.inference.remote_keeper.ANSWER_SECONDS", 0.02)
    monkeypatch.setattr("realcustom.inference.remote_keeper.HOLD_SECONDS", 0.05)
    silent: Any = Silent()

    async def talk(_: AnswerKeeper, make: Maker) -> None:
        with pytest.raises(EngineLost, match="does not answer"):
            await Answers(RemoteKeeper(silent)).once(NAME, b"x", make)
        assert make.made == 0 and silent.cancelled == 2  # the claim, and giving it up
        silent.answer = Claim(answer=b"kept")
        assert await Answers(RemoteKeeper(silent)).once(NAME, b"x", make) == b"kept"

    _run(talk)


def test_answers_are_bounded() -> None:
    async def talk(keeper: AnswerKeeper, _: Maker) -> None:
        for number in range(4):
            name = ("alice", str(number))
            await keeper.claim(name, b"", "me")
            await keeper.keep(name, b"", "me", b"x" * 8)
        kept = [await keeper.claim(("alice", str(number)), b"", "me") for number in range(4)]
        assert [claim.answer is not None for claim in kept] == [False, False, True, True]  # 16 of 20 bytes

    _run(talk)


def test_an_answer_is_given_where_the_keeper_is_lost_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    class Lost(AnswerKeeper):
        async def keep(self, *_: object) -> None:
            raise EngineLost("gone")

    async def talk(_: AnswerKeeper, make: Maker) -> None:
        make.go_on.set()
        assert await Answers(Lost(20, 60.0)).once(NAME, b"x", make) == b"1"

    _run(talk)
    assert "was not kept" in caplog.text and "gone" in caplog.text


def test_a_keeper_that_began_anew_keeps_what_was_claimed_before() -> None:
    async def talk(keeper: AnswerKeeper, make: Maker) -> None:
        process = Answers(keeper)
        first = asyncio.ensure_future(process.once(NAME, b"x", make))
        await make.began.wait()
        process.keeper = again = AnswerKeeper(20, 60.0)
        make.go_on.set()
        assert await first == b"1" == await Answers(again).once(NAME, b"x", make) and make.made == 1
        with pytest.raises(Conflict):
            await Answers(again).once(NAME, b"another", make)

    _run(talk)


def test_a_keeper_that_is_gone_is_said() -> None:
    class Gone(AnswerKeeper):
        async def claim(self, *_: object) -> Claim:
            raise EngineLost("gone")

    async def talk(_: AnswerKeeper, make: Maker) -> None:
        with pytest.raises(EngineLost):
            await Answers(Gone(1, 1.0)).once(NAME, b"x", make)
        assert make.made == 0

    _run(talk)

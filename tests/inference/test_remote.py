"""The API's side of the engines, with engines that are functions: which of them a request is given to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from realcustom.inference.drawing import Drawing, read_drawing
from realcustom.inference.errors import DeadlineExceeded, EngineLost, RequestError, UnknownSubject
from realcustom.inference.messages import Answer, Begun, Failed, Message, Taken
from realcustom.inference.models import ServedModel
from realcustom.inference.remote import Engines, RemoteWork
from realcustom.inference.schema import check_request
from realcustom.inference.settings import ServeSettings
from realcustom.inference.subjects import NewSubject

SETTINGS = ServeSettings()
MODEL = ServedModel(id="base", adapter=None)


class Reply:
    """What Serve gives for a call that streams."""

    def __init__(self, messages: AsyncGenerator[Message, None]) -> None:
        self.messages, self.cancelled = messages, False

    async def __anext__(self) -> Message:
        return await anext(self.messages)

    def cancel(self) -> None:
        self.cancelled = True


class Handle:
    """Engines by name, and the subjects that each holds. The first that a call does not avoid gets it, as the router does."""

    def __init__(self, **holds: tuple[str, ...]) -> None:
        self.holds, self.asked = holds, list[str]()

    def options(self, *, stream: bool) -> Handle:
        assert stream
        return self

    @property
    def draw(self) -> Handle:
        return self

    def remote(self, drawing: Drawing, lease: str, wants: tuple[str, ...], avoid: tuple[str, ...]) -> Reply:
        engine = next((name for name in self.holds if name not in avoid), next(iter(self.holds)))
        self.asked.append(engine)
        return Reply(self._messages(engine, [str(part.id) for part in drawing.subjects]))

    async def _messages(self, engine: str, subjects: list[str]) -> AsyncGenerator[Message, None]:
        yield Taken(engine=engine)
        lacking = [name for name in subjects if name not in self.holds[engine]]
        if lacking:
            yield Failed(error=UnknownSubject(f"subjects[0].id: {engine} holds no such subject", "subjects[0].id"))
            return
        yield Begun(model="base", steps=1, images=1)
        yield Answer(data=engine.encode(), usage=None)


def _drawn(handle: Any, subject: str) -> bytes:
    fields = {"prompt": "a cat", "subjects": [{"id": subject, "word": "cat"}]}

    async def draw() -> bytes:
        drawing = read_drawing(check_request(fields, SETTINGS), SETTINGS, None)
        work = RemoteWork(Engines(SETTINGS, handle, [MODEL]), drawing, MODEL)
        await work.begin()
        return await work.answer()

    return asyncio.run(draw())


def test_a_subject_that_the_router_has_not_heard_of_yet_is_found() -> None:
    handle = Handle(a=(), b=(), c=("subject-new",), d=())
    assert _drawn(handle, "subject-new") == b"c" and handle.asked == ["a", "b", "c"]


def test_a_subject_that_no_engine_holds_is_told_after_each_was_asked_once() -> None:
    handle = Handle(a=(), b=())
    with pytest.raises(UnknownSubject) as caught:
        _drawn(handle, "subject-none")
    assert caught.value.param == "subjects[0].id" and handle.asked == ["a", "b", "a"]  # the third is told of, not drawn


class Silent:
    """An engine that never says what became of a subject."""

    cancelled = False

    @property
    def add_subject(self) -> Silent:
        return self

    def remote(self, _: NewSubject) -> Silent:
        return self

    def __await__(self) -> Any:
        return asyncio.sleep(60).__await__()

    def cancel(self) -> None:
        self.cancelled = True


def test_a_subject_is_waited_for_no_longer_than_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realcustom.inference.remote.GRACE_SECONDS", 0.0)
    handle: Any = Silent()
    engines = Engines(ServeSettings(deadline_seconds=0.05), handle, [MODEL])
    with pytest.raises(DeadlineExceeded):
        asyncio.run(engines.add_subject(NewSubject(image="x", mask=None)))
    assert handle.cancelled and issubclass(DeadlineExceeded, RequestError)


class Peer:
    """A process of the API that answers whether it has cancelled a request; None: it is silent."""

    def __init__(self, answer: bool | None) -> None:
        self.answer = answer

    async def get_async(self) -> bool:
        if self.answer is None:
            await asyncio.sleep(60)
        return bool(self.answer)


class Peers:
    """All of them, as a handle that is asked for what each says."""

    def __init__(self, *answers: bool | None) -> None:
        self.answers = answers

    def broadcast(self, method: str, _: tuple[str, str]) -> Peers:
        assert method == "cancel"
        return self

    async def _fetch_replica_results_async(self) -> list[Peer]:
        return [Peer(answer) for answer in self.answers]


def _cancelled(*answers: bool | None) -> bool:
    peers: Any = Peers(*answers)
    return asyncio.run(Engines(SETTINGS, peers, [MODEL], peers=lambda: peers).cancel_elsewhere("owner", "request"))


def test_a_process_that_is_silent_hides_no_answer_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("realcustom.inference.remote.ASK_SECONDS", 0.05)
    assert _cancelled(False, True, None) and not _cancelled(False, False)
    with pytest.raises(EngineLost):
        _cancelled(False, None)

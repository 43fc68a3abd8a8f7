"""What is logged: lines that are said again and again while something is waited for, and nothing of the store's library."""

from __future__ import annotations

import logging
import time

import pytest

from realcustom import log
from realcustom.log import Progress, each_minute

logger = logging.getLogger("realcustom.tests")


def test_a_wait_is_said_until_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    left = iter(["waiting for 2", "waiting for 1", None])
    with each_minute(logger, lambda: next(left), seconds=0.01):
        deadline = time.monotonic() + 10
        while next(iter(caplog.messages[1:]), None) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
    assert caplog.messages == ["waiting for 2", "waiting for 1"]


def test_what_is_there_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    with each_minute(logger, lambda: None, seconds=0.01):
        time.sleep(0.05)
    assert caplog.messages == []


def test_nothing_is_said_after_the_context(caplog: pytest.LogCaptureFixture) -> None:
    with each_minute(logger, lambda: "waiting", seconds=60):
        pass
    assert caplog.messages == ["waiting"]


def test_what_takes_long_says_how_much_of_it_is_done(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    seldom, often = Progress(logger, "seldom", 3), Progress(logger, "often", 3, seconds=0.0)
    for _ in range(3):
        seldom.advance()
        often.advance()
    assert caplog.messages == ["often: 1 of 3, 0 s left", "often: 2 of 3, 0 s left"]  # the end is said by what follows


def test_the_store_s_library_does_not_tell_where_it_found_keys() -> None:
    """Ray Train's workers have a handler at the root, which shows what libraries say."""
    log.configure("debug")
    assert not logging.getLogger("botocore.credentials").isEnabledFor(logging.INFO)

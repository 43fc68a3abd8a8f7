"""The account of which units workers died of."""

from __future__ import annotations

from realcustom.preprocessing.engine.worker_deaths import WorkerDeaths, in_this_process


def test_a_beginning_that_is_said_twice_is_no_death() -> None:
    deaths = WorkerDeaths()
    first, second = in_this_process("whole", "a"), in_this_process("whole", "a")
    assert deaths.begin(first) == deaths.begin(first) == 0  # Ray asks again where it got no answer
    assert deaths.begin(second) == deaths.begin(second) == 1 and deaths.lost() == [first]
    deaths.end(second)
    deaths.end(second)
    assert deaths.begin(in_this_process("whole", "a")) == 0 and deaths.running()[0].unit == "a"

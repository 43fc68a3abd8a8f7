"""The account of which units workers died of."""

from __future__ import annotations

from realcustom.preprocessing.engine.worker_deaths import Attempts, this_execution


def test_a_beginning_that_is_said_twice_is_no_death() -> None:
    attempts = Attempts()
    first, second = this_execution("whole", "a"), this_execution("whole", "a")
    assert attempts.begin(first) == attempts.begin(first) == 0  # Ray asks again where it got no answer
    assert attempts.begin(second) == attempts.begin(second) == 1 and attempts.lost() == [first]
    attempts.end(second)
    attempts.end(second)
    assert attempts.begin(this_execution("whole", "a")) == 0 and attempts.running()[0].unit == "a"

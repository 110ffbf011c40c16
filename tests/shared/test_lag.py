"""A consumer's lag in seconds: an upper bound that is true, whatever is known."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from shared.bus import Partition
from shared.lag import Lag

NOON = datetime(2031, 5, 5, 12, 0, tzinfo=UTC)
FIRST, SECOND, OTHER = Partition("trips", 0), Partition("trips", 1), Partition("people", 0)


@dataclass
class Clock:
    now: datetime = NOON

    def __call__(self) -> float:
        return self.now.timestamp()

    def pass_(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def test_a_partition_at_its_end_lags_by_the_time_since_it_was_seen_there() -> None:
    clock = Clock()
    lag = Lag(clock)
    lag.assigned([FIRST])
    clock.pass_(7)
    lag.at_end([FIRST])
    assert lag.seconds() == {"trips": 0}
    clock.pass_(3)
    assert lag.seconds() == {"trips": 3}


def test_an_old_backlog_lags_by_the_age_of_what_is_next() -> None:
    clock = Clock()
    lag = Lag(clock)
    lag.assigned([FIRST])
    lag.stands_at(FIRST, NOON - timedelta(hours=2))
    assert lag.seconds() == {"trips": 7200}
    lag.stands_at(FIRST, NOON - timedelta(minutes=1))
    assert lag.seconds() == {"trips": 60}


def test_what_is_told_again_lags_no_longer_than_it_has_been_there() -> None:
    clock = Clock()
    lag = Lag(clock)
    lag.assigned([FIRST])
    lag.at_end([FIRST])
    clock.pass_(4)
    lag.stands_at(FIRST, NOON - timedelta(days=300))
    assert lag.seconds() == {"trips": 4}


def test_a_partition_of_which_nothing_is_known_lags_from_its_assignment() -> None:
    clock = Clock()
    lag = Lag(clock)
    lag.assigned([FIRST])
    clock.pass_(11)
    assert lag.seconds() == {"trips": 11}
    lag.assigned([FIRST])  # what was known before it went away and came back is no longer true
    assert lag.seconds() == {"trips": 0}


def test_a_topic_lags_as_its_last_partition_and_one_that_is_gone_does_not_count() -> None:
    clock = Clock()
    lag = Lag(clock)
    lag.assigned([FIRST, SECOND, OTHER])
    clock.pass_(5)
    lag.at_end([FIRST])
    clock.pass_(1)
    lag.at_end([OTHER])
    assert lag.seconds() == {"trips": 6, "people": 0}
    lag.forget(SECOND)
    lag.stands_at(SECOND, NOON - timedelta(days=1))  # what its last batch still says
    assert lag.seconds() == {"trips": 1, "people": 0}

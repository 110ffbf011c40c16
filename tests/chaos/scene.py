"""What a fault is given: the surroundings, the load, a random of its own, and what proofs have to know of."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.chaos import proof
from tests.chaos.load import Load
from tests.chaos.surroundings import Broken, Surroundings
from tests.chaos.topics import Poison

QUIET_SECONDS = 180.0


class CannotBeHad(Exception):
    """The machine lacks what a fault needs; the text says what."""


@dataclass(kw_only=True)
class Scene:
    """`long`: the full form, in which faults last longer and come more often.

    `withheld` are the ids of events that the broker was never given, `wrong` what a fault itself has found not to hold.
    """

    surroundings: Surroundings
    load: Load
    random: Random
    long: bool
    poison: Poison = field(default_factory=Poison)
    withheld: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    copies: int = 0
    """How many records the topics held twice when they were last read."""

    def go_on(self, least: float, most: float | None = None) -> None:
        """Let time pass under whatever load there is: so long a fault lasts, or so long there is none."""
        time.sleep(least if most is None else self.random.uniform(least, most))

    def times(self, short: int, long: int) -> range:
        """How often something is repeated."""
        return range(long if self.long else short)

    def lasts(self, short: float, long: float) -> None:
        """Let a fault last."""
        self.go_on(long if self.long else short)

    def comes_to_hold(self, holds: Callable[[], object], patience: float) -> bool:
        """Wait for something that a service has promised."""
        end = time.monotonic() + patience
        while not (held := holds()) and time.monotonic() < end:
            time.sleep(0.1)
        return bool(held)

    def quiet(self, patience: float = QUIET_SECONDS) -> list[str]:
        """Wait until nothing is left to do, the writers at rest; what is left if that takes too long."""
        self.load.pause()
        end = time.monotonic() + patience
        while left := self._lacking():
            if time.monotonic() > end:
                return left
            time.sleep(0.1)
        return []

    def at_rest(self) -> None:
        """The writers pause and all is quiet, for a fault that needs it so. Raises `Broken`."""
        if left := self.quiet():
            raise Broken(f"it was not quiet before the fault: {'; '.join(left)}")

    def meeting(self) -> str:
        """A meeting that can be changed."""
        self.surroundings.until(self._alive, 120, "a meeting that is not cancelled")
        return self.random.choice(self._alive())

    def _alive(self) -> list[str]:
        meetings = [one for trip in self.load.trips for one in trip.meetings.items()]
        return [meeting for meeting, status in meetings if status != "cancelled"]

    def rows(self, service: str, statement: str, *values: object) -> Sequence[tuple[Any, ...]]:
        """See `Surroundings.rows`."""
        return self.surroundings.rows(service, statement, *values)

    def _lacking(self) -> list[str]:
        return asyncio.run(proof.lacking(self.surroundings, self.poison, self.withheld))

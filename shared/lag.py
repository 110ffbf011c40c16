"""How old the oldest message on the bus may be that was not taken yet: a consumer's lag, in seconds.

The number is an upper bound that needs no question to anybody. Of each partition two moments are kept: when it was
last seen to be read to its end (nothing that was there then is missing), and when the fact that is next, or else the
last one that was taken, was recorded (what stands behind it is younger). The later of them is how far back the missing
can reach. So it moves between 0 and about the time between two looks (2 s) while all is well; grows by a second a
second when a partition stands still, or when the bus does not answer; and is the true age, to one message, while an old
backlog is worked off. A partition of which neither is known yet counts from its assignment.

What it does not say: a fact that its producer has not put on the bus yet is the relay's lag, and one that the bus has
lost is counted in messages (`Healer.lag`). The two machines' clocks may differ, and that much it is off. While the past
is published anew to a consumer that has just begun, it may tell the age of facts that were applied long ago.
"""

import time
from collections.abc import Callable, Iterable
from datetime import datetime

from shared.bus import Partition


class Lag:
    """The lag of the partitions that one consumer holds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._reached: dict[Partition, float] = {}
        self._recorded: dict[Partition, float] = {}

    def assigned(self, partitions: Iterable[Partition]) -> None:
        """These are read from now on; nothing is known of them."""
        for partition in partitions:
            self._reached.pop(partition, None)
            self._recorded[partition] = self._clock()

    def at_end(self, partitions: Iterable[Partition]) -> None:
        """At this moment nothing is missing of these."""
        self._reached.update(dict.fromkeys(partitions, self._clock()))

    def stands_at(self, partition: Partition, recorded_at: datetime) -> None:
        """The fact that is the next one to be taken, or the last that was, has been recorded then."""
        if partition in self._recorded:
            self._recorded[partition] = recorded_at.timestamp()

    def forget(self, partition: Partition) -> None:
        """Another member reads it now."""
        self._reached.pop(partition, None)
        self._recorded.pop(partition, None)

    def seconds(self) -> dict[str, float]:
        """By topic, the greatest lag of its partitions here; a topic of which none is held is left out."""
        now = self._clock()
        found: dict[str, float] = {}
        for partition, recorded in self._recorded.items():
            since = max(recorded, self._reached.get(partition, recorded))
            found[partition.topic] = max(found.get(partition.topic, 0.0), now - since)
        return found

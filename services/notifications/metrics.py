"""What the notifications service counts beside the plumbing: answers of feeds, and how far rendering is.

Feeds are answered before everything else, so each answer costs one addition here and no more.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.core import Metric

from shared.metrics import Families
from shared.tally import Seconds

STATUSES = (200, 304, 404, 405, 410, 500, 503)


@dataclass(kw_only=True)
class FeedAnswers:
    """The answers under `/feeds/` by status. `unrendered`: live links that had to be given an empty calendar."""

    by_status: dict[int, int] = field(default_factory=lambda: dict.fromkeys(STATUSES, 0))
    unrendered: int = 0

    def metrics(self, of: Families) -> Iterator[Metric]:
        """For `/metrics`."""
        by_status = {(str(status),): float(count) for status, count in self.by_status.items()}
        yield of.counter("feed_answers", "Answers to requests for feeds", by_status, "status")
        said = "Live links that were given an empty calendar, since their first body was late"
        yield of.counter("feed_unrendered_answers", said, self.unrendered)


@dataclass(kw_only=True)
class Progress:
    """How rendering goes in this process, and how long the oldest mark of all has been seen standing."""

    bodies: int = 0
    failures: int = 0
    took: Seconds = field(default_factory=Seconds)
    _trips: int = 0
    _oldest: tuple[int | None, float] = (None, 0.0)

    def seen(self, oldest: int | None, trips: int) -> None:
        """The oldest mark just now (None without any), and how many trips have one."""
        self._trips = trips
        if oldest != self._oldest[0]:
            self._oldest = (oldest, time.monotonic())

    def metrics(self, of: Families) -> Iterator[Metric]:
        """For `/metrics`."""
        oldest, since = self._oldest
        stands = 0.0 if oldest is None else time.monotonic() - since
        yield of.gauge("rendering_waiting_trips", "Trips that have changed and are not rendered yet", self._trips)
        said = "For how long the oldest change that is not rendered has been seen waiting"
        yield of.gauge("rendering_oldest_mark_seconds", said, stands)
        yield of.counter("rendering_bodies", "New bodies that this replica rendered", self.bodies)
        yield of.counter("rendering_failures", "Feeds that this replica could not render", self.failures)
        said = "How long one trip's rendering took, its reading and writing included"
        yield of.histogram("rendering_duration_seconds", said, {(): self.took})

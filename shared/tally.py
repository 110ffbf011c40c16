"""What a process counts while it works: plain numbers, folded into metrics only when somebody asks for them.

Nothing here locks or allocates by the request: all of it is used by the event loop's thread alone.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""The upper bounds of the histograms' buckets; a command may wait 2 s for what another service has told."""
UNROUTED = "unrouted"
"""The route of every address that leads nowhere: an address itself may hold a feed's secret, and has no bounds."""
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
DONE = "done"
"""The outcome of a command that was carried out; any other is the slug of its refusal, or its status."""


@dataclass(slots=True)
class Seconds:
    """A histogram: how many took up to each bound of `SECONDS` and longer than the one before; the last took longer."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def note(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has them: each bound with how many took no longer, `+Inf` at last."""
        found: list[tuple[str, float]] = []
        so_far = 0
        for bound, count in zip((*map(str, SECONDS), "+Inf"), self.counts, strict=True):
            so_far += count
            found.append((bound, float(so_far)))
        return found


class Answered(NamedTuple):
    """One answered request: its route's template and, where that is a command's, the command's name."""

    method: str
    route: str | None
    command: str | None
    status: int
    slug: str | None


@dataclass(kw_only=True)
class Requests:
    """The requests that one service has answered, but for those of feeds, which never come so far."""

    answered: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """By method, route and status."""
    took: defaultdict[tuple[str, str], Seconds] = field(default_factory=lambda: defaultdict(Seconds))
    """By method and route."""
    commands: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By command and outcome."""
    commands_took: defaultdict[str, Seconds] = field(default_factory=lambda: defaultdict(Seconds))

    def note(self, one: Answered, seconds: float) -> None:
        """One more. What a stranger can choose freely (path, method) makes no entry of its own."""
        method, route = one.method if one.method in METHODS else "OTHER", one.route or UNROUTED
        self.answered[method, route, one.status] += 1
        self.took[method, route].note(seconds)
        if one.command is not None:
            self.commands[one.command, DONE if one.status < 400 else one.slug or str(one.status)] += 1
            self.commands_took[one.command].note(seconds)

"""One entry of a feed: what the programme decided to show, before it becomes bytes.

`programme` makes entries from the picture of a trip, `feed` writes them as iCalendar; neither knows the other.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal
from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """An instant (aware, UTC), the IANA zone in which people read it, and the wall time (naive) that was agreed there.

    The wall time is what the message said; it stands in for a zone that this program's database lacks.
    """

    instant: datetime
    zone: str
    wall: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """From one moment to another; a movement starts in one zone and ends in another."""

    start: Moment
    end: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Days:
    """All-day: the first day and the last day, both included."""

    first: date
    last: date


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one item shows to one audience. `id` and `sequence` are the item's own, the same in every feed."""

    id: UUID
    sequence: int
    when: Span | Days
    sort_instant: datetime
    summary: str
    status: Literal["TENTATIVE", "CONFIRMED", "CANCELLED"]
    transparent: bool
    location: str | None
    geo: tuple[float, float] | None
    text: tuple[str, ...]
    """Lines of the description; the first one is the time at the venue."""
    categories: tuple[str, ...]
    color: str | None
    conference: str | None
    related_to: UUID | None
    alarm: timedelta | None

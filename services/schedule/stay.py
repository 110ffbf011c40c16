"""The stay at a stop: from arrival to departure, as two instants; the meetings of the stop lie within it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from services.schedule.wall_time import rfc3339
from shared.errors import Invalid, MeetingsOutsideStay, OutsideStay, StopsOverlap, WrongState


@dataclass(frozen=True, kw_only=True)
class Stay:
    """What others need to know of a stop: when one is there, by which clocks, and whether it is live (not dropped)."""

    stop: UUID
    zone: str
    arrives_at: datetime
    departs_at: datetime
    live: bool

    def holds(self, starts_at: datetime, ends_at: datetime) -> bool:
        """Whether the whole span lies within the stay; both ends belong to it."""
        return self.arrives_at <= starts_at and ends_at <= self.departs_at


@dataclass(frozen=True, kw_only=True)
class Engagement:
    """When a live meeting is: two instants."""

    meeting: UUID
    starts_at: datetime
    ends_at: datetime


def live_stay(stop: UUID, stays: Sequence[Stay]) -> Stay:
    """The stay at the stop that a command names. Invalid if the trip has no such stop, WrongState if it is dropped."""
    stay = next((stay for stay in stays if stay.stop == stop), None)
    if stay is None:
        raise Invalid.field("stop", "the trip has no such stop")
    if not stay.live:
        raise WrongState("The stop is dropped.", stop=str(stop))
    return stay


def check_inside(stay: Stay, starts_at: datetime, ends_at: datetime) -> None:
    """OutsideStay for a meeting that the stay does not hold."""
    if not stay.holds(starts_at, ends_at):
        raise OutsideStay(
            "The meeting would lie outside the stay at its stop.",
            stop=str(stay.stop),
            arrives_at=rfc3339(stay.arrives_at),
            departs_at=rfc3339(stay.departs_at),
            starts_at=rfc3339(starts_at),
            ends_at=rfc3339(ends_at),
        )


def check_free(stay: Stay, stays: Sequence[Stay]) -> None:
    """StopsOverlap if another live stay of the trip shares time with this one; they may touch."""
    others = [other for other in stays if other.live and other.stop != stay.stop]
    overlapping = [o.stop for o in others if stay.arrives_at < o.departs_at and o.arrives_at < stay.departs_at]
    if overlapping:
        raise StopsOverlap("The trip is at another stop at that time.", stops=[str(stop) for stop in overlapping])


def check_none_outside(stay: Stay, engagements: Sequence[Engagement]) -> None:
    """MeetingsOutsideStay unless the stay holds all live meetings of its stop; that of a dropped stop holds none."""
    outside = [
        engagement.meeting
        for engagement in engagements
        if not (stay.live and stay.holds(engagement.starts_at, engagement.ends_at))
    ]
    if outside:
        raise MeetingsOutsideStay("Live meetings would be left outside the stay at their stop.", meetings=outside)

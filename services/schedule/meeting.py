"""A meeting: anything on the programme that lies within the stay at one stop.

Cancelled is not deleted: a cancelled meeting takes no command but its reinstatement, which gives back the status that
it had.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeAlias, assert_never, cast, get_args
from uuid import UUID

from services.schedule.meeting_fields import (
    LiveStatus,
    MeetingFields,
    MeetingPlace,
    MeetingStatus,
    MeetingText,
    MeetingTiming,
    check_fields,
)
from services.schedule.meeting_fields import MeetingKind as MeetingKind
from services.schedule.stay import Engagement, Stay, check_inside, live_stay
from services.schedule.trip import TripStatus, require_open
from services.schedule.venue import Press, Venue
from services.schedule.wall_time import Fold, Timed, resolve, resolve_near, settle
from shared.deciding import differing, required_reason
from shared.errors import NotFound, WrongState

NAME = "meeting"


# Commands


@dataclass(frozen=True, kw_only=True)
class ScheduleMeeting:
    """`zone` None is the stop's. A `hard` time is fixed by somebody else, an `assumed` one is not known for certain."""

    trip: UUID
    meeting: UUID
    stop: UUID
    title: str
    kind: MeetingKind
    status: LiveStatus
    start: datetime
    zone: str | None
    fold: Fold | None
    duration: timedelta
    venue: Venue | None
    topics: tuple[str, ...]
    notes: str | None
    press: Press | None
    hard: bool
    assumed: bool
    delegations: tuple[UUID, ...]


@dataclass(frozen=True, kw_only=True)
class RescheduleMeeting:
    """What is not in `changes` stays; another zone alone keeps the wall time."""

    meeting: UUID
    changes: MeetingTiming
    fold: Fold | None


@dataclass(frozen=True, kw_only=True)
class MoveMeeting:
    """To another venue, stop or both. Another stop brings its own zone, unless `changes` names one."""

    meeting: UUID
    changes: MeetingPlace
    fold: Fold | None


@dataclass(frozen=True, kw_only=True)
class ReviseMeeting:
    meeting: UUID
    changes: MeetingText


@dataclass(frozen=True, kw_only=True)
class ConfirmMeeting:
    meeting: UUID


@dataclass(frozen=True, kw_only=True)
class CancelMeeting:
    meeting: UUID
    reason: str


@dataclass(frozen=True, kw_only=True)
class ReinstateMeeting:
    meeting: UUID


@dataclass(frozen=True, kw_only=True)
class InviteDelegation:
    meeting: UUID
    delegation: UUID


@dataclass(frozen=True, kw_only=True)
class UninviteDelegation:
    meeting: UUID
    delegation: UUID


Command: TypeAlias = (
    ScheduleMeeting
    | RescheduleMeeting
    | MoveMeeting
    | ReviseMeeting
    | ConfirmMeeting
    | CancelMeeting
    | ReinstateMeeting
    | InviteDelegation
    | UninviteDelegation
)


# Events


@dataclass(frozen=True, kw_only=True)
class MeetingScheduled:
    trip: UUID
    meeting: UUID
    whole: MeetingFields


@dataclass(frozen=True, kw_only=True)
class MeetingReinstated:
    trip: UUID
    meeting: UUID
    whole: MeetingFields


@dataclass(frozen=True, kw_only=True)
class MeetingChange:
    trip: UUID
    meeting: UUID
    changed: MeetingFields
    was: MeetingFields


class MeetingRescheduled(MeetingChange):
    """To another time at the same place."""


class MeetingMoved(MeetingChange):
    """To another venue, stop or both, perhaps to another time."""


class MeetingRevised(MeetingChange):
    """In what it is about, not in where and when."""


class MeetingConfirmed(MeetingChange):
    """It was tentative."""


class MeetingCancelled(MeetingChange):
    """By a planner, or with its trip."""


class MeetingRetimed(MeetingChange):
    """By a newer tz database, which puts the same wall time at another instant."""


@dataclass(frozen=True, kw_only=True)
class DelegationInvited(MeetingChange):
    delegation: UUID


@dataclass(frozen=True, kw_only=True)
class DelegationUninvited(MeetingChange):
    delegation: UUID


Event: TypeAlias = (
    MeetingScheduled
    | MeetingRescheduled
    | MeetingMoved
    | MeetingRevised
    | MeetingConfirmed
    | MeetingCancelled
    | MeetingReinstated
    | MeetingRetimed
    | DelegationInvited
    | DelegationUninvited
)
EVENTS: tuple[type[Event], ...] = get_args(Event)


# State


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """`tz` is the tz database release that derived `starts_at` (UTC); `ends_at` is `duration` later.

    `cancelled_from` is the status that a cancelled meeting gets back when it is reinstated (None while it is live).
    """

    id: UUID
    trip: UUID
    revision: int
    stop: UUID
    title: str
    kind: MeetingKind
    status: MeetingStatus
    start: datetime
    zone: str
    duration: timedelta
    starts_at: datetime
    ends_at: datetime
    tz: str
    venue: Venue | None
    topics: tuple[str, ...]
    notes: str | None
    press: Press | None
    hard: bool
    assumed: bool
    delegations: tuple[UUID, ...]
    reason: str | None
    cancelled_from: LiveStatus | None

    @property
    def engagement(self) -> Engagement | None:
        """What its stop needs to know of it; None while it is cancelled."""
        if self.status == "cancelled":
            return None
        return Engagement(meeting=self.id, starts_at=self.starts_at, ends_at=self.ends_at)


def decide(command: Command, meeting: Meeting | None, trip_status: TripStatus, stays: Sequence[Stay]) -> list[Event]:
    """What follows from the command; `stays` are those of all stops of the trip.

    Raises Invalid, NotFound, OutsideStay, ReasonMissing, WrongState and what `resolve` raises.
    """
    require_open(trip_status)
    match command:
        case ScheduleMeeting():
            return _schedule(command, meeting, stays)
        case RescheduleMeeting() | MoveMeeting():
            return _shift(command, _live(meeting), stays)
        case ReviseMeeting():
            return _revise(_live(meeting), command.changes)
        case ConfirmMeeting():
            return _confirm(_live(meeting))
        case CancelMeeting():
            return _cancel(_live(meeting), required_reason(command.reason))
        case ReinstateMeeting():
            return _reinstate(_known(meeting), stays)
        case InviteDelegation():
            return _invite(_live(meeting), command.delegation)
        case UninviteDelegation():
            return _uninvite(_live(meeting), command.delegation)
        case _:
            assert_never(command)


def evolve(meeting: Meeting | None, event: Event) -> Meeting:
    """The meeting after the event; LookupError for a change of a meeting that was never scheduled."""
    match event:
        case MeetingScheduled():
            return Meeting(id=event.meeting, trip=event.trip, revision=1, cancelled_from=None, **event.whole)
        case _ if meeting is None:
            raise LookupError(f"{event} of no meeting")
        case MeetingReinstated():
            return replace(meeting, revision=meeting.revision + 1, cancelled_from=None, **event.whole)
        case MeetingCancelled():
            before = cast(LiveStatus, event.was["status"])
            return replace(meeting, revision=meeting.revision + 1, cancelled_from=before, **event.changed)
        case _:
            return replace(meeting, revision=meeting.revision + 1, **event.changed)


def fall_with_trip(meeting: Meeting, reason: str) -> list[Event]:
    """The meeting of a cancelled trip is cancelled for the trip's reason; a cancelled one stays as it is."""
    return [] if meeting.status == "cancelled" else _cancel(meeting, reason)


def follow_stop(meeting: Meeting, before: str, zone: str) -> list[Event]:
    """A stop's zone was put right: a meeting that went by its clocks keeps its wall time, by the new ones.

    A cancelled one too: it is still shown, and may be reinstated. One in a zone of its own stays.
    """
    if meeting.zone != before:
        return []
    start = resolve_near(meeting.start, zone, meeting.starts_at)
    changed, was = differing(meeting, _times(start, meeting.duration))
    return [MeetingRescheduled(trip=meeting.trip, meeting=meeting.id, changed=changed, was=was)]


def retime(meeting: Meeting, now: datetime) -> list[Event]:
    """A start after `now` that the tz database in force puts elsewhere; the wall time moves only if it exists no more.

    A cancelled meeting is retimed too: it is still shown, and may be reinstated. The stay is not asked: nothing is
    refused because the clocks were changed.
    """
    start = resolve_near(meeting.start, meeting.zone, meeting.starts_at)
    if meeting.starts_at <= now or start.instant == meeting.starts_at:
        return []
    changed, was = differing(meeting, _times(start, meeting.duration))
    return [MeetingRetimed(trip=meeting.trip, meeting=meeting.id, changed=changed, was=was)]


def _schedule(command: ScheduleMeeting, meeting: Meeting | None, stays: Sequence[Stay]) -> list[Event]:
    if meeting is not None:
        raise WrongState("There is a meeting with this id already.", state=meeting.status)
    stay = live_stay(command.stop, stays)
    given = MeetingFields(
        stop=command.stop,
        title=command.title,
        kind=command.kind,
        status=command.status,
        duration=command.duration,
        venue=command.venue,
        topics=command.topics,
        notes=command.notes,
        press=command.press,
        hard=command.hard,
        assumed=command.assumed,
        delegations=command.delegations,
        reason=None,
    )
    check_fields(given)
    start = resolve(command.start, stay.zone if command.zone is None else command.zone, command.fold)
    whole = given | _times(start, command.duration)
    check_inside(stay, whole["starts_at"], whole["ends_at"])
    return [MeetingScheduled(trip=command.trip, meeting=command.meeting, whole=whole)]


def _shift(command: RescheduleMeeting | MoveMeeting, meeting: Meeting, stays: Sequence[Stay]) -> list[Event]:
    """To another time, another place or both."""
    wanted = cast(MeetingFields, dict(command.changes))
    check_fields(wanted)
    if wanted.get("stop", meeting.stop) != meeting.stop:
        wanted.setdefault("zone", live_stay(wanted["stop"], stays).zone)
    if command.fold is not None or wanted.keys() & {"start", "zone", "duration"}:
        former = Timed(wall=meeting.start, zone=meeting.zone, instant=meeting.starts_at, tz=meeting.tz)
        start, zone = wanted.get("start", meeting.start), wanted.get("zone", meeting.zone)
        duration = wanted.get("duration", meeting.duration)
        wanted |= _times(settle(start, zone, command.fold, former), duration)
    changed, was = differing(meeting, wanted)
    if changed.keys() & {"stop", "starts_at", "ends_at"}:
        after = replace(meeting, **changed)
        check_inside(live_stay(after.stop, stays), after.starts_at, after.ends_at)
    kind = MeetingMoved if isinstance(command, MoveMeeting) else MeetingRescheduled
    return [] if changed.keys() <= {"tz"} else [kind(trip=meeting.trip, meeting=meeting.id, changed=changed, was=was)]


def _revise(meeting: Meeting, changes: MeetingText) -> list[Event]:
    wanted = cast(MeetingFields, dict(changes))
    check_fields(wanted)
    changed, was = differing(meeting, wanted)
    return [MeetingRevised(trip=meeting.trip, meeting=meeting.id, changed=changed, was=was)] if changed else []


def _confirm(meeting: Meeting) -> list[Event]:
    if meeting.status != "tentative":
        raise WrongState(f"The meeting is {meeting.status}.", state=meeting.status)
    changed, was = differing(meeting, MeetingFields(status="confirmed"))
    return [MeetingConfirmed(trip=meeting.trip, meeting=meeting.id, changed=changed, was=was)]


def _cancel(meeting: Meeting, reason: str) -> list[Event]:
    changed, was = differing(meeting, MeetingFields(status="cancelled", reason=reason))
    return [MeetingCancelled(trip=meeting.trip, meeting=meeting.id, changed=changed, was=was)]


def _reinstate(meeting: Meeting, stays: Sequence[Stay]) -> list[Event]:
    if meeting.status != "cancelled":
        raise WrongState(f"The meeting is {meeting.status}.", state=meeting.status)
    check_inside(live_stay(meeting.stop, stays), meeting.starts_at, meeting.ends_at)
    whole = cast(MeetingFields, {name: getattr(meeting, name) for name in MeetingFields.__annotations__})
    whole |= MeetingFields(status=meeting.cancelled_from or "tentative", reason=None)
    return [MeetingReinstated(trip=meeting.trip, meeting=meeting.id, whole=whole)]


def _invite(meeting: Meeting, delegation: UUID) -> list[Event]:
    if delegation in meeting.delegations:
        raise WrongState("The delegation is invited already.", delegation=str(delegation))
    changed, was = differing(meeting, MeetingFields(delegations=(*meeting.delegations, delegation)))
    return [DelegationInvited(trip=meeting.trip, meeting=meeting.id, delegation=delegation, changed=changed, was=was)]


def _uninvite(meeting: Meeting, delegation: UUID) -> list[Event]:
    if delegation not in meeting.delegations:
        raise WrongState("The delegation is not invited.", delegation=str(delegation))
    others = tuple(invited for invited in meeting.delegations if invited != delegation)
    changed, was = differing(meeting, MeetingFields(delegations=others))
    return [DelegationUninvited(trip=meeting.trip, meeting=meeting.id, delegation=delegation, changed=changed, was=was)]


def _known(meeting: Meeting | None) -> Meeting:
    if meeting is None:
        raise NotFound("There is no such meeting.")
    return meeting


def _live(meeting: Meeting | None) -> Meeting:
    if _known(meeting).status == "cancelled":
        raise WrongState("The meeting is cancelled.", state="cancelled")
    return _known(meeting)


def _times(start: Timed, duration: timedelta) -> MeetingFields:
    return MeetingFields(
        start=start.wall,
        zone=start.zone,
        duration=duration,
        starts_at=start.instant,
        ends_at=start.instant + duration,
        tz=start.tz,
    )

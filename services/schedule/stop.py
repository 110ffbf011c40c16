"""A stop: one city of a trip, with the clocks of its own zone, from arrival to departure.

No two live stops of a trip overlap (touching is allowed), and no live meeting lies outside the stay at its stop, also
not after the stop is changed or dropped. Both are reckoned by instants.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, TypeAlias, assert_never, get_args
from uuid import UUID

from typing_extensions import TypedDict

from services.schedule.stay import Engagement as Engagement
from services.schedule.stay import Stay as Stay
from services.schedule.stay import check_free, check_none_outside
from services.schedule.trip import TripStatus, require_open
from services.schedule.wall_time import Fold, Timed, resolve, resolve_near, settle
from shared.deciding import differing, optional_reason, required_text
from shared.errors import Invalid, NotFound, WrongState

NAME = "stop"

StopStatus = Literal["planned", "dropped"]


# Commands


class StopPatch(TypedDict, total=False):
    """What a planner sets of a stop; `arrives` and `departs` are wall times (naive) in `zone`."""

    place: str
    country: str
    zone: str
    arrives: datetime
    departs: datetime
    host: UUID | None
    assumed: bool


@dataclass(frozen=True, kw_only=True)
class AddStop:
    """`host` is the delegation that receives the trip here; `assumed` marks times that are not known for certain."""

    trip: UUID
    stop: UUID
    place: str
    country: str
    zone: str
    arrives: datetime
    arrives_fold: Fold | None
    departs: datetime
    departs_fold: Fold | None
    host: UUID | None
    assumed: bool


@dataclass(frozen=True, kw_only=True)
class ChangeStop:
    """Another zone keeps the wall times: it is the same hour by other clocks. What is not in `changes` stays."""

    stop: UUID
    changes: StopPatch
    arrives_fold: Fold | None
    departs_fold: Fold | None


@dataclass(frozen=True, kw_only=True)
class DropStop:
    stop: UUID
    reason: str | None


Command: TypeAlias = AddStop | ChangeStop | DropStop


# Events


class StopFields(StopPatch, total=False):
    arrives_at: datetime
    departs_at: datetime
    tz: str
    status: StopStatus
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class StopAdded:
    trip: UUID
    stop: UUID
    whole: StopFields


@dataclass(frozen=True, kw_only=True)
class StopChange:
    trip: UUID
    stop: UUID
    changed: StopFields
    was: StopFields


class StopChanged(StopChange):
    """By a planner."""


class StopDropped(StopChange):
    """By a planner, or with its trip."""


class StopRetimed(StopChange):
    """By a newer tz database, which puts the same wall times at other instants."""


Event: TypeAlias = StopAdded | StopChanged | StopDropped | StopRetimed
EVENTS: tuple[type[Event], ...] = get_args(Event)


# State


@dataclass(frozen=True, kw_only=True)
class Stop:
    """`tz` is the tz database release that derived `arrives_at` and `departs_at` (UTC) from the wall times."""

    id: UUID
    trip: UUID
    revision: int
    place: str
    country: str
    zone: str
    arrives: datetime
    departs: datetime
    arrives_at: datetime
    departs_at: datetime
    tz: str
    host: UUID | None
    assumed: bool
    status: StopStatus
    reason: str | None

    @property
    def stay(self) -> Stay:
        live = self.status == "planned"
        return Stay(stop=self.id, zone=self.zone, arrives_at=self.arrives_at, departs_at=self.departs_at, live=live)


def decide(
    command: Command, stop: Stop | None, trip_status: TripStatus, stays: Sequence[Stay], meetings: Sequence[Engagement]
) -> list[Event]:
    """What follows from the command.

    `stays` are those of the trip's stops (this one's and dropped ones are passed over), `meetings` the live meetings of
    this stop. Raises Invalid, NotFound, WrongState, StopsOverlap, MeetingsOutsideStay and what `resolve` raises.
    """
    require_open(trip_status)
    match command:
        case AddStop():
            return _add(command, stop, stays)
        case ChangeStop():
            return _change(command, _live(stop), stays, meetings)
        case DropStop():
            dropped = evolve(stop, event := _drop(_live(stop), command.reason))
            check_none_outside(dropped.stay, meetings)
            return [event]
        case _:
            assert_never(command)


def evolve(stop: Stop | None, event: Event) -> Stop:
    """The stop after the event; LookupError for a change of a stop that was never added."""
    match event:
        case StopAdded():
            return Stop(id=event.stop, trip=event.trip, revision=1, **event.whole)
        case StopChanged() | StopDropped() | StopRetimed():
            if stop is None:
                raise LookupError(f"{event} of no stop")
            return replace(stop, revision=stop.revision + 1, **event.changed)
        case _:
            assert_never(event)


def fall_with_trip(stop: Stop, reason: str) -> list[Event]:
    """The stop of a cancelled trip is dropped for the trip's reason; a dropped one stays as it is."""
    return [_drop(stop, reason)] if stop.status == "planned" else []


def retime(stop: Stop, now: datetime) -> list[Event]:
    """Instants after `now` that the tz database in force puts elsewhere; a wall time moves only if it exists no more.

    A dropped stop is retimed too, for it is still shown with its times.
    """
    arrival = resolve_near(stop.arrives, stop.zone, stop.arrives_at)
    departure = resolve_near(stop.departs, stop.zone, stop.departs_at)
    wanted = StopFields()
    if stop.arrives_at > now and arrival.instant != stop.arrives_at:
        wanted |= StopFields(arrives=arrival.wall, arrives_at=arrival.instant, tz=arrival.tz)
    if stop.departs_at > now and departure.instant != stop.departs_at:
        wanted |= StopFields(departs=departure.wall, departs_at=departure.instant, tz=departure.tz)
    changed, was = differing(stop, wanted)
    return [StopRetimed(trip=stop.trip, stop=stop.id, changed=changed, was=was)] if changed else []


def _add(command: AddStop, stop: Stop | None, stays: Sequence[Stay]) -> list[Event]:
    if stop is not None:
        raise WrongState("There is a stop with this id already.", state=stop.status)
    required_text("place", command.place)
    arrival = resolve(command.arrives, command.zone, command.arrives_fold)
    departure = resolve(command.departs, command.zone, command.departs_fold)
    whole = StopFields(
        place=command.place,
        country=command.country,
        **_times(arrival, departure),
        host=command.host,
        assumed=command.assumed,
        status="planned",
        reason=None,
    )
    added = evolve(None, event := StopAdded(trip=command.trip, stop=command.stop, whole=whole))
    _check_departure(added.stay)
    check_free(added.stay, stays)
    return [event]


def _change(command: ChangeStop, stop: Stop, stays: Sequence[Stay], meetings: Sequence[Engagement]) -> list[Event]:
    if "place" in command.changes:
        required_text("place", command.changes["place"])
    changed, was = differing(stop, StopFields(**{**command.changes, **_new_times(command, stop)}))
    if changed.keys() <= {"tz"}:
        return []
    if changed.keys() & {"arrives_at", "departs_at"}:
        stay = replace(stop, **changed).stay
        _check_departure(stay)
        check_free(stay, stays)
        check_none_outside(stay, meetings)
    return [StopChanged(trip=stop.trip, stop=stop.id, changed=changed, was=was)]


def _new_times(command: ChangeStop, stop: Stop) -> StopFields:
    """Both times, if the command touches one: `tz` is true of both."""
    asked = command.changes.keys() & {"zone", "arrives", "departs"}
    if not asked and command.arrives_fold is None and command.departs_fold is None:
        return StopFields()
    zone = command.changes.get("zone", stop.zone)
    arrival = settle(command.changes.get("arrives", stop.arrives), zone, command.arrives_fold, _arrival(stop))
    departure = settle(command.changes.get("departs", stop.departs), zone, command.departs_fold, _departure(stop))
    return _times(arrival, departure)


def _drop(stop: Stop, reason: str | None) -> StopDropped:
    changed, was = differing(stop, StopFields(status="dropped", reason=optional_reason(reason)))
    return StopDropped(trip=stop.trip, stop=stop.id, changed=changed, was=was)


def _live(stop: Stop | None) -> Stop:
    if stop is None:
        raise NotFound("There is no such stop.")
    if stop.status != "planned":
        raise WrongState("The stop is dropped.", state=stop.status)
    return stop


def _check_departure(stay: Stay) -> None:
    if stay.departs_at <= stay.arrives_at:
        raise Invalid.field("departs", "a stop ends after it begins")


def _times(arrival: Timed, departure: Timed) -> StopFields:
    return StopFields(
        zone=arrival.zone,
        arrives=arrival.wall,
        departs=departure.wall,
        arrives_at=arrival.instant,
        departs_at=departure.instant,
        tz=arrival.tz,
    )


def _arrival(stop: Stop) -> Timed:
    return Timed(wall=stop.arrives, zone=stop.zone, instant=stop.arrives_at, tz=stop.tz)


def _departure(stop: Stop) -> Timed:
    return Timed(wall=stop.departs, zone=stop.zone, instant=stop.departs_at, tz=stop.tz)

"""A trip: one journey of one or more principals, from wheels up at home to wheels down at home.

A completed trip is still mended: its stops, movements and meetings go on taking commands. A cancelled one is closed for
good, and its items fall with it in the same act: `fall_with_trip` of `stop`, `movement` and `meeting`.
"""

from dataclasses import dataclass, replace
from datetime import MAXYEAR, MINYEAR, date
from typing import Literal, TypeAlias, assert_never, get_args
from uuid import UUID

from typing_extensions import TypedDict

from services.schedule.wall_time import check_zone
from shared.deciding import differing, required_reason, required_text
from shared.errors import Invalid, NotFound, WrongState

NAME = "trip"

TripStatus = Literal["planned", "announced", "completed", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a trip or a movement starts or ends: a name for people, and the IANA zone of its clocks."""

    place: str
    zone: str


# Commands


@dataclass(frozen=True, kw_only=True)
class PlanTrip:
    """`principals` are offices ("Secretary of State"): persons' names stand in members' `personal` alone."""

    trip: UUID
    title: str
    principals: tuple[str, ...]
    home: Place
    starts_on: date
    ends_on: date


@dataclass(frozen=True, kw_only=True)
class AnnounceTrip:
    trip: UUID


@dataclass(frozen=True, kw_only=True)
class CompleteTrip:
    trip: UUID


@dataclass(frozen=True, kw_only=True)
class CancelTrip:
    trip: UUID
    reason: str


Command: TypeAlias = PlanTrip | AnnounceTrip | CompleteTrip | CancelTrip


# Events


class TripFields(TypedDict, total=False):
    title: str
    principals: tuple[str, ...]
    home: Place
    starts_on: date
    ends_on: date
    status: TripStatus
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class TripPlanned:
    trip: UUID
    whole: TripFields


@dataclass(frozen=True, kw_only=True)
class TripChange:
    trip: UUID
    changed: TripFields
    was: TripFields


class TripAnnounced(TripChange):
    """The plan is given out; before, it is internal."""


class TripCompleted(TripChange):
    """The principals are home."""


class TripCancelled(TripChange):
    """It does not take place, or breaks off."""


Event: TypeAlias = TripPlanned | TripAnnounced | TripCompleted | TripCancelled
EVENTS: tuple[type[Event], ...] = get_args(Event)


# State


@dataclass(frozen=True, kw_only=True)
class Trip:
    id: UUID
    revision: int
    title: str
    principals: tuple[str, ...]
    home: Place
    starts_on: date
    ends_on: date
    status: TripStatus
    reason: str | None


def decide(command: Command, trip: Trip | None) -> list[Event]:
    """What follows. Raises Invalid, NotFound, ReasonMissing, WrongState, ZoneAbbreviated, ZoneUnknown."""
    match command:
        case PlanTrip():
            return _plan(command, trip)
        case AnnounceTrip():
            changed, was = _pass_on(trip, TripFields(status="announced"), ("planned",))
            return [TripAnnounced(trip=command.trip, changed=changed, was=was)]
        case CompleteTrip():
            changed, was = _pass_on(trip, TripFields(status="completed"), ("planned", "announced"))
            return [TripCompleted(trip=command.trip, changed=changed, was=was)]
        case CancelTrip():
            wanted = TripFields(status="cancelled", reason=required_reason(command.reason))
            changed, was = _pass_on(trip, wanted, ("planned", "announced"))
            return [TripCancelled(trip=command.trip, changed=changed, was=was)]
        case _:
            assert_never(command)


def evolve(trip: Trip | None, event: Event) -> Trip:
    """The trip after the event; LookupError for a change of a trip that was never planned."""
    match event:
        case TripPlanned():
            return Trip(id=event.trip, revision=1, **event.whole)
        case TripAnnounced() | TripCompleted() | TripCancelled():
            if trip is None:
                raise LookupError(f"{event} of no trip")
            return replace(trip, revision=trip.revision + 1, **event.changed)
        case _:
            assert_never(event)


def require_open(trip_status: TripStatus) -> None:
    """WrongState for any command on the items of a cancelled trip."""
    if trip_status == "cancelled":
        raise WrongState("The trip is cancelled.", state=trip_status)


def check_place(name: str, place: Place) -> None:
    """Raises Invalid, ZoneAbbreviated, ZoneUnknown."""
    required_text(name, place.place)
    check_zone(place.zone)


def _plan(command: PlanTrip, trip: Trip | None) -> list[Event]:
    if trip is not None:
        raise WrongState("There is a trip with this id already.", state=trip.status)
    required_text("title", command.title)
    if not command.principals or not all(principal.strip() for principal in command.principals):
        raise Invalid.field("principals", "a trip has at least one principal, and each is named by an office")
    if len(set(command.principals)) < len(command.principals):
        raise Invalid.field("principals", "a principal is named twice")
    check_place("home", command.home)
    if command.ends_on < command.starts_on:
        raise Invalid.field("ends_on", "a trip ends on the day on which it starts, or later")
    if command.starts_on.year == MINYEAR or command.ends_on.year == MAXYEAR:
        raise Invalid.field("ends_on", "the trip is at the very edge of the calendar")
    whole = TripFields(
        title=command.title,
        principals=command.principals,
        home=command.home,
        starts_on=command.starts_on,
        ends_on=command.ends_on,
        status="planned",
        reason=None,
    )
    return [TripPlanned(trip=command.trip, whole=whole)]


def _pass_on(trip: Trip | None, wanted: TripFields, before: tuple[TripStatus, ...]) -> tuple[TripFields, TripFields]:
    if trip is None:
        raise NotFound("There is no such trip.")
    if trip.status not in before:
        raise WrongState(f"The trip is {trip.status}.", state=trip.status)
    return differing(trip, wanted)

"""A movement: a travel leg that departs by the clocks of one zone and arrives by those of another.

It may arrive "before" it left by local clocks, never by instants. What came of it (wheels up, wheels down) stands
beside the plan and does not change it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, TypeAlias, assert_never, get_args
from uuid import UUID

from typing_extensions import TypedDict

from services.schedule.stay import Stay, live_stay
from services.schedule.trip import Place, TripStatus, check_place, require_open
from services.schedule.wall_time import Fold, Timed, check_instant, resolve, resolve_near, settle
from shared.deciding import differing, optional_reason, required_text
from shared.errors import Invalid, NotFound, WrongState

NAME = "movement"
LONGEST = timedelta(hours=72)
"""A longer leg is taken for a slip of the date."""

MovementMode = Literal["flight", "motorcade", "train", "helicopter"]
MovementStatus = Literal["planned", "dropped"]


# Commands


class MovementPatch(TypedDict, total=False):
    """What a planner sets of a movement; `departs` is a wall time at the origin, `arrives` one at the destination."""

    mode: MovementMode
    label: str
    origin: Place
    destination: Place
    stop: UUID | None
    departs: datetime
    arrives: datetime
    hard: bool
    assumed: bool
    notes: str | None


@dataclass(frozen=True, kw_only=True)
class AddMovement:
    """`stop` is the stop that it arrives at, if any (none: home, or a place on the way)."""

    trip: UUID
    movement: UUID
    mode: MovementMode
    label: str
    origin: Place
    destination: Place
    stop: UUID | None
    departs: datetime
    departs_fold: Fold | None
    arrives: datetime
    arrives_fold: Fold | None
    hard: bool
    assumed: bool
    notes: str | None


@dataclass(frozen=True, kw_only=True)
class ChangeMovement:
    """Another place in another zone keeps the wall times. What is not in `changes` stays."""

    movement: UUID
    changes: MovementPatch
    departs_fold: Fold | None
    arrives_fold: Fold | None


@dataclass(frozen=True, kw_only=True)
class DropMovement:
    movement: UUID
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class ReportWheelsUp:
    """`at` is the instant at which it left; a second report corrects the first."""

    movement: UUID
    at: datetime


@dataclass(frozen=True, kw_only=True)
class ReportWheelsDown:
    """`at` is the instant at which it landed. It needs no wheels up; a second report corrects the first."""

    movement: UUID
    at: datetime


Command: TypeAlias = AddMovement | ChangeMovement | DropMovement | ReportWheelsUp | ReportWheelsDown


# Events


class MovementFields(MovementPatch, total=False):
    departs_at: datetime
    arrives_at: datetime
    tz: str
    left_at: datetime | None
    landed_at: datetime | None
    status: MovementStatus
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class MovementAdded:
    trip: UUID
    movement: UUID
    whole: MovementFields


@dataclass(frozen=True, kw_only=True)
class MovementChange:
    trip: UUID
    movement: UUID
    changed: MovementFields
    was: MovementFields


class MovementChanged(MovementChange):
    """By a planner."""


class MovementDropped(MovementChange):
    """By a planner, or with its trip."""


class WheelsUpReported(MovementChange):
    """It left, or left at another instant than was reported before."""


class WheelsDownReported(MovementChange):
    """It landed, or landed at another instant than was reported before."""


class MovementRetimed(MovementChange):
    """By a newer tz database, which puts the same wall times at other instants."""


Event: TypeAlias = (
    MovementAdded | MovementChanged | MovementDropped | WheelsUpReported | WheelsDownReported | MovementRetimed
)
EVENTS: tuple[type[Event], ...] = get_args(Event)


# State


@dataclass(frozen=True, kw_only=True)
class Movement:
    """`left_at` and `landed_at` are what came of the plan, as reported; `tz` derived `departs_at` and `arrives_at`."""

    id: UUID
    trip: UUID
    revision: int
    mode: MovementMode
    label: str
    origin: Place
    destination: Place
    stop: UUID | None
    departs: datetime
    arrives: datetime
    departs_at: datetime
    arrives_at: datetime
    tz: str
    hard: bool
    assumed: bool
    notes: str | None
    left_at: datetime | None
    landed_at: datetime | None
    status: MovementStatus
    reason: str | None


def decide(command: Command, movement: Movement | None, trip_status: TripStatus, stays: Sequence[Stay]) -> list[Event]:
    """What follows from the command; `stays` are those of all stops of the trip.

    Raises Invalid, NotFound, WrongState and what `resolve` raises.
    """
    require_open(trip_status)
    match command:
        case AddMovement():
            return _add(command, movement, stays)
        case ChangeMovement():
            return _change(command, _live(movement), stays)
        case DropMovement():
            return _drop(_live(movement), command.reason)
        case ReportWheelsUp():
            return _report_up(_live(movement), check_instant("at", command.at))
        case ReportWheelsDown():
            return _report_down(_live(movement), check_instant("at", command.at))
        case _:
            assert_never(command)


def evolve(movement: Movement | None, event: Event) -> Movement:
    """The movement after the event; LookupError for a change of a movement that was never added."""
    match event:
        case MovementAdded():
            return Movement(id=event.movement, trip=event.trip, revision=1, **event.whole)
        case MovementChanged() | MovementDropped() | WheelsUpReported() | WheelsDownReported() | MovementRetimed():
            if movement is None:
                raise LookupError(f"{event} of no movement")
            return replace(movement, revision=movement.revision + 1, **event.changed)
        case _:
            assert_never(event)


def fall_with_trip(movement: Movement, reason: str) -> list[Event]:
    """The movement of a cancelled trip is dropped for the trip's reason; a dropped one stays as it is."""
    return _drop(movement, reason) if movement.status == "planned" else []


def retime(movement: Movement, now: datetime) -> list[Event]:
    """Instants after `now` that the tz database in force puts elsewhere; a wall time moves only if it exists no more.

    A dropped movement is retimed too, for it is still shown with its times.
    """
    departure = resolve_near(movement.departs, movement.origin.zone, movement.departs_at)
    arrival = resolve_near(movement.arrives, movement.destination.zone, movement.arrives_at)
    wanted = MovementFields()
    if movement.departs_at > now and departure.instant != movement.departs_at:
        wanted |= MovementFields(departs=departure.wall, departs_at=departure.instant, tz=departure.tz)
    if movement.arrives_at > now and arrival.instant != movement.arrives_at:
        wanted |= MovementFields(arrives=arrival.wall, arrives_at=arrival.instant, tz=arrival.tz)
    changed, was = differing(movement, wanted)
    return [MovementRetimed(trip=movement.trip, movement=movement.id, changed=changed, was=was)] if changed else []


def _add(command: AddMovement, movement: Movement | None, stays: Sequence[Stay]) -> list[Event]:
    if movement is not None:
        raise WrongState("There is a movement with this id already.", state=movement.status)
    required_text("label", command.label)
    check_place("from", command.origin)
    check_place("to", command.destination)
    if command.stop is not None:
        live_stay(command.stop, stays)
    departure = resolve(command.departs, command.origin.zone, command.departs_fold)
    arrival = resolve(command.arrives, command.destination.zone, command.arrives_fold)
    _check_span(departure.instant, arrival.instant)
    whole = MovementFields(
        mode=command.mode,
        label=command.label,
        origin=command.origin,
        destination=command.destination,
        stop=command.stop,
        **_times(departure, arrival),
        hard=command.hard,
        assumed=command.assumed,
        notes=command.notes,
        left_at=None,
        landed_at=None,
        status="planned",
        reason=None,
    )
    return [MovementAdded(trip=command.trip, movement=command.movement, whole=whole)]


def _change(command: ChangeMovement, movement: Movement, stays: Sequence[Stay]) -> list[Event]:
    changes = command.changes
    if "label" in changes:
        required_text("label", changes["label"])
    if "origin" in changes:
        check_place("from", changes["origin"])
    if "destination" in changes:
        check_place("to", changes["destination"])
    changed, was = differing(movement, MovementFields(**{**changes, **_new_times(command, movement)}))
    if changed.keys() <= {"tz"}:
        return []
    if stop := changed.get("stop"):
        live_stay(stop, stays)
    if changed.keys() & {"departs_at", "arrives_at"}:
        _check_span(changed.get("departs_at", movement.departs_at), changed.get("arrives_at", movement.arrives_at))
    return [MovementChanged(trip=movement.trip, movement=movement.id, changed=changed, was=was)]


def _new_times(command: ChangeMovement, movement: Movement) -> MovementFields:
    """Both times, if the command touches one: `tz` is true of both."""
    changes, start, end = command.changes, _departure(movement), _arrival(movement)
    asked = changes.keys() & {"origin", "destination", "departs", "arrives"}
    if not asked and command.departs_fold is None and command.arrives_fold is None:
        return MovementFields()
    start_zone = changes.get("origin", movement.origin).zone
    end_zone = changes.get("destination", movement.destination).zone
    return _times(
        settle(changes.get("departs", start.wall), start_zone, command.departs_fold, start),
        settle(changes.get("arrives", end.wall), end_zone, command.arrives_fold, end),
    )


def _drop(movement: Movement, reason: str | None) -> list[Event]:
    changed, was = differing(movement, MovementFields(status="dropped", reason=optional_reason(reason)))
    return [MovementDropped(trip=movement.trip, movement=movement.id, changed=changed, was=was)]


def _report_up(movement: Movement, at: datetime) -> list[Event]:
    if movement.landed_at is not None and at >= movement.landed_at:
        raise Invalid.field("at", "it left before it landed")
    changed, was = differing(movement, MovementFields(left_at=at))
    return [WheelsUpReported(trip=movement.trip, movement=movement.id, changed=changed, was=was)] if changed else []


def _report_down(movement: Movement, at: datetime) -> list[Event]:
    if movement.left_at is not None and at <= movement.left_at:
        raise Invalid.field("at", "it landed after it left")
    changed, was = differing(movement, MovementFields(landed_at=at))
    return [WheelsDownReported(trip=movement.trip, movement=movement.id, changed=changed, was=was)] if changed else []


def _live(movement: Movement | None) -> Movement:
    if movement is None:
        raise NotFound("There is no such movement.")
    if movement.status != "planned":
        raise WrongState("The movement is dropped.", state=movement.status)
    return movement


def _check_span(departs_at: datetime, arrives_at: datetime) -> None:
    if arrives_at <= departs_at:
        raise Invalid.field("arrives", "a movement arrives after it departs, as instants go")
    if arrives_at - departs_at > LONGEST:
        raise Invalid.field("arrives", f"a movement takes no longer than {LONGEST // timedelta(hours=1)} hours")


def _times(departure: Timed, arrival: Timed) -> MovementFields:
    return MovementFields(
        departs=departure.wall,
        arrives=arrival.wall,
        departs_at=departure.instant,
        arrives_at=arrival.instant,
        tz=departure.tz,
    )


def _departure(movement: Movement) -> Timed:
    zone = movement.origin.zone
    return Timed(wall=movement.departs, zone=zone, instant=movement.departs_at, tz=movement.tz)


def _arrival(movement: Movement) -> Timed:
    zone = movement.destination.zone
    return Timed(wall=movement.arrives, zone=zone, instant=movement.arrives_at, tz=movement.tz)

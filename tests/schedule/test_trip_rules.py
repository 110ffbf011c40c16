"""The rules of a trip: given what happened, when a command comes, then these events or this refusal."""

from dataclasses import replace
from datetime import date
from functools import reduce
from uuid import UUID

import pytest
from pydantic import TypeAdapter

from services.schedule.trip import (
    EVENTS,
    NAME,
    AnnounceTrip,
    CancelTrip,
    Command,
    CompleteTrip,
    Event,
    Place,
    PlanTrip,
    Trip,
    TripAnnounced,
    TripCancelled,
    TripCompleted,
    TripPlanned,
    TripStatus,
    decide,
    evolve,
    require_open,
)
from shared.errors import Invalid, NotFound, ReasonMissing, Refusal, WrongState, ZoneAbbreviated, ZoneUnknown

TRIP = UUID("11111111-0000-4000-8000-000000000001")
PLAN = PlanTrip(
    trip=TRIP,
    title="November journey",
    principals=("Secretary of State", "Secretary of Defense"),
    home=Place(place="Washington", zone="America/New_York"),
    starts_on=date(2023, 11, 2),
    ends_on=date(2023, 11, 10),
)
PLANNED = TripPlanned(
    trip=TRIP,
    whole={
        "title": "November journey",
        "principals": ("Secretary of State", "Secretary of Defense"),
        "home": Place(place="Washington", zone="America/New_York"),
        "starts_on": date(2023, 11, 2),
        "ends_on": date(2023, 11, 10),
        "status": "planned",
        "reason": None,
    },
)
ANNOUNCED = TripAnnounced(trip=TRIP, changed={"status": "announced"}, was={"status": "planned"})
COMPLETED = TripCompleted(trip=TRIP, changed={"status": "completed"}, was={"status": "announced"})
CANCELLED = TripCancelled(
    trip=TRIP,
    changed={"status": "cancelled", "reason": "Storm over the Atlantic"},
    was={"status": "announced", "reason": None},
)


def fold(*events: Event) -> Trip | None:
    return reduce(evolve, events, None)


def when(command: Command, *given: Event) -> list[Event]:
    return decide(command, fold(*given))


def refused(kind: type[Refusal], command: Command, *given: Event) -> Refusal:
    with pytest.raises(kind) as refusal:
        when(command, *given)
    assert type(refusal.value) is kind
    return refusal.value


def test_trip_is_planned_whole() -> None:
    assert when(PLAN) == [PLANNED]


def test_trip_is_announced_once() -> None:
    assert when(AnnounceTrip(trip=TRIP), PLANNED) == [ANNOUNCED]
    assert refused(WrongState, AnnounceTrip(trip=TRIP), PLANNED, ANNOUNCED).members == {"state": "announced"}


def test_trip_is_completed_announced_or_not() -> None:
    assert when(CompleteTrip(trip=TRIP), PLANNED, ANNOUNCED) == [COMPLETED]
    assert when(CompleteTrip(trip=TRIP), PLANNED) == [
        TripCompleted(trip=TRIP, changed={"status": "completed"}, was={"status": "planned"})
    ]


def test_trip_is_cancelled_with_its_reason() -> None:
    assert when(CancelTrip(trip=TRIP, reason=" Storm over the Atlantic\n"), PLANNED, ANNOUNCED) == [CANCELLED]


def test_trip_is_cancelled_before_it_is_announced() -> None:
    assert when(CancelTrip(trip=TRIP, reason="Storm over the Atlantic"), PLANNED) == [
        replace(CANCELLED, was={"status": "planned", "reason": None})
    ]


@pytest.mark.parametrize("reason", ["", " \t\n"])
def test_trip_is_not_cancelled_without_a_reason(reason: str) -> None:
    refused(ReasonMissing, CancelTrip(trip=TRIP, reason=reason), PLANNED)


@pytest.mark.parametrize("end", [COMPLETED, CANCELLED])
@pytest.mark.parametrize(
    "command", [AnnounceTrip(trip=TRIP), CompleteTrip(trip=TRIP), CancelTrip(trip=TRIP, reason="No")]
)
def test_trip_that_has_ended_takes_no_command(command: Command, end: Event) -> None:
    refused(WrongState, command, PLANNED, ANNOUNCED, end)


@pytest.mark.parametrize(
    "command", [AnnounceTrip(trip=TRIP), CompleteTrip(trip=TRIP), CancelTrip(trip=TRIP, reason="No")]
)
def test_trip_that_was_never_planned_is_not_found(command: Command) -> None:
    refused(NotFound, command)
    with pytest.raises(LookupError):
        fold(ANNOUNCED)


def test_trip_is_not_planned_twice() -> None:
    refused(WrongState, PLAN, PLANNED)


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (replace(PLAN, title=" "), "title"),
        (replace(PLAN, principals=()), "principals"),
        (replace(PLAN, principals=("Secretary of State", " ")), "principals"),
        (replace(PLAN, principals=("Secretary of State", "Secretary of State")), "principals"),
        (replace(PLAN, home=Place(place="", zone="America/New_York")), "home"),
        (replace(PLAN, ends_on=date(2023, 11, 1)), "ends_on"),
        (replace(PLAN, ends_on=date(9999, 1, 1)), "ends_on"),
    ],
)
def test_trip_with_a_field_that_makes_no_sense_is_invalid(command: PlanTrip, field: str) -> None:
    assert refused(Invalid, command).members["errors"][0]["loc"] == ["body", field]


def test_trip_of_one_day_is_planned() -> None:
    [event] = when(replace(PLAN, ends_on=date(2023, 11, 2)))
    assert isinstance(event, TripPlanned)


def test_trip_is_at_home_in_a_zone_of_the_database() -> None:
    refused(ZoneAbbreviated, replace(PLAN, home=Place(place="Washington", zone="EST")))
    refused(ZoneUnknown, replace(PLAN, home=Place(place="Washington", zone="America/Washington")))


def test_trip_is_the_fold_of_its_events() -> None:
    assert fold(PLANNED, ANNOUNCED, CANCELLED) == Trip(
        id=TRIP,
        revision=3,
        title="November journey",
        principals=("Secretary of State", "Secretary of Defense"),
        home=Place(place="Washington", zone="America/New_York"),
        starts_on=date(2023, 11, 2),
        ends_on=date(2023, 11, 10),
        status="cancelled",
        reason="Storm over the Atlantic",
    )


def test_trip_closes_its_items_only_when_it_is_cancelled() -> None:
    open_statuses: tuple[TripStatus, ...] = ("planned", "announced", "completed")
    for status in open_statuses:
        require_open(status)
    with pytest.raises(WrongState) as refusal:
        require_open("cancelled")
    assert refusal.value.members == {"state": "cancelled"}


@pytest.mark.parametrize("event", [PLANNED, ANNOUNCED, COMPLETED, CANCELLED], ids=lambda event: type(event).__name__)
def test_trip_event_survives_json(event: Event) -> None:
    adapter: TypeAdapter[Event] = TypeAdapter(type(event))
    assert adapter.validate_json(adapter.dump_json(event)) == event


def test_trip_event_as_json_holds_what_changed_and_no_more() -> None:
    assert TypeAdapter(TripAnnounced).dump_python(ANNOUNCED, mode="json") == {
        "trip": "11111111-0000-4000-8000-000000000001",
        "changed": {"status": "announced"},
        "was": {"status": "planned"},
    }


def test_trip_events_are_all_named_for_the_store() -> None:
    assert NAME == "trip"
    assert (TripPlanned, TripAnnounced, TripCompleted, TripCancelled) == EVENTS

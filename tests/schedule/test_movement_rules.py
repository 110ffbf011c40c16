"""The rules of a movement: two zones, one order of instants, and what came of the plan."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import reduce
from typing import get_args
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from services.schedule.movement import (
    EVENTS,
    NAME,
    AddMovement,
    ChangeMovement,
    Command,
    DropMovement,
    Event,
    Movement,
    MovementAdded,
    MovementChange,
    MovementChanged,
    MovementDropped,
    MovementPatch,
    MovementRetimed,
    ReportWheelsDown,
    ReportWheelsUp,
    WheelsDownReported,
    WheelsUpReported,
    decide,
    evolve,
    fall_with_trip,
    retime,
)
from services.schedule.stay import Stay
from services.schedule.trip import Place, TripStatus
from services.schedule.wall_time import Fold
from shared.errors import Invalid, NotFound, Refusal, WallTimeRepeated, WallTimeSkipped, WrongState, ZoneAbbreviated
from shared.time_zones import tz_release

TRIP = UUID("11111111-0000-4000-8000-000000000001")
FLIGHT = UUID("55555555-0000-4000-8000-000000000001")
AMMAN = UUID("22222222-0000-4000-8000-000000000001")
RAMALLAH = UUID("22222222-0000-4000-8000-000000000002")
TZ = tz_release()


def utc(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2023, 11, day, hour, minute, tzinfo=UTC)


STAYS = (
    Stay(stop=AMMAN, zone="Asia/Amman", arrives_at=utc(3, 18), departs_at=utc(5, 5), live=True),
    Stay(stop=RAMALLAH, zone="Asia/Hebron", arrives_at=utc(5, 7), departs_at=utc(5, 10), live=False),
)
ADD = AddMovement(
    trip=TRIP,
    movement=FLIGHT,
    mode="flight",
    label="Tel Aviv to Amman",
    origin=Place(place="Tel Aviv", zone="Asia/Jerusalem"),
    destination=Place(place="Amman", zone="Asia/Amman"),
    stop=AMMAN,
    departs=datetime(2023, 11, 3, 19, 30),
    departs_fold=None,
    arrives=datetime(2023, 11, 3, 21, 10),
    arrives_fold=None,
    hard=True,
    assumed=False,
    notes="Tail number to follow",
)
ADDED = MovementAdded(
    trip=TRIP,
    movement=FLIGHT,
    whole={
        "mode": "flight",
        "label": "Tel Aviv to Amman",
        "origin": Place(place="Tel Aviv", zone="Asia/Jerusalem"),
        "destination": Place(place="Amman", zone="Asia/Amman"),
        "stop": AMMAN,
        "departs": datetime(2023, 11, 3, 19, 30),
        "arrives": datetime(2023, 11, 3, 21, 10),
        "departs_at": utc(3, 17, 30),
        "arrives_at": utc(3, 18, 10),
        "tz": TZ,
        "hard": True,
        "assumed": False,
        "notes": "Tail number to follow",
        "left_at": None,
        "landed_at": None,
        "status": "planned",
        "reason": None,
    },
)
DROPPED = MovementDropped(
    trip=TRIP,
    movement=FLIGHT,
    changed={"status": "dropped", "reason": "By road instead"},
    was={"status": "planned", "reason": None},
)
UP = WheelsUpReported(trip=TRIP, movement=FLIGHT, changed={"left_at": utc(3, 17, 41)}, was={"left_at": None})
DOWN = WheelsDownReported(trip=TRIP, movement=FLIGHT, changed={"landed_at": utc(3, 18, 22)}, was={"landed_at": None})


def fold(*events: Event) -> Movement:
    movement = reduce(evolve, events, None)
    assert movement is not None
    return movement


def when(command: Command, *given: Event, trip: TripStatus = "announced", stays: Sequence[Stay] = STAYS) -> list[Event]:
    return decide(command, fold(*given) if given else None, trip, stays)


def refused(kind: type[Refusal], command: Command, *given: Event, trip: TripStatus = "announced") -> Refusal:
    with pytest.raises(kind) as refusal:
        when(command, *given, trip=trip)
    assert type(refusal.value) is kind
    return refusal.value


def change(changes: MovementPatch, *, departs_fold: Fold | None = None, arrives_fold: Fold | None = None) -> Command:
    return ChangeMovement(movement=FLIGHT, changes=changes, departs_fold=departs_fold, arrives_fold=arrives_fold)


def up(at: datetime) -> ReportWheelsUp:
    return ReportWheelsUp(movement=FLIGHT, at=at)


def down(at: datetime) -> ReportWheelsDown:
    return ReportWheelsDown(movement=FLIGHT, at=at)


def drop(reason: str | None) -> DropMovement:
    return DropMovement(movement=FLIGHT, reason=reason)


def test_flight_from_tel_aviv_to_amman_takes_forty_minutes() -> None:
    assert when(ADD) == [ADDED]
    assert fold(ADDED).arrives_at - fold(ADDED).departs_at == timedelta(minutes=40)


def test_movement_may_arrive_before_it_left_by_local_clocks() -> None:
    eastward = replace(
        ADD,
        origin=Place(place="Seoul", zone="Asia/Seoul"),
        destination=Place(place="Honolulu", zone="Pacific/Honolulu"),
        stop=None,
        departs=datetime(2023, 11, 9, 20, 0),
        arrives=datetime(2023, 11, 9, 9, 30),
    )
    [event] = when(eastward)
    assert isinstance(event, MovementAdded)
    assert (event.whole["departs_at"], event.whole["arrives_at"]) == (utc(9, 11), utc(9, 19, 30))


def test_movement_from_seoul_to_new_delhi_crosses_a_half_hour_zone() -> None:
    westward = replace(
        ADD,
        origin=Place(place="Seoul", zone="Asia/Seoul"),
        destination=Place(place="New Delhi", zone="Asia/Kolkata"),
        departs=datetime(2023, 11, 9, 16, 0),
        arrives=datetime(2023, 11, 9, 20, 15),
    )
    [event] = when(westward)
    assert isinstance(event, MovementAdded)
    assert event.whole["arrives_at"] - event.whole["departs_at"] == timedelta(hours=7, minutes=45)


@pytest.mark.parametrize(
    "arrives",
    [datetime(2023, 11, 3, 20, 30), datetime(2023, 11, 3, 20, 29), datetime(2023, 11, 6, 20, 31)],
    ids=["at the instant of departure", "before it", "three days and a minute later"],
)
def test_movement_arrives_after_it_departs_and_not_days_later(arrives: datetime) -> None:
    assert refused(Invalid, replace(ADD, arrives=arrives)).members["errors"][0]["loc"] == ["body", "arrives"]
    refused(Invalid, change({"arrives": arrives}), ADDED)


def test_movement_does_not_depart_after_its_arrival_or_days_before() -> None:
    refused(Invalid, change({"departs": datetime(2023, 11, 3, 20, 10)}), ADDED)
    refused(Invalid, change({"departs": datetime(2023, 10, 31, 20, 9)}), ADDED)
    assert len(when(change({"departs": datetime(2023, 10, 31, 20, 10)}), ADDED)) == 1  # three days, to the minute


def test_movement_at_a_skipped_or_repeated_hour_asks_which() -> None:
    home = Place(place="Washington", zone="America/New_York")
    skipped, repeated = datetime(2024, 3, 10, 2, 30), datetime(2023, 11, 5, 1, 30)
    arrives = datetime(2024, 3, 10, 20, 0)
    leaving_twice = replace(ADD, origin=home, departs=repeated, departs_fold=0, arrives=datetime(2023, 11, 5, 21, 0))
    [first] = when(leaving_twice)
    [second] = when(change({}, departs_fold=1), first)
    assert second == MovementChanged(
        trip=TRIP, movement=FLIGHT, changed={"departs_at": utc(5, 6, 30)}, was={"departs_at": utc(5, 5, 30)}
    )
    leaving = replace(ADD, origin=home, departs=skipped, arrives=arrives)
    refused(WallTimeSkipped, leaving)
    [event] = when(replace(leaving, departs_fold=0))
    assert isinstance(event, MovementAdded)
    assert event.whole["departs"] == datetime(2024, 3, 10, 3, 30)
    coming = replace(ADD, destination=home, departs=datetime(2023, 11, 4, 20, 0), arrives=repeated)
    refused(WallTimeRepeated, coming)
    [event] = when(replace(coming, arrives_fold=1))
    assert isinstance(event, MovementAdded)
    assert (event.whole["arrives"], event.whole["arrives_at"]) == (repeated, utc(5, 6, 30))
    assert when(change({"arrives": repeated}), event) == []
    [earlier] = when(change({}, arrives_fold=0), event)
    assert earlier == MovementChanged(
        trip=TRIP, movement=FLIGHT, changed={"arrives_at": utc(5, 5, 30)}, was={"arrives_at": utc(5, 6, 30)}
    )


def test_movement_is_added_to_any_trip_but_a_cancelled_one() -> None:
    for status in get_args(TripStatus):
        if status == "cancelled":
            for command in (ADD, change({"label": "A"}), drop(None), up(utc(3, 18)), down(utc(3, 19))):
                refused(WrongState, command, *(() if command == ADD else (ADDED,)), trip=status)
        else:
            assert when(ADD, trip=status) == [ADDED]


def test_movement_is_added_once() -> None:
    refused(WrongState, ADD, ADDED)


def test_movement_arrives_at_a_live_stop_of_its_trip_or_at_none() -> None:
    stranger = UUID("22222222-0000-4000-8000-000000000009")
    assert refused(Invalid, replace(ADD, stop=stranger)).members["errors"][0]["loc"] == ["body", "stop"]
    assert refused(WrongState, replace(ADD, stop=RAMALLAH)).members == {"stop": str(RAMALLAH)}
    refused(Invalid, change({"stop": stranger}), ADDED)
    refused(WrongState, change({"stop": RAMALLAH}), ADDED)
    assert when(change({"stop": None}), ADDED) == [
        MovementChanged(trip=TRIP, movement=FLIGHT, changed={"stop": None}, was={"stop": AMMAN})
    ]


def test_movement_to_a_stop_that_was_dropped_since_is_still_mended() -> None:
    dropped = tuple(replace(stay, live=False) for stay in STAYS)
    assert len(when(change({"stop": AMMAN, "label": "Tel Aviv to nowhere"}), ADDED, stays=dropped)) == 1


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        (MovementPatch(label=" "), "label"),
        (MovementPatch(origin=Place(place="", zone="Asia/Jerusalem")), "from"),
        (MovementPatch(destination=Place(place=" ", zone="Asia/Amman")), "to"),
    ],
)
def test_movement_with_a_field_that_makes_no_sense_is_invalid(patch: MovementPatch, field: str) -> None:
    assert refused(Invalid, replace(ADD, **patch)).members["errors"][0]["loc"] == ["body", field]
    assert refused(Invalid, change(patch), ADDED).members["errors"][0]["loc"] == ["body", field]


@pytest.mark.parametrize(
    "patch",
    [
        MovementPatch(origin=Place(place="Tel Aviv", zone="IST")),
        MovementPatch(destination=Place(place="Amman", zone="EET")),
    ],
)
def test_movement_needs_zones_of_the_database(patch: MovementPatch) -> None:
    refused(ZoneAbbreviated, replace(ADD, **patch))
    refused(ZoneAbbreviated, change(patch), ADDED)


def test_movement_changes_what_is_given_and_tells_the_old_values() -> None:
    patch = MovementPatch(
        mode="motorcade",
        label="Tel Aviv to the bridge",
        destination=Place(place="Allenby Bridge", zone="Asia/Hebron"),
        arrives=datetime(2023, 11, 3, 22, 0),
        hard=False,
        assumed=True,
        notes=None,
    )
    assert when(change(patch), ADDED) == [
        MovementChanged(
            trip=TRIP,
            movement=FLIGHT,
            changed={
                "mode": "motorcade",
                "label": "Tel Aviv to the bridge",
                "destination": Place(place="Allenby Bridge", zone="Asia/Hebron"),
                "arrives": datetime(2023, 11, 3, 22, 0),
                "arrives_at": utc(3, 20),
                "hard": False,
                "assumed": True,
                "notes": None,
            },
            was={
                "mode": "flight",
                "label": "Tel Aviv to Amman",
                "destination": Place(place="Amman", zone="Asia/Amman"),
                "arrives": datetime(2023, 11, 3, 21, 10),
                "arrives_at": utc(3, 18, 10),
                "hard": True,
                "assumed": False,
                "notes": "Tail number to follow",
            },
        )
    ]


def test_movement_to_a_place_in_another_zone_keeps_its_wall_times() -> None:
    [event] = when(
        change({"origin": Place(place="Larnaca", zone="UTC"), "arrives": datetime(2023, 11, 4, 0, 0)}), ADDED
    )
    assert isinstance(event, MovementChanged)
    assert event.changed == {
        "origin": Place(place="Larnaca", zone="UTC"),
        "arrives": datetime(2023, 11, 4, 0, 0),
        "departs_at": utc(3, 19, 30),
        "arrives_at": utc(3, 21),
    }


def test_movement_that_is_changed_to_what_it_is_does_not_change() -> None:
    assert when(change({}), ADDED) == []
    assert when(change({"departs": ADD.departs, "origin": ADD.origin, "label": ADD.label}), ADDED) == []
    older = MovementAdded(trip=TRIP, movement=FLIGHT, whole=ADDED.whole | {"tz": "2019a"})
    assert when(change({"departs": ADD.departs}), older) == []
    assert when(change({"label": "A"}), older) == [
        MovementChanged(trip=TRIP, movement=FLIGHT, changed={"label": "A"}, was={"label": "Tel Aviv to Amman"})
    ]


@pytest.mark.parametrize(
    ("patch", "derived"),
    [
        (MovementPatch(origin=Place(place="Athens", zone="Europe/Istanbul")), {"departs_at": utc(3, 16, 30)}),
        (MovementPatch(destination=Place(place="Zarqa", zone="Asia/Hebron")), {"arrives_at": utc(3, 19, 10)}),
        (MovementPatch(departs=datetime(2023, 11, 3, 19, 5)), {"departs_at": utc(3, 17, 5)}),
        (MovementPatch(arrives=datetime(2023, 11, 3, 21, 55)), {"arrives_at": utc(3, 18, 55)}),
    ],
)
def test_movement_has_its_instants_derived_from_whatever_is_changed(
    patch: MovementPatch, derived: dict[str, datetime]
) -> None:
    [event] = when(change(patch), ADDED)
    assert isinstance(event, MovementChanged)
    assert event.changed == patch | derived


def test_movement_is_dropped_with_or_without_a_reason() -> None:
    assert when(drop("By road instead "), ADDED) == [DROPPED]
    assert when(drop(" "), ADDED) == [
        MovementDropped(trip=TRIP, movement=FLIGHT, changed={"status": "dropped"}, was={"status": "planned"})
    ]


def test_dropped_movement_takes_no_command() -> None:
    for command in (change({"label": "A"}), drop(None), up(utc(3, 18)), down(utc(3, 19))):
        refused(WrongState, command, ADDED, DROPPED)


def test_movement_that_was_never_added_is_not_found() -> None:
    for command in (change({"label": "A"}), drop(None), up(utc(3, 18)), down(utc(3, 19))):
        refused(NotFound, command)
    with pytest.raises(LookupError):
        fold(UP)


def test_wheels_up_and_down_are_reported_beside_the_plan() -> None:
    assert when(up(datetime(2023, 11, 3, 19, 41, tzinfo=timezone(timedelta(hours=2)))), ADDED) == [UP]
    assert when(down(utc(3, 18, 22)), ADDED, UP) == [DOWN]
    movement = fold(ADDED, UP, DOWN)
    assert (movement.departs_at, movement.left_at) == (utc(3, 17, 30), utc(3, 17, 41))
    assert (movement.arrives_at, movement.landed_at) == (utc(3, 18, 10), utc(3, 18, 22))


def test_wheels_are_reported_in_utc() -> None:
    [event] = when(up(datetime(2023, 11, 3, 19, 41, tzinfo=timezone(timedelta(hours=2)))), ADDED)
    assert isinstance(event, WheelsUpReported)
    left_at = event.changed["left_at"]
    assert left_at is not None
    assert left_at.isoformat() == "2023-11-03T17:41:00+00:00"


def test_wheels_are_corrected_by_a_second_report_and_untouched_by_the_same() -> None:
    assert when(up(utc(3, 17, 44)), ADDED, UP) == [
        WheelsUpReported(
            trip=TRIP, movement=FLIGHT, changed={"left_at": utc(3, 17, 44)}, was={"left_at": utc(3, 17, 41)}
        )
    ]
    assert when(down(utc(3, 18, 25)), ADDED, UP, DOWN) == [
        WheelsDownReported(
            trip=TRIP, movement=FLIGHT, changed={"landed_at": utc(3, 18, 25)}, was={"landed_at": utc(3, 18, 22)}
        )
    ]
    assert when(up(utc(3, 17, 41)), ADDED, UP) == []
    assert when(down(utc(3, 18, 22)), ADDED, UP, DOWN) == []


def test_wheels_down_needs_no_report_of_wheels_up() -> None:
    assert when(down(utc(3, 18, 22)), ADDED) == [DOWN]
    assert when(up(utc(3, 17, 41)), ADDED, DOWN) == [UP]


@pytest.mark.parametrize("minute", [41, 40])
def test_wheels_down_is_after_wheels_up(minute: int) -> None:
    assert refused(Invalid, down(utc(3, 17, minute)), ADDED, UP).members["errors"][0]["loc"] == ["body", "at"]


@pytest.mark.parametrize("minute", [22, 23])
def test_wheels_up_is_before_wheels_down(minute: int) -> None:
    assert refused(Invalid, up(utc(3, 18, minute)), ADDED, DOWN).members["errors"][0]["loc"] == ["body", "at"]


def test_wheels_are_reported_at_an_instant_with_an_offset() -> None:
    for command in (up(datetime(2023, 11, 3, 17, 41)), down(datetime(2023, 11, 3, 18, 22))):
        assert refused(Invalid, command, ADDED).members["errors"][0]["loc"] == ["body", "at"]


def test_movement_falls_with_its_trip_unless_it_is_dropped() -> None:
    assert fall_with_trip(fold(ADDED, UP), "Storm") == [
        MovementDropped(
            trip=TRIP,
            movement=FLIGHT,
            changed={"status": "dropped", "reason": "Storm"},
            was={"status": "planned", "reason": None},
        )
    ]
    assert fall_with_trip(fold(ADDED, DROPPED), "Storm") == []


def test_movement_is_the_fold_of_its_events() -> None:
    assert fold(ADDED, UP, DOWN, DROPPED) == Movement(
        id=FLIGHT,
        trip=TRIP,
        revision=4,
        mode="flight",
        label="Tel Aviv to Amman",
        origin=Place(place="Tel Aviv", zone="Asia/Jerusalem"),
        destination=Place(place="Amman", zone="Asia/Amman"),
        stop=AMMAN,
        departs=datetime(2023, 11, 3, 19, 30),
        arrives=datetime(2023, 11, 3, 21, 10),
        departs_at=utc(3, 17, 30),
        arrives_at=utc(3, 18, 10),
        tz=TZ,
        hard=True,
        assumed=False,
        notes="Tail number to follow",
        left_at=utc(3, 17, 41),
        landed_at=utc(3, 18, 22),
        status="dropped",
        reason="By road instead",
    )


OLDER = MovementAdded(
    trip=TRIP,
    movement=FLIGHT,
    whole=ADDED.whole | {"arrives_at": utc(3, 19, 10), "tz": "2022d"},
)
"""As it was before Jordan stayed on summer time for good."""
RETIMED = MovementRetimed(
    trip=TRIP,
    movement=FLIGHT,
    changed={"arrives_at": utc(3, 18, 10), "tz": TZ},
    was={"arrives_at": utc(3, 19, 10), "tz": "2022d"},
)


def test_movement_is_retimed_by_a_newer_database_only_where_and_when_that_matters() -> None:
    assert retime(fold(OLDER), utc(1, 0)) == [RETIMED]
    assert retime(fold(OLDER, DROPPED), utc(3, 19, 9)) == [RETIMED]
    assert retime(fold(OLDER), utc(3, 19, 10)) == []
    assert retime(fold(OLDER, RETIMED), utc(1, 0)) == []
    both = MovementAdded(trip=TRIP, movement=FLIGHT, whole=OLDER.whole | {"departs_at": utc(3, 16, 30)})
    assert retime(fold(both), utc(3, 16, 30)) == [RETIMED]
    assert retime(fold(both), utc(3, 16, 29)) == [
        MovementRetimed(
            trip=TRIP,
            movement=FLIGHT,
            changed={"departs_at": utc(3, 17, 30), "arrives_at": utc(3, 18, 10), "tz": TZ},
            was={"departs_at": utc(3, 16, 30), "arrives_at": utc(3, 19, 10), "tz": "2022d"},
        )
    ]


EXAMPLES: list[Event] = [ADDED, *when(change({"notes": None, "stop": None}), ADDED), DROPPED, UP, DOWN, RETIMED]


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_movement_event_survives_json(event: Event) -> None:
    adapter: TypeAdapter[Event] = TypeAdapter(type(event))
    again = adapter.validate_json(adapter.dump_json(event))
    assert again == event
    if isinstance(event, MovementChange):
        assert isinstance(again, MovementChange)
        assert (again.changed.keys(), again.was.keys()) == (event.changed.keys(), event.was.keys())


def test_movement_events_are_all_named_for_the_store_and_tried() -> None:
    assert NAME == "movement"
    assert tuple(type(event) for event in EXAMPLES) == EVENTS


@given(reports=st.lists(st.tuples(st.booleans(), st.integers(0, 59)), max_size=8))
def test_movement_after_any_reports_left_before_it_landed(reports: list[tuple[bool, int]]) -> None:
    movement = fold(ADDED)
    for is_up, minute in reports:
        report = up(utc(3, 18, minute)) if is_up else down(utc(3, 18, minute))
        try:
            events = decide(report, movement, "announced", STAYS)
        except Invalid:
            continue
        after = reduce(evolve, events, movement)
        assert (after.id, after.trip, after.revision) == (FLIGHT, TRIP, movement.revision + len(events))
        assert utc(3, 18, minute) in (after.left_at, after.landed_at)
        movement = after
    assert replace(movement, left_at=None, landed_at=None, revision=1) == fold(ADDED)
    if movement.left_at is not None and movement.landed_at is not None:
        assert movement.left_at < movement.landed_at

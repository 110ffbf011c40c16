"""The rules of a stop: its stay, its neighbours, its meetings and its clocks."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import get_args
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from services.schedule.stay import Engagement, Stay
from services.schedule.stop import (
    EVENTS,
    NAME,
    AddStop,
    ChangeStop,
    Command,
    DropStop,
    Event,
    Stop,
    StopAdded,
    StopChanged,
    StopDropped,
    StopPatch,
    StopRetimed,
    decide,
    evolve,
    fall_with_trip,
    retime,
)
from services.schedule.trip import TripStatus
from services.schedule.wall_time import Fold
from shared.errors import (
    Invalid,
    MeetingsOutsideStay,
    NotFound,
    Refusal,
    StopsOverlap,
    WallTimeRepeated,
    WrongState,
    ZoneAbbreviated,
    ZoneUnknown,
)
from shared.time_zones import tz_release

TRIP = UUID("11111111-0000-4000-8000-000000000001")
TOKYO = UUID("22222222-0000-4000-8000-000000000001")
SEOUL = UUID("22222222-0000-4000-8000-000000000002")
HOST = UUID("33333333-0000-4000-8000-000000000001")
EARLY = UUID("44444444-0000-4000-8000-000000000001")
LATE = UUID("44444444-0000-4000-8000-000000000002")
TZ = tz_release()


def utc(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2023, 11, day, hour, minute, tzinfo=UTC)


ADD = AddStop(
    trip=TRIP,
    stop=TOKYO,
    place="Tokyo",
    country="Japan",
    zone="Asia/Tokyo",
    arrives=datetime(2023, 11, 7, 10, 15),
    arrives_fold=None,
    departs=datetime(2023, 11, 8, 17, 45),
    departs_fold=None,
    host=HOST,
    assumed=True,
)
ADDED = StopAdded(
    trip=TRIP,
    stop=TOKYO,
    whole={
        "place": "Tokyo",
        "country": "Japan",
        "zone": "Asia/Tokyo",
        "arrives": datetime(2023, 11, 7, 10, 15),
        "departs": datetime(2023, 11, 8, 17, 45),
        "arrives_at": utc(7, 1, 15),
        "departs_at": utc(8, 8, 45),
        "tz": TZ,
        "host": HOST,
        "assumed": True,
        "status": "planned",
        "reason": None,
    },
)
DROPPED = StopDropped(
    trip=TRIP,
    stop=TOKYO,
    changed={"status": "dropped", "reason": "Flown over"},
    was={"status": "planned", "reason": None},
)


def fold(*events: Event) -> Stop:
    stop = reduce(evolve, events, None)
    assert stop is not None
    return stop


def when(
    command: Command,
    *given: Event,
    trip: TripStatus = "announced",
    stays: Sequence[Stay] = (),
    meetings: Sequence[Engagement] = (),
) -> list[Event]:
    return decide(command, fold(*given) if given else None, trip, stays, meetings)


def refused(
    kind: type[Refusal],
    command: Command,
    *given: Event,
    trip: TripStatus = "announced",
    stays: Sequence[Stay] = (),
    meetings: Sequence[Engagement] = (),
) -> Refusal:
    with pytest.raises(kind) as refusal:
        when(command, *given, trip=trip, stays=stays, meetings=meetings)
    assert type(refusal.value) is kind
    return refusal.value


def change(changes: StopPatch, *, arrives_fold: Fold | None = None, departs_fold: Fold | None = None) -> ChangeStop:
    return ChangeStop(stop=TOKYO, changes=changes, arrives_fold=arrives_fold, departs_fold=departs_fold)


def seoul(arrives_at: datetime, departs_at: datetime, *, live: bool = True) -> Stay:
    return Stay(stop=SEOUL, zone="Asia/Seoul", arrives_at=arrives_at, departs_at=departs_at, live=live)


def engaged(meeting: UUID, starts_at: datetime, ends_at: datetime) -> Engagement:
    return Engagement(meeting=meeting, starts_at=starts_at, ends_at=ends_at)


def test_stop_is_added_with_the_instants_of_its_wall_times() -> None:
    assert when(ADD) == [ADDED]


def test_stop_is_added_to_any_trip_but_a_cancelled_one() -> None:
    for status in get_args(TripStatus):
        if status == "cancelled":
            refused(WrongState, ADD, trip=status)
            refused(WrongState, change({"place": "Kyoto"}), ADDED, trip=status)
            refused(WrongState, DropStop(stop=TOKYO, reason=None), ADDED, trip=status)
        else:
            assert when(ADD, trip=status) == [ADDED]


def test_stop_is_added_once() -> None:
    refused(WrongState, ADD, ADDED)


def test_stop_may_touch_its_neighbours() -> None:
    before, after = seoul(utc(6, 0), utc(7, 1, 15)), seoul(utc(8, 8, 45), utc(9, 0))
    assert when(ADD, stays=(before, after)) == [ADDED]


@pytest.mark.parametrize(
    ("arrives_at", "departs_at"),
    [
        (utc(6, 0), utc(7, 1, 16)),
        (utc(8, 8, 44), utc(9, 0)),
        (utc(7, 12), utc(7, 13)),
        (utc(1, 0), utc(20, 0)),
        (utc(7, 1, 15), utc(8, 8, 45)),
    ],
)
def test_stop_does_not_overlap_a_live_one(arrives_at: datetime, departs_at: datetime) -> None:
    refusal = refused(StopsOverlap, ADD, stays=(seoul(arrives_at, departs_at),))
    assert refusal.members == {"stops": [str(SEOUL)]}
    assert when(ADD, stays=(seoul(arrives_at, departs_at, live=False),)) == [ADDED]


def test_stop_overlaps_by_instants_and_not_by_local_clocks() -> None:
    """Honolulu's morning of the 9th comes after Tokyo's evening of the 9th."""
    honolulu = replace(
        ADD, zone="Pacific/Honolulu", arrives=datetime(2023, 11, 8, 9, 0), departs=datetime(2023, 11, 8, 12, 0)
    )
    assert len(when(honolulu, stays=(seoul(utc(7, 1), utc(8, 19)),))) == 1
    refused(StopsOverlap, honolulu, stays=(seoul(utc(7, 1), utc(8, 19, 1)),))


def test_stop_ends_after_it_begins() -> None:
    for departs in (ADD.arrives, ADD.arrives - timedelta(minutes=1)):
        refusal = refused(Invalid, replace(ADD, departs=departs))
        assert refusal.members["errors"][0]["loc"] == ["body", "departs"]
    refused(Invalid, change({"departs": datetime(2023, 11, 7, 10, 15)}), ADDED)


def test_stop_needs_a_place_and_a_zone_of_the_database() -> None:
    for refusal in (refused(Invalid, replace(ADD, place=" ")), refused(Invalid, change({"place": ""}), ADDED)):
        assert refusal.members["errors"][0]["loc"] == ["body", "place"]
    refused(ZoneAbbreviated, replace(ADD, zone="JST"))
    refused(ZoneUnknown, change({"zone": "Asia/Tokio"}), ADDED)


def test_stop_at_a_repeated_hour_asks_which() -> None:
    jerusalem = replace(
        ADD, zone="Asia/Jerusalem", arrives=datetime(2023, 10, 29, 1, 30), departs=datetime(2023, 10, 29, 1, 45)
    )
    refused(WallTimeRepeated, jerusalem)
    [event] = when(replace(jerusalem, arrives_fold=0, departs_fold=1))
    assert isinstance(event, StopAdded)
    assert (event.whole["arrives_at"], event.whole["departs_at"]) == (
        datetime(2023, 10, 28, 22, 30, tzinfo=UTC),
        datetime(2023, 10, 28, 23, 45, tzinfo=UTC),
    )
    [corrected] = when(change({}, arrives_fold=1), event)
    assert corrected == StopChanged(
        trip=TRIP,
        stop=TOKYO,
        changed={"arrives_at": datetime(2023, 10, 28, 23, 30, tzinfo=UTC)},
        was={"arrives_at": datetime(2023, 10, 28, 22, 30, tzinfo=UTC)},
    )
    [shortened] = when(change({}, departs_fold=0), event)
    assert shortened == StopChanged(
        trip=TRIP,
        stop=TOKYO,
        changed={"departs_at": datetime(2023, 10, 28, 22, 45, tzinfo=UTC)},
        was={"departs_at": datetime(2023, 10, 28, 23, 45, tzinfo=UTC)},
    )
    [later] = when(change({"departs": datetime(2023, 10, 29, 9, 0)}), event)
    assert isinstance(later, StopChanged)
    assert set(later.changed) == {"departs", "departs_at"}  # the first half past one is still the first


def test_stop_changes_what_is_given_and_tells_the_old_values() -> None:
    changes = StopPatch(place="Kyoto", country="Nippon", host=None, assumed=False, departs=datetime(2023, 11, 8, 16, 5))
    assert when(change(changes), ADDED) == [
        StopChanged(
            trip=TRIP,
            stop=TOKYO,
            changed={
                "place": "Kyoto",
                "country": "Nippon",
                "host": None,
                "assumed": False,
                "departs": datetime(2023, 11, 8, 16, 5),
                "departs_at": utc(8, 7, 5),
            },
            was={
                "place": "Tokyo",
                "country": "Japan",
                "host": HOST,
                "assumed": True,
                "departs": datetime(2023, 11, 8, 17, 45),
                "departs_at": utc(8, 8, 45),
            },
        )
    ]


def test_stop_in_another_zone_keeps_its_wall_times() -> None:
    assert when(change({"zone": "Asia/Kolkata"}), ADDED) == [
        StopChanged(
            trip=TRIP,
            stop=TOKYO,
            changed={"zone": "Asia/Kolkata", "arrives_at": utc(7, 4, 45), "departs_at": utc(8, 12, 15)},
            was={"zone": "Asia/Tokyo", "arrives_at": utc(7, 1, 15), "departs_at": utc(8, 8, 45)},
        )
    ]


def test_stop_that_is_changed_to_what_it_is_does_not_change() -> None:
    assert when(change({}), ADDED) == []
    assert when(change({"place": "Tokyo", "zone": "Asia/Tokyo", "arrives": ADD.arrives, "host": HOST}), ADDED) == []


def test_stop_that_was_timed_by_an_older_database_is_not_changed_by_the_same_times() -> None:
    older = StopAdded(trip=TRIP, stop=TOKYO, whole=ADDED.whole | {"tz": "2019a"})
    assert when(change({"arrives": ADD.arrives}), older) == []
    assert when(change({"place": "Kyoto"}), older) == [
        StopChanged(trip=TRIP, stop=TOKYO, changed={"place": "Kyoto"}, was={"place": "Tokyo"})
    ]
    assert when(change({"arrives": datetime(2023, 11, 7, 11, 0)}), older) == [
        StopChanged(
            trip=TRIP,
            stop=TOKYO,
            changed={"arrives": datetime(2023, 11, 7, 11, 0), "arrives_at": utc(7, 2), "tz": TZ},
            was={"arrives": datetime(2023, 11, 7, 10, 15), "arrives_at": utc(7, 1, 15), "tz": "2019a"},
        )
    ]


def test_changed_stop_overlaps_no_other_but_may_overlap_what_it_was() -> None:
    own = fold(ADDED).stay
    later = change({"departs": datetime(2023, 11, 8, 18, 0)})
    assert len(when(later, ADDED, stays=(own,))) == 1
    refused(StopsOverlap, later, ADDED, stays=(own, seoul(utc(8, 8, 45), utc(9, 8))))


def test_stop_that_overlaps_since_a_retiming_still_takes_what_moves_no_time() -> None:
    overlapping = seoul(utc(8, 8), utc(9, 8))
    assert len(when(change({"place": "Kyoto"}), ADDED, stays=(overlapping,))) == 1


def test_changed_stop_leaves_no_live_meeting_outside() -> None:
    first, last = engaged(EARLY, utc(7, 1, 15), utc(7, 2)), engaged(LATE, utc(8, 8), utc(8, 8, 45))
    shorter = change({"arrives": datetime(2023, 11, 7, 10, 16), "departs": datetime(2023, 11, 8, 17, 44)})
    refusal = refused(MeetingsOutsideStay, shorter, ADDED, meetings=(first, last))
    assert refusal.members == {"meetings": [str(EARLY), str(LATE)]}
    same_end = change({"arrives": datetime(2023, 11, 7, 10, 16)})
    assert refused(MeetingsOutsideStay, same_end, ADDED, meetings=(first, last)).members == {"meetings": [str(EARLY)]}
    assert len(when(same_end, ADDED, meetings=(last,))) == 1


def test_dropped_stop_leaves_no_live_meeting() -> None:
    drop = DropStop(stop=TOKYO, reason=" Flown over ")
    assert when(drop, ADDED) == [DROPPED]
    refusal = refused(MeetingsOutsideStay, drop, ADDED, meetings=(engaged(LATE, utc(8, 8), utc(8, 8, 45)),))
    assert refusal.members == {"meetings": [str(LATE)]}


@pytest.mark.parametrize("reason", [None, "", "  "])
def test_stop_is_dropped_without_a_reason(reason: str | None) -> None:
    assert when(DropStop(stop=TOKYO, reason=reason), ADDED) == [
        StopDropped(trip=TRIP, stop=TOKYO, changed={"status": "dropped"}, was={"status": "planned"})
    ]


def test_dropped_stop_takes_no_command() -> None:
    refused(WrongState, change({"place": "Kyoto"}), ADDED, DROPPED)
    refused(WrongState, DropStop(stop=TOKYO, reason=None), ADDED, DROPPED)


def test_stop_that_was_never_added_is_not_found() -> None:
    refused(NotFound, change({"place": "Kyoto"}))
    refused(NotFound, DropStop(stop=TOKYO, reason=None))
    with pytest.raises(LookupError):
        fold(DROPPED)


def test_stop_falls_with_its_trip_unless_it_is_dropped() -> None:
    assert fall_with_trip(fold(ADDED), "Storm") == [
        StopDropped(
            trip=TRIP,
            stop=TOKYO,
            changed={"status": "dropped", "reason": "Storm"},
            was={"status": "planned", "reason": None},
        )
    ]
    assert fall_with_trip(fold(ADDED, DROPPED), "Storm") == []


def test_stop_is_the_fold_of_its_events() -> None:
    changed = when(change({"departs": datetime(2023, 11, 8, 16, 5)}), ADDED)
    assert fold(ADDED, *changed, DROPPED) == Stop(
        id=TOKYO,
        trip=TRIP,
        revision=3,
        place="Tokyo",
        country="Japan",
        zone="Asia/Tokyo",
        arrives=datetime(2023, 11, 7, 10, 15),
        departs=datetime(2023, 11, 8, 16, 5),
        arrives_at=utc(7, 1, 15),
        departs_at=utc(8, 7, 5),
        tz=TZ,
        host=HOST,
        assumed=True,
        status="dropped",
        reason="Flown over",
    )


def test_stop_is_known_to_others_by_its_stay() -> None:
    stay = Stay(stop=TOKYO, zone="Asia/Tokyo", arrives_at=utc(7, 1, 15), departs_at=utc(8, 8, 45), live=True)
    assert fold(ADDED).stay == stay
    assert fold(ADDED, DROPPED).stay == replace(stay, live=False)


OLDER = StopAdded(
    trip=TRIP,
    stop=TOKYO,
    whole=ADDED.whole | {"arrives_at": utc(7, 0, 15), "departs_at": utc(8, 7, 45), "tz": "2019a"},
)
"""As an older database had it: Tokyo one hour ahead of where it is."""
RETIMED = StopRetimed(
    trip=TRIP,
    stop=TOKYO,
    changed={"arrives_at": utc(7, 1, 15), "departs_at": utc(8, 8, 45), "tz": TZ},
    was={"arrives_at": utc(7, 0, 15), "departs_at": utc(8, 7, 45), "tz": "2019a"},
)


def test_stop_is_retimed_by_a_newer_database_and_keeps_its_wall_times() -> None:
    assert retime(fold(OLDER), utc(1, 0)) == [RETIMED]
    assert retime(fold(OLDER, RETIMED), utc(1, 0)) == []
    assert retime(fold(ADDED), utc(1, 0)) == []
    assert retime(fold(OLDER, DROPPED), utc(1, 0)) == [RETIMED]


def test_stop_is_retimed_only_in_the_future() -> None:
    assert retime(fold(OLDER), utc(7, 0, 15)) == [
        StopRetimed(
            trip=TRIP,
            stop=TOKYO,
            changed={"departs_at": utc(8, 8, 45), "tz": TZ},
            was={"departs_at": utc(8, 7, 45), "tz": "2019a"},
        )
    ]
    assert retime(fold(OLDER), utc(8, 7, 45)) == []


EXAMPLES: list[Event] = [ADDED, *when(change({"host": None, "zone": "Asia/Seoul"}), ADDED), DROPPED, RETIMED]


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_stop_event_survives_json(event: Event) -> None:
    adapter: TypeAdapter[Event] = TypeAdapter(type(event))
    assert adapter.validate_json(adapter.dump_json(event)) == event


def test_stop_events_are_all_named_for_the_store_and_tried() -> None:
    assert NAME == "stop"
    assert (StopAdded, StopChanged, StopDropped, StopRetimed) == EVENTS
    assert [type(event) for event in EXAMPLES] == list(EVENTS)


def test_stop_event_as_json_has_wall_times_without_and_instants_with_an_offset() -> None:
    assert TypeAdapter(StopAdded).dump_python(ADDED, mode="json")["whole"] == {
        "place": "Tokyo",
        "country": "Japan",
        "zone": "Asia/Tokyo",
        "arrives": "2023-11-07T10:15:00",
        "departs": "2023-11-08T17:45:00",
        "arrives_at": "2023-11-07T01:15:00Z",
        "departs_at": "2023-11-08T08:45:00Z",
        "tz": TZ,
        "host": str(HOST),
        "assumed": True,
        "status": "planned",
        "reason": None,
    }


PATCHES = st.fixed_dictionaries(
    {},
    optional={
        "place": st.sampled_from(["Tokyo", "Kyoto"]),
        "zone": st.sampled_from(["Asia/Tokyo", "Asia/Kolkata", "America/New_York"]),
        "arrives": st.datetimes(datetime(2023, 11, 3), datetime(2023, 11, 7)).map(lambda t: t.replace(microsecond=0)),
        "departs": st.datetimes(datetime(2023, 11, 5), datetime(2023, 11, 9)).map(lambda t: t.replace(microsecond=0)),
        "host": st.sampled_from([HOST, None]),
    },
)


@given(patches=st.lists(PATCHES, max_size=6))
def test_stop_after_any_changes_is_what_was_asked_for_and_ends_after_it_begins(patches: list[StopPatch]) -> None:
    stop = fold(ADDED)
    for patch in patches:
        try:
            events = decide(change(patch), stop, "planned", (), ())
        except Refusal:
            continue
        after = reduce(evolve, events, stop)
        assert (after.id, after.trip, after.revision) == (TOKYO, TRIP, stop.revision + len(events))
        assert {name: getattr(after, name) for name in patch} == patch
        assert (events == []) == (after == stop)
        assert after.arrives_at < after.departs_at
        assert all(event.changed.keys() == event.was.keys() for event in events if isinstance(event, StopChanged))
        stop = after

"""The rules of a meeting: its time and zone, its stay, its status, its guests."""

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

from services.schedule.meeting import (
    EVENTS,
    NAME,
    CancelMeeting,
    Command,
    ConfirmMeeting,
    DelegationInvited,
    DelegationUninvited,
    Event,
    InviteDelegation,
    Meeting,
    MeetingCancelled,
    MeetingChange,
    MeetingConfirmed,
    MeetingMoved,
    MeetingReinstated,
    MeetingRescheduled,
    MeetingRetimed,
    MeetingRevised,
    MeetingScheduled,
    MoveMeeting,
    ReinstateMeeting,
    RescheduleMeeting,
    ReviseMeeting,
    ScheduleMeeting,
    UninviteDelegation,
    decide,
    evolve,
    fall_with_trip,
    retime,
)
from services.schedule.meeting_fields import MeetingKind, MeetingPlace, MeetingText, MeetingTiming
from services.schedule.stay import Engagement, Stay
from services.schedule.trip import TripStatus
from services.schedule.venue import Press, PressTag, Venue
from services.schedule.wall_time import Fold
from shared.errors import (
    Invalid,
    NotFound,
    OutsideStay,
    ReasonMissing,
    Refusal,
    WallTimeRepeated,
    WallTimeSkipped,
    WrongState,
    ZoneAbbreviated,
    ZoneUnknown,
)
from shared.time_zones import tz_release

TRIP = UUID("11111111-0000-4000-8000-000000000001")
MEETING = UUID("44444444-0000-4000-8000-000000000001")
TOKYO = UUID("22222222-0000-4000-8000-000000000001")
DELHI = UUID("22222222-0000-4000-8000-000000000002")
BAGHDAD = UUID("22222222-0000-4000-8000-000000000003")
OWN = UUID("33333333-0000-4000-8000-000000000001")
HOST = UUID("33333333-0000-4000-8000-000000000002")
PRESS = UUID("33333333-0000-4000-8000-000000000003")
TZ = tz_release()


def utc(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2023, 11, day, hour, minute, tzinfo=UTC)


STAYS = (
    Stay(stop=TOKYO, zone="Asia/Tokyo", arrives_at=utc(7, 1), departs_at=utc(8, 8), live=True),
    Stay(stop=DELHI, zone="Asia/Kolkata", arrives_at=utc(9, 14), departs_at=utc(10, 14), live=True),
    Stay(stop=BAGHDAD, zone="Asia/Baghdad", arrives_at=utc(5, 12), departs_at=utc(5, 18), live=False),
)
VENUE = Venue(
    name="Iikura Guest House", address="1-5-3 Azabudai", geo=(35.66, 139.74), conference="https://call.test/7"
)
TAG = Press(tag="spray-at-top", preset=datetime(2023, 11, 7, 17, 30), final=datetime(2023, 11, 7, 18, 10))
SCHEDULE = ScheduleMeeting(
    trip=TRIP,
    meeting=MEETING,
    stop=TOKYO,
    title="Foreign Minister Kamikawa",
    kind="bilateral",
    status="tentative",
    start=datetime(2023, 11, 7, 18, 25),
    zone=None,
    fold=None,
    duration=timedelta(minutes=45),
    venue=VENUE,
    topics=("Indo-Pacific", "G7 presidency"),
    notes="Gift: to be decided",
    press=TAG,
    hard=True,
    assumed=False,
    delegations=(OWN, HOST),
)
SCHEDULED = MeetingScheduled(
    trip=TRIP,
    meeting=MEETING,
    whole={
        "stop": TOKYO,
        "title": "Foreign Minister Kamikawa",
        "kind": "bilateral",
        "status": "tentative",
        "start": datetime(2023, 11, 7, 18, 25),
        "zone": "Asia/Tokyo",
        "duration": timedelta(minutes=45),
        "starts_at": utc(7, 9, 25),
        "ends_at": utc(7, 10, 10),
        "tz": TZ,
        "venue": VENUE,
        "topics": ("Indo-Pacific", "G7 presidency"),
        "notes": "Gift: to be decided",
        "press": TAG,
        "hard": True,
        "assumed": False,
        "delegations": (OWN, HOST),
        "reason": None,
    },
)
CONFIRMED = MeetingConfirmed(trip=TRIP, meeting=MEETING, changed={"status": "confirmed"}, was={"status": "tentative"})
CANCELLED = MeetingCancelled(
    trip=TRIP,
    meeting=MEETING,
    changed={"status": "cancelled", "reason": "The Diet is voting"},
    was={"status": "confirmed", "reason": None},
)
REINSTATED = MeetingReinstated(
    trip=TRIP, meeting=MEETING, whole=SCHEDULED.whole | {"status": "confirmed", "reason": None}
)

CONFIRM = ConfirmMeeting(meeting=MEETING)
CANCEL = CancelMeeting(meeting=MEETING, reason=" The Diet is voting ")
REINSTATE = ReinstateMeeting(meeting=MEETING)
INVITE = InviteDelegation(meeting=MEETING, delegation=PRESS)
UNINVITE = UninviteDelegation(meeting=MEETING, delegation=OWN)


def reschedule(changes: MeetingTiming, *, fold: Fold | None = None) -> RescheduleMeeting:
    return RescheduleMeeting(meeting=MEETING, changes=changes, fold=fold)


def move(changes: MeetingPlace, *, fold: Fold | None = None) -> MoveMeeting:
    return MoveMeeting(meeting=MEETING, changes=changes, fold=fold)


def revise(changes: MeetingText) -> ReviseMeeting:
    return ReviseMeeting(meeting=MEETING, changes=changes)


ON_A_LIVE_ONE: list[Command] = [
    reschedule({"duration": timedelta(minutes=50)}),
    move({"venue": None}),
    revise({"title": "Dinner"}),
    CONFIRM,
    CANCEL,
    INVITE,
    UNINVITE,
]


def fold(*events: Event) -> Meeting:
    meeting = reduce(evolve, events, None)
    assert meeting is not None
    return meeting


def when(command: Command, *given: Event, trip: TripStatus = "announced", stays: Sequence[Stay] = STAYS) -> list[Event]:
    return decide(command, fold(*given) if given else None, trip, stays)


def refused(
    kind: type[Refusal],
    command: Command,
    *given: Event,
    trip: TripStatus = "announced",
    stays: Sequence[Stay] = STAYS,
) -> Refusal:
    with pytest.raises(kind) as refusal:
        when(command, *given, trip=trip, stays=stays)
    assert type(refusal.value) is kind
    return refusal.value


def field_of(refusal: Refusal) -> str:
    location: list[str] = refusal.members["errors"][0]["loc"]
    return location[-1]


# Scheduling


def test_meeting_is_scheduled_in_the_zone_of_its_stop() -> None:
    assert when(SCHEDULE) == [SCHEDULED]


def test_meeting_may_have_a_zone_of_its_own() -> None:
    [event] = when(replace(SCHEDULE, kind="call", zone="America/New_York", start=datetime(2023, 11, 7, 8, 0)))
    assert isinstance(event, MeetingScheduled)
    assert (event.whole["zone"], event.whole["starts_at"], event.whole["ends_at"]) == (
        "America/New_York",
        utc(7, 13),
        utc(7, 13, 45),
    )


def test_meeting_in_a_half_hour_zone_starts_at_the_half_hour() -> None:
    [event] = when(replace(SCHEDULE, stop=DELHI, start=datetime(2023, 11, 10, 9, 0)))
    assert isinstance(event, MeetingScheduled)
    assert (event.whole["zone"], event.whole["starts_at"]) == ("Asia/Kolkata", utc(10, 3, 30))


def test_meeting_is_scheduled_confirmed_if_it_is() -> None:
    assert when(replace(SCHEDULE, status="confirmed")) == [
        replace(SCHEDULED, whole=SCHEDULED.whole | {"status": "confirmed"})
    ]


def test_meeting_is_scheduled_on_any_trip_but_a_cancelled_one() -> None:
    for status in get_args(TripStatus):
        if status == "cancelled":
            refused(WrongState, SCHEDULE, trip=status)
            refused(WrongState, REINSTATE, SCHEDULED, CONFIRMED, CANCELLED, trip=status)
            for command in ON_A_LIVE_ONE:
                refused(WrongState, command, SCHEDULED, trip=status)
        else:
            assert when(SCHEDULE, trip=status) == [SCHEDULED]


def test_meeting_is_scheduled_once() -> None:
    refused(WrongState, SCHEDULE, SCHEDULED)


@pytest.mark.parametrize(
    ("start", "duration"),
    [
        (datetime(2023, 11, 7, 10, 0), timedelta(hours=31)),
        (datetime(2023, 11, 7, 10, 0), timedelta(seconds=1)),
        (datetime(2023, 11, 8, 16, 59, 59), timedelta(seconds=1)),
    ],
)
def test_meeting_may_fill_the_stay_to_its_ends(start: datetime, duration: timedelta) -> None:
    assert len(when(replace(SCHEDULE, start=start, duration=duration))) == 1


def test_meeting_that_begins_before_the_stay_is_refused() -> None:
    refusal = refused(OutsideStay, replace(SCHEDULE, start=datetime(2023, 11, 7, 9, 59)))
    assert refusal.members == {
        "stop": str(TOKYO),
        "arrives_at": "2023-11-07T01:00:00Z",
        "departs_at": "2023-11-08T08:00:00Z",
        "starts_at": "2023-11-07T00:59:00Z",
        "ends_at": "2023-11-07T01:44:00Z",
    }


def test_meeting_that_outlasts_the_stay_is_refused() -> None:
    refused(OutsideStay, replace(SCHEDULE, start=datetime(2023, 11, 8, 16, 16)))


def test_meeting_is_held_against_the_stay_by_instants_and_not_by_local_clocks() -> None:
    morning = replace(SCHEDULE, start=datetime(2023, 11, 8, 9, 0))
    assert len(when(morning)) == 1
    refused(OutsideStay, replace(morning, zone="America/New_York"))


def test_meeting_is_at_a_live_stop_of_its_trip() -> None:
    stranger = UUID("22222222-0000-4000-8000-000000000009")
    at_baghdad = datetime(2023, 11, 5, 16, 0)
    assert field_of(refused(Invalid, replace(SCHEDULE, stop=stranger))) == "stop"
    assert refused(WrongState, replace(SCHEDULE, stop=BAGHDAD, start=at_baghdad)).members == {"stop": str(BAGHDAD)}
    assert field_of(refused(Invalid, move({"stop": stranger}), SCHEDULED)) == "stop"
    refused(WrongState, move({"stop": BAGHDAD, "start": at_baghdad}), SCHEDULED)


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (replace(SCHEDULE, title=" "), "title"),
        (replace(SCHEDULE, duration=timedelta(0)), "duration"),
        (replace(SCHEDULE, duration=timedelta(minutes=-45)), "duration"),
        (replace(SCHEDULE, duration=timedelta(hours=72, seconds=1)), "duration"),
        (replace(SCHEDULE, duration=timedelta.max), "duration"),
        (replace(SCHEDULE, duration=timedelta(minutes=45, microseconds=1)), "duration"),
        (replace(SCHEDULE, venue=replace(VENUE, name="")), "venue"),
        (replace(SCHEDULE, venue=replace(VENUE, geo=(90.1, 0.0))), "venue"),
        (replace(SCHEDULE, venue=replace(VENUE, geo=(0.0, -180.1))), "venue"),
        (replace(SCHEDULE, venue=replace(VENUE, geo=(float("nan"), 0.0))), "venue"),
        (replace(SCHEDULE, press=replace(TAG, preset=utc(7, 9))), "press"),
        (replace(SCHEDULE, press=replace(TAG, final=datetime(2023, 11, 7, 17, 29))), "press"),
        (replace(SCHEDULE, delegations=(OWN, HOST, OWN)), "delegations"),
    ],
)
def test_meeting_with_a_field_that_makes_no_sense_is_invalid(command: ScheduleMeeting, field: str) -> None:
    assert field_of(refused(Invalid, command)) == field


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (reschedule({"duration": timedelta(0)}), "duration"),
        (move({"duration": timedelta(days=4)}), "duration"),
        (move({"venue": replace(VENUE, geo=(0.0, 181.0))}), "venue"),
        (revise({"title": ""}), "title"),
        (revise({"press": replace(TAG, final=utc(7, 10))}), "press"),
    ],
)
def test_meeting_is_not_changed_to_what_makes_no_sense(command: Command, field: str) -> None:
    assert field_of(refused(Invalid, command, SCHEDULED)) == field


@pytest.mark.parametrize("geo", [(90.0, 180.0), (-90.0, -180.0), (0.0, 0.0), None])
def test_meeting_may_be_anywhere_on_the_globe(geo: tuple[float, float] | None) -> None:
    assert len(when(replace(SCHEDULE, venue=replace(VENUE, geo=geo)))) == 1


def test_press_may_be_let_in_for_the_last_time_when_it_has_set_up() -> None:
    assert len(when(replace(SCHEDULE, press=replace(TAG, final=TAG.preset)))) == 1
    assert len(when(replace(SCHEDULE, press=replace(TAG, preset=None)))) == 1


def test_meeting_may_take_three_days() -> None:
    long = (replace(STAYS[0], departs_at=utc(12, 0)),)
    assert len(when(replace(SCHEDULE, duration=timedelta(hours=72)), stays=long)) == 1


def test_meeting_needs_a_zone_of_the_database() -> None:
    refused(ZoneAbbreviated, replace(SCHEDULE, zone="IST"))
    refused(ZoneAbbreviated, reschedule({"zone": "CST"}), SCHEDULED)
    refused(ZoneUnknown, replace(SCHEDULE, zone=""))
    refused(ZoneUnknown, move({"zone": "Asia/Nowhere"}), SCHEDULED)


def test_meeting_at_a_skipped_or_repeated_hour_asks_which() -> None:
    until = datetime(2024, 4, 1, tzinfo=UTC)
    wide = (Stay(stop=TOKYO, zone="America/New_York", arrives_at=utc(1, 0), departs_at=until, live=True),)
    twice = replace(SCHEDULE, start=datetime(2023, 11, 5, 1, 30))
    assert refused(WallTimeRepeated, twice, stays=wide).members == {
        "candidates": ["2023-11-05T05:30:00Z", "2023-11-05T06:30:00Z"]
    }
    [second] = when(replace(twice, fold=1), stays=wide)
    assert fold(second).starts_at == utc(5, 6, 30)
    [longer] = when(reschedule({"duration": timedelta(hours=1)}), second, stays=wide)
    assert fold(second, longer).starts_at == utc(5, 6, 30)  # nobody is asked again for the choice that was made
    [first] = when(reschedule({}, fold=0), second, stays=wide)
    assert first == MeetingRescheduled(
        trip=TRIP,
        meeting=MEETING,
        changed={"starts_at": utc(5, 5, 30), "ends_at": utc(5, 6, 15)},
        was={"starts_at": utc(5, 6, 30), "ends_at": utc(5, 7, 15)},
    )
    never = reschedule({"start": datetime(2024, 3, 10, 2, 30)})
    refused(WallTimeSkipped, never, second, stays=wide)


def test_meeting_at_a_skipped_hour_is_kept_at_the_one_that_exists() -> None:
    spring = (
        Stay(
            stop=TOKYO,
            zone="America/New_York",
            arrives_at=datetime(2024, 3, 9, tzinfo=UTC),
            departs_at=datetime(2024, 3, 11, tzinfo=UTC),
            live=True,
        ),
    )
    [event] = when(replace(SCHEDULE, start=datetime(2024, 3, 10, 2, 30), fold=0), stays=spring)
    assert (fold(event).start, fold(event).starts_at) == (
        datetime(2024, 3, 10, 3, 30),
        datetime(2024, 3, 10, 7, 30, tzinfo=UTC),
    )


# Another time, another place


def test_meeting_is_rescheduled_with_new_and_old_times() -> None:
    changes = MeetingTiming(start=datetime(2023, 11, 8, 9, 5), duration=timedelta(minutes=50), hard=False, assumed=True)
    assert when(reschedule(changes), SCHEDULED) == [
        MeetingRescheduled(
            trip=TRIP,
            meeting=MEETING,
            changed={
                "start": datetime(2023, 11, 8, 9, 5),
                "duration": timedelta(minutes=50),
                "hard": False,
                "assumed": True,
                "starts_at": utc(8, 0, 5),
                "ends_at": utc(8, 0, 55),
            },
            was={
                "start": datetime(2023, 11, 7, 18, 25),
                "duration": timedelta(minutes=45),
                "hard": True,
                "assumed": False,
                "starts_at": utc(7, 9, 25),
                "ends_at": utc(7, 10, 10),
            },
        )
    ]


def test_meeting_in_another_zone_keeps_its_wall_time() -> None:
    assert when(reschedule({"zone": "Asia/Kolkata"}), SCHEDULED) == [
        MeetingRescheduled(
            trip=TRIP,
            meeting=MEETING,
            changed={"zone": "Asia/Kolkata", "starts_at": utc(7, 12, 55), "ends_at": utc(7, 13, 40)},
            was={"zone": "Asia/Tokyo", "starts_at": utc(7, 9, 25), "ends_at": utc(7, 10, 10)},
        )
    ]


def test_meeting_is_not_rescheduled_out_of_its_stay() -> None:
    refused(OutsideStay, reschedule({"start": datetime(2023, 11, 8, 16, 30)}), SCHEDULED)
    refused(OutsideStay, reschedule({"duration": timedelta(hours=24)}), SCHEDULED)
    earlier_to_the_same_end = MeetingTiming(start=datetime(2023, 11, 7, 9, 10), duration=timedelta(hours=10))
    refused(OutsideStay, reschedule(earlier_to_the_same_end), SCHEDULED)
    refused(OutsideStay, move({"start": datetime(2023, 11, 7, 9, 0)}), SCHEDULED)


def test_meeting_moves_to_another_venue() -> None:
    there = Venue(name="Akasaka Palace", address=None, geo=None, conference=None)
    assert when(move({"venue": there}), SCHEDULED) == [
        MeetingMoved(trip=TRIP, meeting=MEETING, changed={"venue": there}, was={"venue": VENUE})
    ]


def test_meeting_moves_to_another_stop_and_its_zone() -> None:
    changes = MeetingPlace(stop=DELHI, start=datetime(2023, 11, 10, 9, 0), venue=None)
    assert when(move(changes), SCHEDULED) == [
        MeetingMoved(
            trip=TRIP,
            meeting=MEETING,
            changed={
                "stop": DELHI,
                "start": datetime(2023, 11, 10, 9, 0),
                "venue": None,
                "zone": "Asia/Kolkata",
                "starts_at": utc(10, 3, 30),
                "ends_at": utc(10, 4, 15),
            },
            was={
                "stop": TOKYO,
                "start": datetime(2023, 11, 7, 18, 25),
                "venue": VENUE,
                "zone": "Asia/Tokyo",
                "starts_at": utc(7, 9, 25),
                "ends_at": utc(7, 10, 10),
            },
        )
    ]


def test_meeting_moves_to_another_stop_in_the_zone_that_is_said() -> None:
    [event] = when(move({"stop": DELHI, "start": datetime(2023, 11, 10, 9, 0), "zone": "Asia/Tokyo"}), SCHEDULED)
    assert isinstance(event, MeetingMoved)
    assert event.changed == {
        "stop": DELHI,
        "start": datetime(2023, 11, 10, 9, 0),
        "starts_at": utc(10, 0),
        "ends_at": utc(10, 0, 45),
    }


def test_meeting_does_not_move_to_another_stop_at_a_time_outside_of_its_stay() -> None:
    assert refused(OutsideStay, move({"stop": DELHI}), SCHEDULED).members["stop"] == str(DELHI)


def test_meeting_moves_between_stops_also_where_no_time_changes() -> None:
    """The hour is asked of the new stop, also where its clocks are the same."""
    kyoto = Stay(stop=DELHI, zone="Asia/Tokyo", arrives_at=utc(7, 12), departs_at=utc(8, 8), live=True)
    refused(OutsideStay, move({"stop": DELHI}), SCHEDULED, stays=(STAYS[0], kyoto))


def test_meeting_is_revised_with_new_and_old_words() -> None:
    tag = Press(tag="closed", preset=None, final=None)
    changes = MeetingText(title="Dinner", kind="working-meal", topics=("Ukraine",), notes=None, press=tag)
    assert when(revise(changes), SCHEDULED) == [
        MeetingRevised(
            trip=TRIP,
            meeting=MEETING,
            changed={"title": "Dinner", "kind": "working-meal", "topics": ("Ukraine",), "notes": None, "press": tag},
            was={
                "title": "Foreign Minister Kamikawa",
                "kind": "bilateral",
                "topics": ("Indo-Pacific", "G7 presidency"),
                "notes": "Gift: to be decided",
                "press": TAG,
            },
        )
    ]


@pytest.mark.parametrize(
    "command",
    [
        reschedule({}),
        reschedule({"start": SCHEDULE.start, "zone": "Asia/Tokyo", "duration": SCHEDULE.duration, "hard": True}),
        move({}),
        move({"stop": TOKYO, "venue": VENUE, "start": SCHEDULE.start, "assumed": False}),
        revise({}),
        revise({"title": SCHEDULE.title, "topics": SCHEDULE.topics, "press": TAG}),
    ],
)
def test_meeting_that_is_changed_to_what_it_is_does_not_change(command: Command) -> None:
    assert when(command, SCHEDULED) == []
    older = replace(SCHEDULED, whole=SCHEDULED.whole | {"tz": "2019a"})
    assert when(command, older) == []


def test_meeting_that_lies_outside_since_a_retiming_still_takes_what_moves_no_time() -> None:
    elsewhere = (replace(STAYS[0], departs_at=utc(7, 10)),)
    assert len(when(revise({"title": "Dinner"}), SCHEDULED, stays=elsewhere)) == 1
    assert len(when(move({"venue": None}), SCHEDULED, stays=elsewhere)) == 1
    assert len(when(reschedule({"hard": False}), SCHEDULED, stays=elsewhere)) == 1


# Its status


def test_meeting_is_confirmed_once() -> None:
    assert when(CONFIRM, SCHEDULED) == [CONFIRMED]
    assert refused(WrongState, CONFIRM, SCHEDULED, CONFIRMED).members == {"state": "confirmed"}


def test_meeting_is_cancelled_with_its_reason() -> None:
    assert when(CANCEL, SCHEDULED, CONFIRMED) == [CANCELLED]


@pytest.mark.parametrize("reason", ["", " \n"])
def test_meeting_is_not_cancelled_without_a_reason(reason: str) -> None:
    refused(ReasonMissing, CancelMeeting(meeting=MEETING, reason=reason), SCHEDULED)


@pytest.mark.parametrize("command", ON_A_LIVE_ONE, ids=lambda command: type(command).__name__)
def test_cancelled_meeting_takes_no_command_but_its_reinstatement(command: Command) -> None:
    assert refused(WrongState, command, SCHEDULED, CONFIRMED, CANCELLED).members == {"state": "cancelled"}


def test_meeting_that_was_confirmed_is_reinstated_whole_and_confirmed() -> None:
    assert when(REINSTATE, SCHEDULED, CONFIRMED, CANCELLED) == [REINSTATED]


def test_meeting_that_was_tentative_is_reinstated_tentative() -> None:
    cancelled = replace(CANCELLED, was={"status": "tentative", "reason": None})
    assert when(REINSTATE, SCHEDULED, cancelled) == [
        MeetingReinstated(trip=TRIP, meeting=MEETING, whole=SCHEDULED.whole)
    ]


def test_meeting_is_reinstated_with_what_was_changed_before_its_cancellation() -> None:
    [moved] = when(move({"stop": DELHI, "start": datetime(2023, 11, 10, 9, 0)}), SCHEDULED)
    [cancelled] = when(CANCEL, SCHEDULED, moved)
    [reinstated] = when(REINSTATE, SCHEDULED, moved, cancelled)
    assert isinstance(reinstated, MeetingReinstated)
    assert (reinstated.whole["stop"], reinstated.whole["starts_at"]) == (DELHI, utc(10, 3, 30))
    assert replace(fold(SCHEDULED, moved, cancelled, reinstated), revision=2) == fold(SCHEDULED, moved)


@pytest.mark.parametrize("given", [(SCHEDULED,), (SCHEDULED, CONFIRMED)])
def test_live_meeting_is_not_reinstated(given: tuple[Event, ...]) -> None:
    refused(WrongState, REINSTATE, *given)


def test_meeting_is_reinstated_only_within_a_live_stay() -> None:
    given = (SCHEDULED, CONFIRMED, CANCELLED)
    refused(OutsideStay, REINSTATE, *given, stays=(replace(STAYS[0], departs_at=utc(7, 10, 9)),))
    refused(WrongState, REINSTATE, *given, stays=(replace(STAYS[0], live=False),))


def test_meeting_falls_with_its_trip_unless_it_is_cancelled() -> None:
    assert fall_with_trip(fold(SCHEDULED, CONFIRMED), "Storm") == [
        MeetingCancelled(
            trip=TRIP,
            meeting=MEETING,
            changed={"status": "cancelled", "reason": "Storm"},
            was={"status": "confirmed", "reason": None},
        )
    ]
    assert fall_with_trip(fold(SCHEDULED, CONFIRMED, CANCELLED), "Storm") == []


# Its guests

INVITED = DelegationInvited(
    trip=TRIP,
    meeting=MEETING,
    delegation=PRESS,
    changed={"delegations": (OWN, HOST, PRESS)},
    was={"delegations": (OWN, HOST)},
)
UNINVITED = DelegationUninvited(
    trip=TRIP, meeting=MEETING, delegation=OWN, changed={"delegations": (HOST,)}, was={"delegations": (OWN, HOST)}
)


def test_delegation_is_invited_once() -> None:
    assert when(INVITE, SCHEDULED) == [INVITED]
    assert refused(WrongState, INVITE, SCHEDULED, INVITED).members == {"delegation": str(PRESS)}


def test_delegation_is_uninvited_if_it_was_invited() -> None:
    assert when(UNINVITE, SCHEDULED) == [UNINVITED]
    assert refused(WrongState, UNINVITE, SCHEDULED, UNINVITED).members == {"delegation": str(OWN)}


# What it is


@pytest.mark.parametrize("command", [*ON_A_LIVE_ONE, REINSTATE], ids=lambda command: type(command).__name__)
def test_meeting_that_was_never_scheduled_is_not_found(command: Command) -> None:
    refused(NotFound, command)


@pytest.mark.parametrize("event", [CONFIRMED, CANCELLED, REINSTATED])
def test_meeting_that_was_never_scheduled_has_no_history(event: Event) -> None:
    with pytest.raises(LookupError):
        fold(event)


def test_meeting_is_the_fold_of_its_events() -> None:
    cancelled = Meeting(
        id=MEETING,
        trip=TRIP,
        revision=4,
        stop=TOKYO,
        title="Foreign Minister Kamikawa",
        kind="bilateral",
        status="cancelled",
        start=datetime(2023, 11, 7, 18, 25),
        zone="Asia/Tokyo",
        duration=timedelta(minutes=45),
        starts_at=utc(7, 9, 25),
        ends_at=utc(7, 10, 10),
        tz=TZ,
        venue=VENUE,
        topics=("Indo-Pacific", "G7 presidency"),
        notes="Gift: to be decided",
        press=TAG,
        hard=True,
        assumed=False,
        delegations=(OWN, HOST, PRESS),
        reason="The Diet is voting",
        cancelled_from="confirmed",
    )
    assert fold(SCHEDULED, CONFIRMED, INVITED, CANCELLED) == cancelled
    assert fold(SCHEDULED, CONFIRMED, CANCELLED, REINSTATED) == replace(
        cancelled, status="confirmed", delegations=(OWN, HOST), reason=None, cancelled_from=None
    )


def test_live_meeting_alone_is_an_engagement_of_its_stop() -> None:
    assert fold(SCHEDULED).engagement == Engagement(meeting=MEETING, starts_at=utc(7, 9, 25), ends_at=utc(7, 10, 10))
    assert fold(SCHEDULED, CONFIRMED, CANCELLED).engagement is None


# A newer tz database

OLDER = replace(
    SCHEDULED,
    whole=SCHEDULED.whole | {"starts_at": utc(7, 8, 25), "ends_at": utc(7, 9, 10), "tz": "2019a"},
)
RETIMED = MeetingRetimed(
    trip=TRIP,
    meeting=MEETING,
    changed={"starts_at": utc(7, 9, 25), "ends_at": utc(7, 10, 10), "tz": TZ},
    was={"starts_at": utc(7, 8, 25), "ends_at": utc(7, 9, 10), "tz": "2019a"},
)


def test_meeting_is_retimed_by_a_newer_database_and_keeps_its_wall_time() -> None:
    assert retime(fold(OLDER), utc(7, 8, 24)) == [RETIMED]
    assert retime(fold(OLDER, CONFIRMED, CANCELLED), utc(7, 8, 24)) == [RETIMED]
    assert retime(fold(OLDER, RETIMED), utc(1, 0)) == []
    assert retime(fold(replace(SCHEDULED, whole=SCHEDULED.whole | {"tz": "2019a"})), utc(1, 0)) == []


def test_meeting_is_retimed_only_in_the_future() -> None:
    assert retime(fold(OLDER), utc(7, 8, 25)) == []


def test_meeting_at_an_hour_that_a_newer_database_skips_goes_on_at_its_instant() -> None:
    before = replace(
        SCHEDULED,
        whole=SCHEDULED.whole
        | {
            "start": datetime(2024, 3, 10, 2, 30),
            "zone": "America/New_York",
            "starts_at": datetime(2024, 3, 10, 7, 20, tzinfo=UTC),
            "ends_at": datetime(2024, 3, 10, 8, 5, tzinfo=UTC),
        },
    )
    [event] = retime(fold(before), utc(1, 0))
    assert isinstance(event, MeetingRetimed)
    assert event.changed == {
        "start": datetime(2024, 3, 10, 3, 30),
        "starts_at": datetime(2024, 3, 10, 7, 30, tzinfo=UTC),
        "ends_at": datetime(2024, 3, 10, 8, 15, tzinfo=UTC),
    }


# As JSON

EXAMPLES: list[Event] = [
    SCHEDULED,
    *when(reschedule({"start": datetime(2023, 11, 8, 9, 5), "duration": timedelta(days=1) / 8}), SCHEDULED),
    *when(move({"venue": replace(VENUE, geo=None, address=None)}), SCHEDULED),
    *when(revise({"topics": (), "press": None, "notes": None}), SCHEDULED),
    CONFIRMED,
    CANCELLED,
    REINSTATED,
    RETIMED,
    INVITED,
    UNINVITED,
]


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_meeting_event_survives_json(event: Event) -> None:
    adapter: TypeAdapter[Event] = TypeAdapter(type(event))
    again = adapter.validate_json(adapter.dump_json(event))
    assert (type(again), again) == (type(event), event)
    if isinstance(event, MeetingChange):
        assert isinstance(again, MeetingChange)
        assert (again.changed.keys(), again.was.keys()) == (event.changed.keys(), event.was.keys())


def test_meeting_events_are_all_named_for_the_store_and_tried() -> None:
    assert NAME == "meeting"
    assert tuple(type(event) for event in EXAMPLES) == EVENTS


def test_meeting_event_as_json_has_wall_times_instants_and_durations_of_the_standard() -> None:
    assert TypeAdapter(MeetingScheduled).dump_python(SCHEDULED, mode="json") == {
        "trip": str(TRIP),
        "meeting": str(MEETING),
        "whole": {
            "stop": str(TOKYO),
            "title": "Foreign Minister Kamikawa",
            "kind": "bilateral",
            "status": "tentative",
            "start": "2023-11-07T18:25:00",
            "zone": "Asia/Tokyo",
            "duration": "PT45M",
            "starts_at": "2023-11-07T09:25:00Z",
            "ends_at": "2023-11-07T10:10:00Z",
            "tz": TZ,
            "venue": {
                "name": "Iikura Guest House",
                "address": "1-5-3 Azabudai",
                "geo": [35.66, 139.74],
                "conference": "https://call.test/7",
            },
            "topics": ["Indo-Pacific", "G7 presidency"],
            "notes": "Gift: to be decided",
            "press": {"tag": "spray-at-top", "preset": "2023-11-07T17:30:00", "final": "2023-11-07T18:10:00"},
            "hard": True,
            "assumed": False,
            "delegations": [str(OWN), str(HOST)],
            "reason": None,
        },
    }


# Any history

STARTS = st.datetimes(datetime(2023, 11, 6), datetime(2023, 11, 12)).map(lambda start: start.replace(microsecond=0))
DURATIONS = st.integers(-1, 300).map(lambda minutes: timedelta(minutes=minutes))
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.just(CONFIRM),
    st.just(CANCEL),
    st.just(REINSTATE),
    st.sampled_from([OWN, HOST, PRESS]).map(lambda guest: InviteDelegation(meeting=MEETING, delegation=guest)),
    st.sampled_from([OWN, HOST, PRESS]).map(lambda guest: UninviteDelegation(meeting=MEETING, delegation=guest)),
    st.builds(lambda start, duration: reschedule({"start": start, "duration": duration}), STARTS, DURATIONS),
    st.sampled_from(["Asia/Tokyo", "Asia/Kolkata"]).map(lambda zone: reschedule({"zone": zone})),
    st.builds(
        lambda stop, start: move({"stop": stop, "start": start}), st.sampled_from([TOKYO, DELHI, BAGHDAD]), STARTS
    ),
    st.sampled_from(["Dinner", "Supper"]).map(lambda title: revise({"title": title})),
)


@given(commands=st.lists(COMMANDS, max_size=12))
def test_meeting_after_any_commands_is_itself_within_a_live_stay_and_its_events_tell_the_truth(
    commands: list[Command],
) -> None:
    meeting = fold(SCHEDULED)
    for command in commands:
        try:
            events = decide(command, meeting, "announced", STAYS)
        except Refusal:
            continue
        for event in events:
            after = evolve(meeting, event)
            assert (after.id, after.trip, after.revision) == (MEETING, TRIP, meeting.revision + 1)
            assert after != replace(meeting, revision=after.revision)
            if isinstance(event, MeetingChange):
                assert {name: getattr(meeting, name) for name in event.changed} == event.was
                assert {name: getattr(after, name) for name in event.changed} == event.changed
                told = dict(event.changed)
                assert all(told[name] != old for name, old in event.was.items())
            meeting = after
    stay = next(stay for stay in STAYS if stay.stop == meeting.stop)
    assert stay.live
    assert stay.holds(meeting.starts_at, meeting.ends_at)
    assert meeting.ends_at - meeting.starts_at == meeting.duration > timedelta(0)
    assert (meeting.status == "cancelled") == (meeting.cancelled_from is not None) == (meeting.reason is not None)


def test_kinds_and_tags_are_those_of_the_trade() -> None:
    assert get_args(MeetingKind) == (
        "bilateral",
        "multilateral",
        "pull-aside",
        "ceremony",
        "working-meal",
        "press-availability",
        "internal",
        "site-visit",
        "call",
    )
    assert get_args(PressTag) == ("closed", "spray-at-top", "pooled-spray", "open", "determined-by-host")

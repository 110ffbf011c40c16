"""A journey in which every type of event happens, and with it every change that its commands can make.

What stands above the delegation level carries the word "canary", as far as it is a text.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from types import ModuleType
from typing import Any
from uuid import UUID, uuid5

import pytest

from services.notifications import feed_link
from services.notifications import projections as notifications_projections
from services.notifications import published as notifications_published
from services.participants import delegation, member
from services.participants import projections as participants_projections
from services.participants import published as participants_published
from services.schedule import meeting, movement, stop, trip
from services.schedule import projections as schedule_projections
from services.schedule import published as schedule_published
from services.schedule.meeting_fields import MeetingPlace, MeetingText, MeetingTiming
from services.schedule.stay import Stay
from services.schedule.trip import Place
from services.schedule.venue import Press, Venue
from shared.contracts import SERVICES
from shared.event_store import Codec, StoredEvent
from shared.messages import structured
from shared.time_zones import tz_release

TRIP = UUID("11111111-0000-4000-8000-000000000001")
TOKYO = UUID("22222222-0000-4000-8000-000000000001")
SEOUL = UUID("22222222-0000-4000-8000-000000000002")
FLIGHT = UUID("33333333-0000-4000-8000-000000000001")
DINNER = UUID("44444444-0000-4000-8000-000000000001")
OWN = UUID("55555555-0000-4000-8000-000000000001")
JAPAN = UUID("55555555-0000-4000-8000-000000000002")
KOREA = UUID("55555555-0000-4000-8000-000000000003")
LEE = UUID("66666666-0000-4000-8000-000000000001")
RAY = UUID("66666666-0000-4000-8000-000000000002")
LINK = UUID("77777777-0000-4000-8000-000000000001")
PERSON = UUID("88888888-0000-4000-8000-000000000001")


def utc(month: int, day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2024 if month < 6 else 2023, month, day, hour, minute, tzinfo=UTC)


BEFORE_ALL = utc(11, 1, 12)
STAYS = (
    Stay(stop=TOKYO, zone="Asia/Tokyo", arrives_at=utc(11, 7, 1), departs_at=utc(11, 8, 8), live=True),
    Stay(stop=SEOUL, zone="Asia/Seoul", arrives_at=utc(11, 8, 9), departs_at=utc(11, 9, 9), live=True),
)

Step = Callable[[Any], Iterable[Any]]


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a test needs of the three services: how an event is stored, and what is told of it."""

    codec: Codec
    published: ModuleType
    service: str

    def event(self, stored_type: str, text: str) -> StoredEvent:
        """An event as it would stand in the log; `text` is its `data`."""
        return self.as_stored(stored_type, self.codec.decode(stored_type, text))

    def as_stored(self, stored_type: str, data: Any) -> StoredEvent:
        kind = next(name for name in _KINDS if hasattr(data, name))
        return StoredEvent(
            position=41,
            id=uuid5(TRIP, stored_type),
            stream=f"{kind}/{getattr(data, kind)}",
            version=7,
            type=stored_type,
            data=data,
            metadata={
                "actor": "canary-actor",
                "occurred_at": "2023-11-06T22:14:03.000512Z",
                "correlation_id": "99999999-0000-4000-8000-000000000001",
                "causation_id": "99999999-0000-4000-8000-000000000002",
                "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            },
            key=str(data.trip),
            open_sequence=17,
            cleared_sequence=23,
            recorded_at=utc(11, 6, 22, 15),
        )

    def message(self, event: StoredEvent, *, openly: bool) -> dict[str, Any]:
        """The event as the message log gives it."""
        return structured(event, self.published.body(event, openly), self.service, openly=openly, epoch=1)


_KINDS = ("feed_link", "member", "meeting", "movement", "stop", "delegation", "trip")
"""Ids by which an event is known, what is told of it alone before what others are told to belong to."""

_TOLD = {
    "schedule": (schedule_projections.STORE.codec, schedule_published),
    "participants": (participants_projections.STORE.codec, participants_published),
    "notifications": (notifications_projections.STORE.codec, notifications_published),
}


@pytest.fixture(scope="session")
def telling() -> Mapping[str, Told]:
    """By the name of a type."""
    return {
        cls.__name__: Told(codec=_TOLD[service][0], published=_TOLD[service][1], service=service)
        for service, classes in SERVICES.items()
        for cls in classes
    }


@pytest.fixture(scope="session")
def journey() -> list[Any]:
    """All that happened."""
    return [*_trips(), *_stops(), *_movements(), *_meetings(), *_delegations(), *_members(), *_feed_links()]


def _run(evolve: Callable[[Any, Any], Any], *steps: Step) -> list[Any]:
    """One thing's life: each step sees what came of those before."""
    state, events = None, []
    for step in steps:
        for event in step(state):
            state = evolve(state, event)
            events.append(event)
    return events


def _trips() -> list[Any]:
    def when(command: trip.Command) -> Step:
        return lambda state: trip.decide(command, state)

    plan = trip.PlanTrip(
        trip=TRIP,
        title="The Secretary's trip to the Indo-Pacific",
        principals=("Secretary of State", "Secretary of Defense"),
        home=Place(place="Washington", zone="America/New_York"),
        starts_on=date(2023, 11, 2),
        ends_on=date(2023, 11, 10),
    )
    cancel = trip.CancelTrip(trip=TRIP, reason="The Senate votes")
    return [
        *_run(trip.evolve, when(plan), when(trip.AnnounceTrip(trip=TRIP)), when(trip.CompleteTrip(trip=TRIP))),
        *_run(trip.evolve, when(plan), when(cancel)),
    ]


def _stops() -> list[Any]:
    def when(command: stop.Command, tz: str | None = None) -> Step:
        return lambda state: stop.decide(command, replace(state, tz=tz) if tz else state, "announced", (), ())

    add = stop.AddStop(
        trip=TRIP,
        stop=TOKYO,
        place="Tokyo",
        country="Japan",
        zone="Asia/Tokyo",
        arrives=datetime(2023, 11, 7, 10),
        arrives_fold=None,
        departs=datetime(2023, 11, 8, 17),
        departs_fold=None,
        host=JAPAN,
        assumed=True,
    )
    everything: stop.StopPatch = {
        "place": "Seoul",
        "country": "Republic of Korea",
        "zone": "Asia/Seoul",
        "arrives": datetime(2023, 11, 8, 18, 30),
        "departs": datetime(2023, 11, 9, 18, 45),
        "host": KOREA,
        "assumed": False,
    }
    change = stop.ChangeStop(stop=TOKYO, changes=everything, arrives_fold=None, departs_fold=None)
    rename = stop.ChangeStop(stop=TOKYO, changes={"country": "Korea"}, arrives_fold=None, departs_fold=None)
    certain = stop.ChangeStop(stop=TOKYO, changes={"assumed": False}, arrives_fold=None, departs_fold=None)
    by_night = {
        "zone": "America/New_York",
        "arrives": datetime(2024, 3, 10, 2, 10),
        "departs": datetime(2024, 3, 10, 2, 50),
        "arrives_at": utc(3, 10, 7, 20),
        "departs_at": utc(3, 10, 7, 55),
    }
    return [
        *_run(
            stop.evolve,
            when(add),
            when(change, tz="2022g"),
            when(rename),
            lambda state: stop.retime(replace(state, **by_night, tz="2022g"), BEFORE_ALL),
            when(stop.DropStop(stop=TOKYO, reason="No time is left")),
        ),
        *_run(
            stop.evolve,
            when(add),
            lambda state: stop.retime(replace(state, departs_at=utc(11, 8, 10), tz=tz_release()), BEFORE_ALL),
            lambda state: stop.retime(replace(state, arrives_at=utc(11, 7, 3), tz=tz_release()), BEFORE_ALL),
            when(certain),
            when(stop.DropStop(stop=TOKYO, reason=None)),
        ),
    ]


def _movements() -> list[Any]:
    def when(command: movement.Command, tz: str | None = None) -> Step:
        return lambda state: movement.decide(command, replace(state, tz=tz) if tz else state, "announced", STAYS)

    add = movement.AddMovement(
        trip=TRIP,
        movement=FLIGHT,
        mode="flight",
        label="Ankara to Tokyo",
        origin=Place(place="Ankara", zone="Europe/Istanbul"),
        destination=Place(place="Tokyo", zone="Asia/Tokyo"),
        stop=TOKYO,
        departs=datetime(2023, 11, 6, 17),
        departs_fold=None,
        arrives=datetime(2023, 11, 7, 9, 40),
        arrives_fold=None,
        hard=True,
        assumed=True,
        notes="Tail number canary-one",
    )
    everything: movement.MovementPatch = {
        "mode": "train",
        "label": "Tokyo to Seoul",
        "origin": Place(place="Yokota", zone="Asia/Tokyo"),
        "destination": Place(place="Osan", zone="Asia/Seoul"),
        "stop": SEOUL,
        "departs": datetime(2023, 11, 8, 17, 5),
        "arrives": datetime(2023, 11, 8, 18, 20),
        "hard": False,
        "assumed": False,
        "notes": "Tail number canary-two",
    }
    change = movement.ChangeMovement(movement=FLIGHT, changes=everything, departs_fold=None, arrives_fold=None)
    note = movement.ChangeMovement(
        movement=FLIGHT, changes={"notes": "canary-three"}, departs_fold=None, arrives_fold=None
    )
    night = Place(place="Andrews", zone="America/New_York")
    by_night = {
        "origin": night,
        "destination": night,
        "departs": datetime(2024, 3, 10, 2, 10),
        "arrives": datetime(2024, 3, 10, 2, 50),
        "departs_at": utc(3, 10, 7, 20),
        "arrives_at": utc(3, 10, 7, 55),
    }
    relabel = movement.ChangeMovement(
        movement=FLIGHT, changes={"label": "Wheels up Ankara"}, departs_fold=None, arrives_fold=None
    )
    return [
        *_run(
            movement.evolve,
            when(add),
            when(change, tz="2022g"),
            when(note),
            when(relabel),
            lambda state: movement.retime(replace(state, **by_night, tz="2022g"), BEFORE_ALL),
            when(movement.ReportWheelsUp(movement=FLIGHT, at=utc(11, 8, 8, 11))),
            when(movement.ReportWheelsUp(movement=FLIGHT, at=utc(11, 8, 8, 14))),
            when(movement.ReportWheelsDown(movement=FLIGHT, at=utc(11, 8, 9, 31))),
            when(movement.DropMovement(movement=FLIGHT, reason="The aircraft is grounded")),
        ),
        *_run(
            movement.evolve,
            when(add),
            lambda state: movement.retime(replace(state, departs_at=utc(11, 6, 13), tz=tz_release()), BEFORE_ALL),
            lambda state: movement.retime(replace(state, arrives_at=utc(11, 7, 1), tz=tz_release()), BEFORE_ALL),
            when(movement.DropMovement(movement=FLIGHT, reason=None)),
        ),
    ]


def _meetings() -> list[Any]:
    def when(command: meeting.Command, tz: str | None = None) -> Step:
        return lambda state: meeting.decide(command, replace(state, tz=tz) if tz else state, "announced", STAYS)

    def reschedule(changes: MeetingTiming) -> meeting.RescheduleMeeting:
        return meeting.RescheduleMeeting(meeting=DINNER, changes=changes, fold=None)

    def move(changes: MeetingPlace) -> meeting.MoveMeeting:
        return meeting.MoveMeeting(meeting=DINNER, changes=changes, fold=None)

    venue = Venue(
        name="Iikura Guest House",
        address="1-5-3 Azabudai, Minato",
        geo=(35.6602, 139.7427),
        conference="tel:+81-3-canary",
    )
    schedule = meeting.ScheduleMeeting(
        trip=TRIP,
        meeting=DINNER,
        stop=TOKYO,
        title="Foreign Minister Kamikawa",
        kind="bilateral",
        status="tentative",
        start=datetime(2023, 11, 7, 18, 25),
        zone=None,
        fold=None,
        duration=timedelta(minutes=45),
        venue=venue,
        topics=("The Indo-Pacific", "Japan's G7 presidency"),
        notes="Gift: canary-one",
        press=Press(tag="spray-at-top", preset=datetime(2023, 11, 7, 17, 30), final=datetime(2023, 11, 7, 18, 10)),
        hard=True,
        assumed=True,
        delegations=(OWN, JAPAN),
    )
    times: MeetingTiming = {
        "start": datetime(2023, 11, 7, 9, 40),
        "zone": "UTC",
        "duration": timedelta(minutes=50),
        "hard": False,
        "assumed": False,
    }
    place: MeetingPlace = {
        "stop": SEOUL,
        "venue": Venue(name="Foreign Ministry", address=None, geo=None, conference="https://meet.test/seoul"),
        "start": datetime(2023, 11, 9, 11, 15),
        "duration": timedelta(minutes=55),
        "assumed": False,
    }
    text: MeetingText = {
        "title": "Foreign Minister Park",
        "kind": "working-meal",
        "topics": ("Camp David", "Investment"),
        "notes": "Gift: canary-two",
        "press": Press(tag="pooled-spray", preset=None, final=datetime(2023, 11, 9, 10, 55)),
    }
    by_night = {
        "zone": "America/New_York",
        "start": datetime(2024, 3, 10, 2, 30),
        "starts_at": utc(3, 10, 7, 40),
        "ends_at": utc(3, 10, 8, 40),
    }
    cancel = meeting.CancelMeeting(meeting=DINNER, reason="The National Assembly sits")
    return _run(
        meeting.evolve,
        when(schedule),
        when(reschedule(times), tz="2022g"),
        when(reschedule({"hard": True})),
        when(reschedule({"assumed": True})),
        when(move({"venue": replace(venue, conference="sip:canary@calls.test")})),
        when(move({"venue": replace(venue, conference="tel:+81-4-canary")})),
        when(move(place), tz="2022g"),
        when(move({"venue": venue})),
        when(move({"assumed": True})),
        when(meeting.ReviseMeeting(meeting=DINNER, changes=text)),
        when(meeting.ReviseMeeting(meeting=DINNER, changes={"title": "Minister Park"})),
        when(meeting.ReviseMeeting(meeting=DINNER, changes={"notes": None, "press": None})),
        when(meeting.ConfirmMeeting(meeting=DINNER)),
        when(meeting.InviteDelegation(meeting=DINNER, delegation=KOREA)),
        when(meeting.UninviteDelegation(meeting=DINNER, delegation=JAPAN)),
        when(cancel),
        when(meeting.ReinstateMeeting(meeting=DINNER)),
        lambda state: meeting.retime(replace(state, **by_night, tz="2022g"), BEFORE_ALL),
        lambda state: meeting.retime(
            replace(state, zone="Asia/Seoul", start=datetime(2023, 11, 9, 11), tz=tz_release()), BEFORE_ALL
        ),
    )


def _delegations() -> list[Any]:
    def when(command: delegation.Command) -> Step:
        return lambda state: delegation.decide(command, state)

    def joins(who: UUID, function: delegation.MemberFunction) -> Step:
        return lambda state: delegation.enrol(state, who, function)

    register = delegation.RegisterDelegation(trip=TRIP, delegation=JAPAN, name="Japan", kind="host")
    dissolve = delegation.DissolveDelegation(delegation=JAPAN, reason="canary: the ministry is on strike")
    return [
        *_run(
            delegation.evolve,
            when(register),
            when(delegation.RenameDelegation(delegation=JAPAN, name="Host delegation of Japan")),
            joins(LEE, "head"),
            joins(RAY, "interpreter"),
            when(delegation.ReorderMembers(delegation=JAPAN, members=(RAY, LEE))),
            lambda state: delegation.strike(state, LEE),
            when(delegation.NameHead(delegation=JAPAN, member=RAY)),
            when(dissolve),
        ),
        *_run(delegation.evolve, when(register), when(dissolve)),
    ]


def _members() -> list[Any]:
    host = delegation.Delegation(
        id=JAPAN,
        trip=TRIP,
        revision=1,
        name="Japan",
        kind="host",
        status="registered",
        head=None,
        order=(),
        reason=None,
    )

    def when(command: member.Command) -> Step:
        return lambda state: member.decide(command, state, host)

    first = member.Personal(name="Lee Min", title="canary of state", contact="+81 canary")
    add = member.AddMember(trip=TRIP, delegation=JAPAN, member=LEE, person=PERSON, function="member", personal=first)
    second = member.Personal(name="Lee Min-ho", title="canary at large", contact=None)
    third = replace(second, contact="lee@canary.test")
    return [
        *_run(
            member.evolve,
            when(add),
            when(member.ChangeMember(member=LEE, changes={"function": "note-taker", "personal": second})),
            when(member.ChangeMember(member=LEE, changes={"personal": third})),
            when(member.ChangeMember(member=LEE, changes={"function": "head", "personal": second})),
            when(member.ChangeMember(member=LEE, changes={"function": "security"})),
            when(member.WithdrawMember(member=LEE, reason="canary: taken ill")),
        ),
        *_run(member.evolve, when(add), when(member.WithdrawMember(member=LEE, reason=None))),
    ]


def _feed_links() -> list[Any]:
    audience = feed_link.Audience(delegation_kind="own", trip_ends_at=utc(11, 11, 5))

    def when(command: feed_link.Command) -> Step:
        return lambda state: feed_link.decide(command, state, audience)

    issue = feed_link.IssueFeedLink(
        trip=TRIP,
        feed_link=LINK,
        delegation=OWN,
        level="full",
        label="canary phones",
        cleared=True,
        alarm=timedelta(minutes=15),
        creator="canary-clerk",
        secret_hash="1" * 63 + "a",
        expires_at=utc(12, 1, 0),
        at=utc(11, 2, 9),
    )
    rotate = feed_link.RotateFeedLink(
        feed_link=LINK, secret_hash="2" * 63 + "b", grace=timedelta(hours=6), at=utc(11, 5, 20)
    )
    revoke = feed_link.RevokeFeedLink(feed_link=LINK, reason="canary: a phone was lost", at=utc(11, 6, 7, 5))
    return _run(feed_link.evolve, when(issue), when(rotate), when(revoke))

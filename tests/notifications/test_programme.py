"""What stands in whose feed: the contract's two tables, what each entry says at each level, and what never leaks."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notifications.entry import Days, Entry, Moment, Span
from services.notifications.picture import Picture, merge, sequence, snapshot
from services.notifications.programme import COLORS, LEVELS, Audience, Level, feed_name, programme
from services.notifications.rendering import AudienceCache, render

wall = datetime.fromisoformat
KINDS = ("trip", "stop", "movement", "meeting", "delegation", "member")


def ident(kind: str, number: int) -> UUID:
    """The id of a thing of the tests: told apart by kind and number."""
    return UUID(int=(KINDS.index(kind) + 1) * 1000 + number)


US, JAPAN, KOREA, POOL, JORDAN = (ident("delegation", number) for number in range(1, 6))
TEL_AVIV, AMMAN, TOKYO = (ident("stop", number) for number in range(1, 4))
TO_AMMAN = ident("movement", 1)
KAMIKAWA, G7, BRIEFING, STAFF, CALL = (ident("meeting", number) for number in range(1, 6))
FEW_MINUTES = timedelta(minutes=15)


def stop(number: int, **fields: Any) -> tuple[str, UUID, int, Mapping[str, Any]]:
    return "stop", ident("stop", number), number, {"tz": "2025.2", "status": "planned", "reason": None, **fields}


def meeting(number: int, **fields: Any) -> tuple[str, UUID, int, Mapping[str, Any]]:
    usual: dict[str, Any] = {
        "topics": [],
        "notes": None,
        "press": None,
        "venue": None,
        "reason": None,
        "status": "confirmed",
    }
    return "meeting", ident("meeting", number), number, {**usual, "hard": False, "assumed": False, **fields}


def delegation(number: int, **fields: Any) -> tuple[str, UUID, int, Mapping[str, Any]]:
    return "delegation", ident("delegation", number), 0, {"status": "registered", "head": None, "order": [], **fields}


def member(number: int, of: UUID, function: str, **personal: str) -> tuple[str, UUID, int, Mapping[str, Any]]:
    document = {"delegation": str(of), "function": function, "personal": personal, "status": "on-roster"}
    return "member", ident("member", number), 0, document


ROWS = [
    ("trip", ident("trip", 1), 0, {"title": "Secretary's trip", "principals": ["Secretary of State"]}),
    stop(
        1,
        place="Tel Aviv",
        country="Israel",
        zone="Asia/Jerusalem",
        arrives="2023-11-03T08:45:00",
        departs="2023-11-03T19:30:00",
        arrives_at="2023-11-03T06:45:00Z",
        departs_at="2023-11-03T17:30:00Z",
        host=None,
        assumed=False,
    ),
    stop(
        2,
        place="Amman",
        country="Jordan",
        zone="Asia/Amman",
        arrives="2023-11-03T21:10:00",
        departs="2023-11-04T22:00:00",
        arrives_at="2023-11-03T18:10:00Z",
        departs_at="2023-11-04T19:00:00Z",
        host=str(JORDAN),
        assumed=False,
    ),
    stop(
        3,
        place="Tokyo",
        country="Japan",
        zone="Asia/Tokyo",
        arrives="2023-11-07T14:05:00",
        departs="2023-11-08T16:40:00",
        arrives_at="2023-11-07T05:05:00Z",
        departs_at="2023-11-08T07:40:00Z",
        host=str(JAPAN),
        assumed=True,
    ),
    (
        "movement",
        TO_AMMAN,
        7,
        {
            "mode": "flight",
            "label": "Wheels up for Amman",
            "from": {"place": "Tel Aviv", "zone": "Asia/Jerusalem"},
            "to": {"place": "Amman", "zone": "Asia/Amman"},
            "stop": str(AMMAN),
            "departs": "2023-11-03T19:30:00",
            "arrives": "2023-11-03T21:10:00",
            "departs_at": "2023-11-03T17:30:00Z",
            "arrives_at": "2023-11-03T18:10:00Z",
            "left_at": "2023-11-03T17:42:00Z",
            "landed_at": "2023-11-03T18:21:00Z",
            "hard": True,
            "assumed": True,
            "notes": "pouch aboard\nseat 4 free",
            "status": "planned",
            "reason": None,
        },
    ),
    meeting(
        1,
        stop=str(TOKYO),
        title="Foreign Minister Kamikawa",
        kind="bilateral",
        start="2023-11-07T18:25:00",
        zone="Asia/Tokyo",
        duration="PT45M",
        starts_at="2023-11-07T09:25:00Z",
        ends_at="2023-11-07T10:10:00Z",
        venue={
            "name": "Iikura Guest House",
            "address": "1-5-3 Azabudai",
            "geo": [35.66, 139.74],
            "conference": "https://example.org/kamikawa",
        },
        topics=["Ukraine's recovery", "Indo-Pacific"],
        notes="gift: a print\nno photographs",
        press={"tag": "pooled-spray", "preset": "2023-11-07T17:40:00", "final": "2023-11-07T18:10:00"},
        hard=True,
        assumed=True,
        delegations=[str(US), str(JAPAN)],
    ),
    meeting(
        2,
        stop=str(TOKYO),
        title="G7: session on the Middle East",
        kind="multilateral",
        status="tentative",
        start="2023-11-07T20:00:00",
        zone="Asia/Tokyo",
        starts_at="2023-11-07T11:00:00Z",
        ends_at="2023-11-07T12:30:00Z",
        delegations=[str(JAPAN), str(US), str(KOREA)],
    ),
    meeting(
        3,
        stop=str(TOKYO),
        title="Press briefing",
        kind="press-availability",
        status="cancelled",
        reason="flight left early",
        start="2023-11-08T09:00:00",
        zone="Asia/Tokyo",
        starts_at="2023-11-08T00:00:00Z",
        ends_at="2023-11-08T00:20:00Z",
        delegations=[str(US), str(POOL)],
    ),
    meeting(
        4,
        stop=str(AMMAN),
        title="Staff meeting",
        kind="internal",
        start="2023-11-04T07:30:00",
        zone="Asia/Amman",
        starts_at="2023-11-04T04:30:00Z",
        ends_at="2023-11-04T05:00:00Z",
        delegations=[],
    ),
    meeting(
        5,
        stop=str(AMMAN),
        title="Call with the Foreign Minister",
        kind="call",
        start="2023-11-04T11:00:00",
        zone="Asia/Tokyo",
        starts_at="2023-11-04T02:00:00Z",
        ends_at="2023-11-04T02:25:00Z",
        venue={"name": "Holding room", "address": None, "geo": None, "conference": "tel:+962-6-555-0123"},
        delegations=[str(US), str(JAPAN)],
    ),
    delegation(
        1,
        name="Delegation of the United States",
        kind="own",
        head=str(ident("member", 2)),
        order=[str(ident("member", number)) for number in (3, 2)],
    ),
    delegation(2, name="Host delegation of Japan", kind="host", order=[str(ident("member", 4))]),
    delegation(3, name="Delegation of Korea", kind="partner"),
    delegation(4, name="Press pool", kind="press"),
    delegation(5, name="Host delegation of Jordan", kind="host"),
    member(1, US, "note-taker", name="Casey Roe", title="Political Officer", contact="casey@example.org"),
    member(2, US, "head", name="Alex Doe", title="Secretary of State", contact="+1 202 555 0101"),
    member(3, US, "interpreter", name="Kim Poe"),
    member(4, JAPAN, "principal", name="Mori", title="Minister", contact="mori@example.jp"),
    member(5, KOREA, "member", name="Han", title="Counsellor", contact="han@example.kr"),
    member(6, POOL, "press", name="Quinn", title="Correspondent", contact="quinn@example.com"),
]
PICTURE = snapshot(ROWS)


def audience(reader: UUID, level: Level = "delegation", alarm: timedelta | None = None) -> Audience:
    return Audience(delegation=reader, level=level, alarm=alarm)


def entries(
    reader: UUID, level: Level = "delegation", alarm: timedelta | None = None, picture: Picture = PICTURE
) -> dict[UUID, Entry]:
    return {entry.id: entry for entry in programme(picture, audience(reader, level, alarm))}


def but_meeting(thing: UUID, **changes: Any) -> Picture:
    return replace(PICTURE, meetings={**PICTURE.meetings, thing: replace(PICTURE.meetings[thing], **changes)})


def but_stop(thing: UUID, **changes: Any) -> Picture:
    return replace(PICTURE, stops={**PICTURE.stops, thing: replace(PICTURE.stops[thing], **changes)})


def but_movement(**changes: Any) -> Picture:
    return replace(PICTURE, movements={TO_AMMAN: replace(PICTURE.movements[TO_AMMAN], **changes)})


def but_delegation(thing: UUID, **changes: Any) -> Picture:
    changed = replace(PICTURE.delegations[thing], **changes)
    return replace(PICTURE, delegations={**PICTURE.delegations, thing: changed})


KAMIKAWA_AT_DELEGATION = Entry(
    id=KAMIKAWA,
    sequence=1,
    when=Span(
        start=Moment(
            instant=datetime(2023, 11, 7, 9, 25, tzinfo=UTC), zone="Asia/Tokyo", wall=wall("2023-11-07T18:25")
        ),
        end=Moment(instant=datetime(2023, 11, 7, 10, 10, tzinfo=UTC), zone="Asia/Tokyo", wall=wall("2023-11-07T19:10")),
    ),
    sort_instant=datetime(2023, 11, 7, 9, 25, tzinfo=UTC),
    summary="Foreign Minister Kamikawa",
    status="CONFIRMED",
    transparent=False,
    location="Iikura Guest House, 1-5-3 Azabudai",
    geo=(35.66, 139.74),
    text=(
        "Tue 7 Nov 2023, 18:25–19:10 Tokyo (UTC+09:00)",
        "Time assumed, not confirmed",
        "Kind: bilateral",
        "Status: confirmed",
        "Topics:",
        "- Ukraine's recovery",
        "- Indo-Pacific",
        "Invited:",
        "- Delegation of the United States",
        "- Host delegation of Japan",
        "Delegation of the United States:",
        "- Alex Doe (head)",
        "- Kim Poe (interpreter)",
        "- Casey Roe (note-taker)",
    ),
    categories=("bilateral",),
    color="royalblue",
    conference="https://example.org/kamikawa",
    related_to=TOKYO,
    alarm=None,
)
KAMIKAWA_AT_FULL = replace(
    KAMIKAWA_AT_DELEGATION,
    text=(
        "Tue 7 Nov 2023, 18:25–19:10 Tokyo (UTC+09:00)",
        "Time assumed, not confirmed",
        "Hard time: fixed by somebody else",
        "Kind: bilateral",
        "Status: confirmed",
        "Topics:",
        "- Ukraine's recovery",
        "- Indo-Pacific",
        "Press: pooled-spray, pre-set 17:40, final access 18:10",
        "Invited:",
        "- Delegation of the United States",
        "- Host delegation of Japan",
        "Delegation of the United States:",
        "- Alex Doe, Secretary of State (head), +1 202 555 0101",
        "- Kim Poe (interpreter)",
        "- Casey Roe, Political Officer (note-taker), casey@example.org",
        "Host delegation of Japan:",
        "- Mori, Minister (principal), mori@example.jp",
        "Notes: gift: a print",
        "no photographs",
    ),
)
FLIGHT_AT_DELEGATION = Entry(
    id=TO_AMMAN,
    sequence=7,
    when=Span(
        start=Moment(
            instant=datetime(2023, 11, 3, 17, 30, tzinfo=UTC), zone="Asia/Jerusalem", wall=wall("2023-11-03T19:30")
        ),
        end=Moment(instant=datetime(2023, 11, 3, 18, 10, tzinfo=UTC), zone="Asia/Amman", wall=wall("2023-11-03T21:10")),
    ),
    sort_instant=datetime(2023, 11, 3, 17, 30, tzinfo=UTC),
    summary="Wheels up for Amman",
    status="CONFIRMED",
    transparent=False,
    location="Tel Aviv",
    geo=None,
    text=(
        "Dep. Fri 3 Nov 2023, 19:30 Tel Aviv (UTC+02:00)",
        "Arr. Fri 3 Nov 2023, 21:10 Amman (UTC+03:00)",
        "Time assumed, not confirmed",
        "Left: Fri 3 Nov 2023, 19:42 Tel Aviv (UTC+02:00)",
        "Landed: Fri 3 Nov 2023, 21:21 Amman (UTC+03:00)",
        "Mode: flight",
        "Status: landed",
    ),
    categories=("flight",),
    color="darkorange",
    conference=None,
    related_to=None,
    alarm=None,
)
FLIGHT_AT_FULL = replace(
    FLIGHT_AT_DELEGATION,
    text=(
        *FLIGHT_AT_DELEGATION.text[:5],
        "Hard time: fixed by somebody else",
        "Mode: flight",
        "Status: landed",
        "Notes: pouch aboard",
        "seat 4 free",
    ),
)
TOKYO_AT_BOTH = Entry(
    id=TOKYO,
    sequence=3,
    when=Days(first=date(2023, 11, 7), last=date(2023, 11, 8)),
    sort_instant=datetime(2023, 11, 7, 5, 5, tzinfo=UTC),
    summary="Tokyo",
    status="CONFIRMED",
    transparent=True,
    location="Tokyo, Japan",
    geo=None,
    text=(
        "Arr. Tue 7 Nov 2023, 14:05 Tokyo (UTC+09:00)",
        "Dep. Wed 8 Nov 2023, 16:40 Tokyo (UTC+09:00)",
        "Time assumed, not confirmed",
        "Country: Japan",
        "Host: Host delegation of Japan",
        "Status: planned",
    ),
    categories=("stop",),
    color="lightsteelblue",
    conference=None,
    related_to=None,
    alarm=None,
)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("full", (KAMIKAWA_AT_FULL, FLIGHT_AT_FULL, TOKYO_AT_BOTH)),
        ("delegation", (KAMIKAWA_AT_DELEGATION, FLIGHT_AT_DELEGATION, TOKYO_AT_BOTH)),
    ],
)
def test_each_level_shows_a_meeting_a_movement_and_a_stop_whole(level: Level, expected: tuple[Entry, ...]) -> None:
    shown = entries(US, level)
    assert (shown[KAMIKAWA], shown[TO_AMMAN], shown[TOKYO]) == expected


def test_a_hosts_entry_differs_by_its_own_roster_alone() -> None:
    assert entries(JAPAN)[KAMIKAWA] == replace(
        KAMIKAWA_AT_DELEGATION,
        text=(*KAMIKAWA_AT_DELEGATION.text[:10], "Host delegation of Japan:", "- Mori (principal)"),
    )


@pytest.mark.parametrize(
    ("reader", "level", "items"),
    [
        # own: every stop, movement and meeting of the trip
        (US, "full", [TEL_AVIV, TO_AMMAN, AMMAN, CALL, STAFF, TOKYO, KAMIKAWA, G7, BRIEFING]),
        (US, "delegation", [TEL_AVIV, TO_AMMAN, AMMAN, CALL, STAFF, TOKYO, KAMIKAWA, G7, BRIEFING]),
        # host: the stop that it hosts, and the meetings that it is invited to (one of them at another stop)
        (JAPAN, "delegation", [CALL, TOKYO, KAMIKAWA, G7]),
        (JORDAN, "delegation", [AMMAN]),
        # partner, press: the meetings that they are invited to, and their stops
        (KOREA, "delegation", [TOKYO, G7]),
        (POOL, "delegation", [TOKYO, BRIEFING]),
        (ident("delegation", 99), "delegation", []),
    ],
)
def test_each_kind_of_delegation_has_its_items_in_order_of_start(reader: UUID, level: Level, items: list[UUID]) -> None:
    assert [entry.id for entry in programme(PICTURE, audience(reader, level))] == items


def test_entries_of_one_start_stand_in_order_of_id() -> None:
    picture = but_meeting(KAMIKAWA, starts_at=PICTURE.meetings[G7].starts_at)
    turned = replace(picture, meetings=dict(reversed(list(picture.meetings.items()))))
    assert [entry.id for entry in programme(turned, audience(JAPAN))] == [CALL, TOKYO, KAMIKAWA, G7]


def test_an_unknown_kind_of_delegation_gets_what_a_partner_gets() -> None:
    assert [*entries(KOREA, picture=but_delegation(KOREA, kind="observer"))] == [TOKYO, G7]


def test_a_delegation_that_is_no_longer_invited_loses_the_meeting_and_its_stop() -> None:
    assert entries(KOREA, picture=but_meeting(G7, delegations=(JAPAN, US))) == {}


def test_a_cancelled_meeting_stays_marked_with_its_reason() -> None:
    shown = entries(POOL, alarm=FEW_MINUTES)[BRIEFING]
    assert shown == Entry(
        id=BRIEFING,
        sequence=3,
        when=Span(
            start=Moment(
                instant=datetime(2023, 11, 8, 0, 0, tzinfo=UTC), zone="Asia/Tokyo", wall=wall("2023-11-08T09:00")
            ),
            end=Moment(
                instant=datetime(2023, 11, 8, 0, 20, tzinfo=UTC), zone="Asia/Tokyo", wall=wall("2023-11-08T09:20")
            ),
        ),
        sort_instant=datetime(2023, 11, 8, 0, 0, tzinfo=UTC),
        summary="Cancelled: Press briefing",
        status="CANCELLED",
        transparent=True,
        location="Tokyo",
        geo=None,
        text=(
            "Wed 8 Nov 2023, 09:00–09:20 Tokyo (UTC+09:00)",
            "Kind: press-availability",
            "Status: cancelled",
            "Reason: flight left early",
            "Invited:",
            "- Delegation of the United States",
            "- Press pool",
            "Press pool:",
            "- Quinn (press)",
        ),
        categories=("press-availability",),
        color="crimson",
        conference=None,
        related_to=TOKYO,
        alarm=None,
    )


def test_a_dropped_stop_stays_marked_with_its_reason() -> None:
    assert entries(US, picture=but_stop(TOKYO, status="dropped", reason="no runway"))[TOKYO] == replace(
        TOKYO_AT_BOTH,
        summary="Cancelled: Tokyo",
        status="CANCELLED",
        text=(*TOKYO_AT_BOTH.text[:5], "Status: dropped", "Reason: no runway"),
    )


def test_a_stop_covers_its_local_days() -> None:
    red_eye = but_stop(
        TOKYO,
        arrives=wall("2023-11-07T00:30"),
        arrives_at=datetime(2023, 11, 6, 15, 30, tzinfo=UTC),
        departs=wall("2023-11-09T08:59"),
        departs_at=datetime(2023, 11, 8, 23, 59, tzinfo=UTC),
    )
    shown = entries(US, picture=red_eye)[TOKYO]
    assert shown.when == Days(first=date(2023, 11, 7), last=date(2023, 11, 9))
    assert shown.text[:2] == (
        "Arr. Tue 7 Nov 2023, 00:30 Tokyo (UTC+09:00)",
        "Dep. Thu 9 Nov 2023, 08:59 Tokyo (UTC+09:00)",
    )


def test_a_dropped_movement_stays_marked_and_takes_no_time() -> None:
    dropped = but_movement(status="dropped", reason="by road instead")
    assert entries(US, alarm=FEW_MINUTES, picture=dropped)[TO_AMMAN] == replace(
        FLIGHT_AT_DELEGATION,
        summary="Cancelled: Wheels up for Amman",
        status="CANCELLED",
        transparent=True,
        text=(*FLIGHT_AT_DELEGATION.text[:6], "Status: dropped", "Reason: by road instead"),
    )


def test_a_reason_is_shown_of_a_cancellation_alone() -> None:
    picture = but_meeting(KAMIKAWA, reason="moved up")
    assert entries(US, "full", picture=picture)[KAMIKAWA] == KAMIKAWA_AT_FULL


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        ("tentative", ("TENTATIVE", "Status: tentative")),
        ("confirmed", ("CONFIRMED", "Status: confirmed")),
        ("cancelled", ("CANCELLED", "Status: cancelled")),
        ("postponed", ("TENTATIVE", "Status: postponed")),
    ],
)
def test_a_meetings_status_is_shown_as_one_of_three_and_in_words(status: str, shown: tuple[str, str]) -> None:
    entry = entries(US, picture=but_meeting(G7, status=status))[G7]
    assert (entry.status, entry.text[2]) == shown


def test_unknown_kinds_and_modes_are_shown_as_they_are() -> None:
    hologram = entries(US, picture=but_meeting(G7, kind="hologram"))[G7]
    assert (hologram.categories, hologram.color, hologram.text[1]) == (("hologram",), None, "Kind: hologram")
    tiltrotor = entries(US, picture=but_movement(mode="tiltrotor"))[TO_AMMAN]
    assert (tiltrotor.categories, tiltrotor.color) == (("tiltrotor",), COLORS["movement"])
    assert tiltrotor.text[5] == "Mode: tiltrotor"


def test_alarms_stand_at_what_has_a_time_and_is_not_cancelled() -> None:
    shown = entries(US, "full", FEW_MINUTES)
    assert {thing for thing, entry in shown.items() if entry.alarm == FEW_MINUTES} == {
        TO_AMMAN,
        CALL,
        STAFF,
        KAMIKAWA,
        G7,
    }
    assert {entry.alarm for entry in shown.values()} == {FEW_MINUTES, None}


def test_a_meeting_belongs_to_its_stop_only_where_the_feed_has_the_stop() -> None:
    assert {thing: entry.related_to for thing, entry in entries(JAPAN).items()} == {
        CALL: None,  # in Amman, which Japan does not host
        TOKYO: None,
        KAMIKAWA: TOKYO,
        G7: TOKYO,
    }


@pytest.mark.parametrize("kind", ["host", "partner", "press", "observer"])
def test_full_is_for_the_own_delegation_whatever_a_link_says(kind: str) -> None:
    picture = but_delegation(JAPAN, kind=kind)
    assert entries(JAPAN, "full", picture=picture) == entries(JAPAN, "delegation", picture=picture)
    assert entries(JAPAN, "full", picture=picture)[KAMIKAWA].text[-1] == "- Mori (principal)"


@pytest.mark.parametrize(
    ("conference", "below_full"),
    [
        ("https://example.org/room", "https://example.org/room"),
        ("HTTPS://example.org/room", "HTTPS://example.org/room"),
        ("tel:+81-3-5555-0123", None),
        ("TEL:+81-3-5555-0123", None),
        ("mailto:desk@example.org", None),
        ("sip:desk@example.org", None),
        ("httpstel:+81-3-5555-0123", None),
    ],
)
def test_a_conference_is_shown_below_full_only_at_an_https_address(conference: str, below_full: str | None) -> None:
    venue = PICTURE.meetings[KAMIKAWA].venue
    assert venue is not None
    picture = but_meeting(KAMIKAWA, venue=replace(venue, conference=conference))
    assert entries(US, "delegation", picture=picture)[KAMIKAWA].conference == below_full
    assert entries(US, "full", picture=picture)[KAMIKAWA].conference == conference


@pytest.mark.parametrize(
    ("name", "address", "location"),
    [
        ("Kantei", "2-3-1 Nagatacho", "Kantei, 2-3-1 Nagatacho"),
        ("Kantei", None, "Kantei"),
        (None, "2-3-1 Nagatacho", "2-3-1 Nagatacho"),
        ("", None, "Tokyo"),
    ],
)
def test_a_meeting_is_at_its_venue_as_far_as_it_is_known(name: str, address: str | None, location: str) -> None:
    venue = PICTURE.meetings[KAMIKAWA].venue
    assert venue is not None
    picture = but_meeting(KAMIKAWA, venue=replace(venue, name=name, address=address))
    assert entries(US, picture=picture)[KAMIKAWA].location == location


def test_a_meeting_without_a_venue_is_in_its_city() -> None:
    assert (entries(US)[G7].location, entries(US)[G7].geo) == ("Tokyo", None)


def test_a_meeting_whose_stop_is_not_known_names_its_zone() -> None:
    shown = entries(JAPAN, picture=replace(PICTURE, stops={}))[G7]
    assert (shown.text[0], shown.location, shown.related_to) == (
        "Tue 7 Nov 2023, 20:00–21:30 Asia/Tokyo (UTC+09:00)",
        None,
        None,
    )


def test_a_time_in_another_zone_than_the_stops_names_that_zone_and_not_the_city() -> None:
    assert entries(US)[CALL].text[0] == "Sat 4 Nov 2023, 11:00–11:25 Asia/Tokyo (UTC+09:00)"


@pytest.mark.parametrize(
    ("start", "starts_at", "minutes", "line"),
    [
        ("2023-11-09T23:30", "2023-11-09T18:00", 60, "Thu 9 Nov 2023, 23:30 – Fri 10 Nov 2023, 00:30 {} (UTC+05:30)"),
        ("2023-11-05T01:30", "2023-11-05T06:30", 30, "Sun 5 Nov 2023, 01:30–02:00 {} (UTC-05:00)"),
        ("2023-11-05T01:30", "2023-11-05T05:00", 30, "Sun 5 Nov 2023, 01:30–02:00 {} (UTC-03:30)"),
        ("2024-02-29T00:05", "2024-02-29T00:05", 0, "Thu 29 Feb 2024, 00:05–00:05 {} (UTC+00:00)"),
    ],
)
def test_the_first_line_is_the_time_at_the_venue(start: str, starts_at: str, minutes: int, line: str) -> None:
    instant = wall(starts_at).replace(tzinfo=UTC)
    ends_at = instant + timedelta(minutes=minutes)
    picture = but_meeting(G7, start=wall(start), starts_at=instant, ends_at=ends_at)
    shown = entries(US, picture=picture)[G7]
    assert shown.text[0] == line.format("Tokyo")
    assert shown.when == Span(
        start=Moment(instant=instant, zone="Asia/Tokyo", wall=wall(start)),
        end=Moment(instant=ends_at, zone="Asia/Tokyo", wall=wall(start) + timedelta(minutes=minutes)),
    )


def test_times_that_are_not_assumed_say_nothing_of_it() -> None:
    assert "Time assumed, not confirmed" not in entries(US, "full")[TEL_AVIV].text + entries(US, "full")[G7].text


def test_a_movement_without_a_label_is_called_by_its_ends() -> None:
    assert entries(US, picture=but_movement(label=""))[TO_AMMAN].summary == "Tel Aviv – Amman"


def test_a_movement_that_has_not_left_tells_its_plan_alone() -> None:
    shown = entries(US, picture=but_movement(left_at=None, landed_at=None, assumed=False))[TO_AMMAN].text
    assert shown == (*FLIGHT_AT_DELEGATION.text[:2], "Mode: flight", "Status: planned")


def test_press_access_on_another_day_says_the_day() -> None:
    press = PICTURE.meetings[KAMIKAWA].press
    assert press is not None
    late = replace(press, tag="determined-by-host", preset=wall("2023-11-06T21:00"), final=None)
    shown = entries(US, "full", picture=but_meeting(KAMIKAWA, press=late))[KAMIKAWA].text
    assert shown[8] == "Press: determined-by-host, pre-set Mon 6 Nov 2023, 21:00"


def test_a_roster_has_its_head_first_then_precedence_and_none_who_withdrew() -> None:
    extra = [
        member(10, US, "staff", name="Late Joiner"),
        member(9, US, "security", name="Early Joiner"),
        member(8, US, "security", name="Earlier Joiner"),
        ("member", ident("member", 3), 0, {**member(3, US, "interpreter", name="Kim Poe")[3], "status": "withdrawn"}),
    ]
    order = [str(ident("member", number)) for number in (10, 3, 404, 2)]
    picture = snapshot([*ROWS, *extra, delegation(1, name="US", kind="own", head=str(ident("member", 2)), order=order)])
    assert entries(US, picture=picture)[KAMIKAWA].text[10:] == (
        "US:",
        "- Alex Doe (head)",
        "- Late Joiner (staff)",
        "- Casey Roe (note-taker)",
        "- Earlier Joiner (security)",
        "- Early Joiner (security)",
    )


def test_a_member_without_personal_data_is_listed_by_function() -> None:
    picture = snapshot([*ROWS, member(4, JAPAN, "principal")])
    assert entries(JAPAN, picture=picture)[KAMIKAWA].text[-1] == "- principal"
    assert entries(US, "full", picture=picture)[KAMIKAWA].text[-3] == "- principal"


def test_an_invited_delegation_that_is_not_known_yet_is_not_listed_until_it_is() -> None:
    unknown = {thing: named for thing, named in PICTURE.delegations.items() if thing != JAPAN}
    shown = entries(US, "full", picture=replace(PICTURE, delegations=unknown))
    assert shown[KAMIKAWA].text == tuple(
        line for line in KAMIKAWA_AT_FULL.text if "Host delegation of Japan" not in line and "Mori" not in line
    )
    assert "Host: Host delegation of Japan" not in shown[TOKYO].text


def test_a_dissolved_delegation_reads_nothing_and_is_named_nowhere() -> None:
    picture = but_delegation(JAPAN, status="dissolved")
    assert entries(JAPAN, picture=picture) == {}
    assert "Host delegation of Japan" not in repr(programme(picture, audience(US, "full")))
    assert "Mori" not in repr(programme(picture, audience(US, "full")))


def test_a_stops_host_is_named_below_full_only_if_the_feed_invites_it_too() -> None:
    assert "Host: Host delegation of Japan" in entries(KOREA)[TOKYO].text  # invited to G7 with Korea
    assert "Host: Host delegation of Japan" not in entries(POOL)[TOKYO].text
    assert "Host: Host delegation of Jordan" in entries(JORDAN)[AMMAN].text
    assert "Host: Host delegation of Jordan" not in entries(US)[AMMAN].text
    assert "Host: Host delegation of Jordan" in entries(US, "full")[AMMAN].text


def test_a_feed_is_named_after_trip_and_delegation_as_far_as_they_are_known() -> None:
    assert feed_name(PICTURE, audience(JAPAN)) == "Secretary's trip – Host delegation of Japan"
    assert feed_name(replace(PICTURE, trip=None), audience(JAPAN)) == "Host delegation of Japan"
    assert feed_name(PICTURE, audience(ident("delegation", 99))) == "Secretary's trip"
    assert feed_name(snapshot([]), audience(JAPAN)) == "Trip"


def test_the_levels_are_those_of_the_contract() -> None:
    assert {
        "full": {
            *("topics", "reason", "invited", "own-roster"),
            *("every-roster", "contacts", "notes", "press", "hard"),
        },
        "delegation": {"topics", "reason", "invited", "own-roster"},
    } == LEVELS


@given(st.permutations(ROWS))
def test_the_programme_does_not_depend_on_the_order_of_rows(rows: list[Any]) -> None:
    for shown in (audience(US, "full"), audience(JAPAN, "delegation")):
        assert programme(snapshot(rows), shown) == programme(PICTURE, shown)


@given(st.permutations(ROWS), st.data())
def test_a_programme_can_be_made_at_every_point_of_what_is_known(rows: list[Any], data: st.DataObject) -> None:
    known = rows[: data.draw(st.integers(0, len(rows)))]
    picture = snapshot(known)
    ids = {thing for _, thing, _, _ in known}
    for reader in (US, JAPAN, KOREA, POOL, JORDAN):
        for level in LEVELS:
            assert {entry.id for entry in programme(picture, audience(reader, level))} <= ids


CANARY = re.compile(r"canary-[a-z]+-\d+-[a-z]+")


def canary(kind: str, number: int, field: str) -> str:
    return f"canary-{kind}-{number}-{field}"


@st.composite
def canary_worlds(draw: st.DrawFn) -> dict[tuple[str, int], dict[str, Any]]:
    """A trip in which each text of each thing is a word that stands nowhere else, under (kind, number)."""
    size = 4
    delegations, flag = [str(ident("delegation", number)) for number in range(size)], st.booleans()
    world: dict[tuple[str, int], dict[str, Any]] = {}

    def add(kind: str, number: int, texts: str, /, **fields: Any) -> None:
        words = {field: canary(kind, number, field) for field in texts.split()}
        world[kind, number] = {**words, **fields, "secret": canary(kind, number, "secret"), "tz": "canary-tz-0-x"}

    def times(first: str, last: str) -> dict[str, str]:
        day = draw(st.integers(1, 9))
        named = {first: f"2023-11-0{day}T09:00:00", last: f"2023-11-0{day}T21:00:00"}
        return {**named, f"{first}_at": f"2023-11-0{day}T00:00:00Z", f"{last}_at": f"2023-11-0{day}T12:00:00Z"}

    add(
        "trip", 0, "title status reason", principals=[canary("trip", 0, "principal")], home={"place": "canary-home-0-x"}
    )
    for number in range(size):
        kind = "own" if number == 0 else draw(st.sampled_from(["host", "partner", "press", "observer"]))
        status = "registered" if number == 0 else draw(st.sampled_from(["registered", "registered", "dissolved"]))
        add("delegation", number, "name reason", kind=kind, status=status, order=[])
        for person in (2 * number, 2 * number + 1):
            personal = {field: canary("member", person, field) for field in ("name", "title", "contact", "secret")}
            roster = {"delegation": delegations[number], "status": draw(st.sampled_from(["on-roster", "withdrawn"]))}
            add("member", person, "function person reason", personal=personal, **roster)
    for number in range(size):
        host = draw(st.sampled_from([None, *delegations]))
        status = draw(st.sampled_from(["planned", "dropped", canary("stop", number, "status")]))
        add("stop", number, "place country zone reason", status=status, host=host, **times("arrives", "departs"))
        ends = {
            end: {name: canary("movement", number, end + name) for name in ("place", "zone")} for end in ("from", "to")
        }
        status = draw(st.sampled_from(["planned", "dropped", canary("movement", number, "status")]))
        texts = "mode label notes reason"
        add("movement", number, texts, status=status, hard=draw(flag), **ends, **times("departs", "arrives"))
        scheme = draw(st.sampled_from(["https://", "tel:", "mailto:", "sip:", "http://"]))
        venue = {name: canary("meeting", number, name) for name in ("name", "address", "secret")}
        venue["conference"] = scheme + canary("meeting", number, "conference")
        add(
            "meeting",
            number,
            "title kind zone notes reason duration",
            status=draw(st.sampled_from(["tentative", "confirmed", "cancelled", canary("meeting", number, "status")])),
            venue=draw(st.sampled_from([None, venue])),
            topics=[canary("meeting", number, "topic")],
            press={"tag": canary("meeting", number, "tag"), "preset": None, "final": None},
            stop=str(ident("stop", draw(st.integers(0, size)))),  # one of them is not known
            delegations=draw(st.lists(st.sampled_from([*delegations, str(ident("delegation", 9))]), unique=True)),
            start="2023-11-02T09:00:00",
            starts_at="2023-11-02T00:00:00Z",
            ends_at="2023-11-02T00:30:00Z",
        )
    return world


def words_of(kind: str, number: int, *fields: str) -> set[str]:
    return {canary(kind, number, field) for field in fields}


def numbers(delegations: list[str]) -> list[int]:
    return [number for number in range(4) if str(ident("delegation", number)) in delegations]


def allowed_words(world: dict[tuple[str, int], dict[str, Any]], reader: int, kind: str, number: int) -> set[str]:
    """What the contract's `delegation` level lets an entry say, told again from the contract and not from the code."""
    document = world[kind, number]
    registered = [n for n in range(4) if world["delegation", n]["status"] == "registered"]
    words = words_of(kind, number, "status")
    if document["status"] in {"dropped", "cancelled"}:
        words |= words_of(kind, number, "reason")
    if kind == "movement":
        return words | words_of(kind, number, "label", "mode", "fromplace", "fromzone", "toplace", "tozone")
    if kind == "stop":
        own = world["delegation", reader]["kind"] == "own"
        lists = [numbers(held["delegations"]) for (what, _), held in world.items() if what == "meeting"]
        met = {reader}.union(*(listed for listed in lists if own or reader in listed))
        hosts = [n for n in numbers([str(document["host"])]) if n in registered and n in met]
        named = {canary("delegation", n, "name") for n in hosts}
        return words | words_of(kind, number, "place", "country", "zone") | named
    words |= words_of(kind, number, "title", "kind", "zone", "name", "address", "topic")
    if document["venue"] and document["venue"]["conference"].startswith("https:"):
        words |= words_of(kind, number, "conference")
    invited = [n for n in numbers(document["delegations"]) if n in registered]
    words |= {canary("delegation", n, "name") for n in invited}
    words |= {canary("stop", n, "place") for n in range(4) if str(ident("stop", n)) == document["stop"]}
    if reader in invited:
        people = [n for n in (2 * reader, 2 * reader + 1) if world["member", n]["status"] == "on-roster"]
        words |= {word for n in people for word in words_of("member", n, "name", "function")}
    return words


@given(canary_worlds())
def test_no_word_stands_in_a_feed_at_level_delegation_that_the_contract_does_not_allow(
    world: dict[tuple[str, int], dict[str, Any]],
) -> None:
    picture = snapshot((kind, ident(kind, number), 0, document) for (kind, number), document in world.items())
    things = {ident(kind, number): (kind, number) for kind, number in world}
    for reader in range(4):
        for entry in programme(picture, audience(ident("delegation", reader), "delegation", FEW_MINUTES)):
            kind, number = things[entry.id]
            said = set(CANARY.findall(repr(entry)))
            assert said <= allowed_words(world, reader, kind, number)
            assert (
                canary(kind, number, "place" if kind == "stop" else "label" if kind == "movement" else "title") in said
            )


@given(canary_worlds())
def test_full_says_every_word_of_what_is_invited_and_none_of_who_is_not(
    world: dict[tuple[str, int], dict[str, Any]],
) -> None:
    picture = snapshot((kind, ident(kind, number), 0, document) for (kind, number), document in world.items())
    things = {ident(kind, number): (kind, number) for kind, number in world}
    for entry in programme(picture, audience(ident("delegation", 0), "full")):
        kind, number = things[entry.id]
        if kind != "meeting":
            continue
        document, said = world[kind, number], set(CANARY.findall(repr(entry)))
        invited = [n for n in numbers(document["delegations"]) if world["delegation", n]["status"] == "registered"]
        people = [n for d in invited for n in (2 * d, 2 * d + 1) if world["member", n]["status"] == "on-roster"]
        assert {word for word in said if word.startswith("canary-member")} == {
            word for n in people for word in words_of("member", n, "name", "function", "title", "contact")
        }
        assert words_of(kind, number, "title", "kind", "notes", "topic", "tag") <= said


def test_a_message_that_moves_a_meeting_reaches_every_feed_with_one_sequence() -> None:
    document = ROWS[5][3]
    body = {
        "trip": str(ident("trip", 1)),
        "meeting": str(KAMIKAWA),
        "start": "2023-11-07T18:40:00",
        "starts_at": "2023-11-07T09:40:00Z",
        "ends_at": "2023-11-07T10:25:00Z",
        "was": {"start": "2023-11-07T18:25:00", "starts_at": "2023-11-07T09:25:00Z", "ends_at": "2023-11-07T10:10:00Z"},
    }
    moved = ("meeting", KAMIKAWA, sequence(1, body, "meeting"), merge(document, body, "meeting"))
    picture = snapshot([*ROWS, moved])
    shown = [entries(US, "full", picture=picture), entries(US, picture=picture), entries(JAPAN, picture=picture)]
    assert [(feed[KAMIKAWA].sequence, feed[KAMIKAWA].text[0]) for feed in shown] == [
        (2, "Tue 7 Nov 2023, 18:40–19:25 Tokyo (UTC+09:00)")
    ] * 3


def test_who_is_invited_to_nothing_stands_with_each_stop_at_full_and_nowhere_below() -> None:
    jordan = ["Host delegation of Jordan:", "- Saleh, Minister (head), saleh@example.jo"]
    row = member(7, JORDAN, "head", name="Saleh", title="Minister", contact="saleh@example.jo")
    picture = snapshot([*ROWS, row])
    for stop in (TOKYO, AMMAN):
        assert entries(US, "full", picture=picture)[stop].text == (*entries(US, "full")[stop].text, *jordan)
    assert "Saleh" not in repr(programme(picture, audience(US)))
    assert {reader: "Saleh" in repr(programme(picture, audience(reader))) for reader in (JAPAN, KOREA, POOL)} == {
        JAPAN: False,
        KOREA: False,
        POOL: False,
    }


def test_a_movement_says_where_it_is() -> None:
    flight = PICTURE.movements[TO_AMMAN]
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"left_at": None, "landed_at": None}, "planned"),
        ({"landed_at": None}, "under way"),
        ({}, "landed"),
        ({"status": "dropped"}, "dropped"),
    )
    for changes, said in cases:
        picture = replace(PICTURE, movements={TO_AMMAN: replace(flight, **changes)})
        assert f"Status: {said}" in entries(US, picture=picture)[TO_AMMAN].text


@pytest.mark.parametrize(("years", "told"), [((2023, 2023), True), ((2023, 2024), False)])
def test_a_zone_is_told_only_if_it_is_right_for_all_years_of_the_trip(years: tuple[int, ...], told: bool) -> None:
    assert PICTURE.trip is not None
    rendered = render(
        replace(PICTURE, trip=replace(PICTURE.trip, years=years)),
        audience(US),
        domain="feeds.example",
        now=datetime(2023, 11, 1, tzinfo=UTC),
        revisions={},
        cache=AudienceCache(),
    )
    # no one rule of Israel's clocks holds in both years: its times then stand in UTC
    assert (b"TZID=Asia/Jerusalem" in rendered.body) is told

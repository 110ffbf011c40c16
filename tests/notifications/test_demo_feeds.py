"""The demo trip's feeds, read by programs that share no code with ours, against what the API lists.

What belongs in which feed, and what of it shows, is worked out here anew from contract.md's two tables.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from typing import Any

import icalendar
from ical.calendar_stream import IcsCalendarStream

from tests.demo_fixture import Demo, DemoFeed, Thing

vobject: Any = import_module("vobject")  # neither says its types
recurring_ical_events: Any = import_module("recurring_ical_events")

Times = tuple[date, date]

TABLE = {
    "Tel Aviv": (
        "Asia/Jerusalem",
        {
            "Meeting with the Prime Minister of Israel",
            "Meeting with the war cabinet of Israel",
            "Meeting with the President of Israel",
        },
        {"safety of U.S. citizens", "release of hostages", "humanitarian aid", "preventing escalation"},
    ),
    "Amman": (
        "Asia/Amman",
        {
            "Audience with the King of Jordan",
            "Meeting with the ministers of Jordan, Saudi Arabia, the UAE, Qatar and Egypt",
        },
        {"civilian lives", "essential services", "forced displacement", "regional stability", "a Palestinian state"},
    ),
    "Ramallah": ("Asia/Hebron", {"Meeting with the President of the Palestinian Authority"}, set()),
    "Baghdad": ("Asia/Baghdad", {"Meeting with the Prime Minister of Iraq"}, set()),
    "Ankara": ("Europe/Istanbul", {"Meeting with the Foreign Minister of Türkiye"}, set()),
    "Tokyo": (
        "Asia/Tokyo",
        {
            "Meeting with the Prime Minister of Japan",
            "Meeting with the Foreign Minister of Japan",
            "Second G7 Foreign Ministers' Meeting of 2023: session on the Middle East",
            "Second G7 Foreign Ministers' Meeting of 2023: session on Ukraine",
            "Second G7 Foreign Ministers' Meeting of 2023: dialogue with Central Asia",
            "Second G7 Foreign Ministers' Meeting of 2023: dialogue with Ukraine",
        },
        {"Ukraine's recovery and energy needs", "the Indo-Pacific", "Japan's G7 presidency"},
    ),
    "Seoul": (
        "Asia/Seoul",
        {
            "Meeting with the President of the Republic of Korea",
            "Meeting with the Foreign Minister of the Republic of Korea",
            "Meeting with the National Security Advisor of the Republic of Korea",
        },
        {
            "Russia's aggression",
            "Russia-DPRK military cooperation",
            "the Middle East",
            "investment and economic security",
            "trilateral engagement after Camp David",
        },
    ),
    "New Delhi": (
        "Asia/Kolkata",
        {
            "Meeting with the External Affairs Minister of India",
            "2+2 Ministerial Dialogue with the External Affairs Minister and the Defence Minister of India",
        },
        {"bilateral and global concerns", "the Indo-Pacific"},
    ),
}
"""domain.md's table: each stop's zone, known meetings and topics."""

KNOWN_TIMES = {
    "Meeting with the Foreign Minister of Japan": ("2023-11-07T18:25:00", "PT45M"),
    "Second G7 Foreign Ministers' Meeting of 2023: dialogue with Central Asia": ("2023-11-08T14:15:00", "PT50M"),
    "Second G7 Foreign Ministers' Meeting of 2023: dialogue with Ukraine": ("2023-11-08T15:20:00", "PT45M"),
}
ASSUMED = "Time assumed, not confirmed"


def test_icalendar_reads_every_item_at_its_instants(demo: Demo) -> None:
    _each(demo, _by_icalendar)


def test_icalendar_reads_every_item_at_its_instants_by_vtimezone_alone(demo: Demo) -> None:
    _each(demo, lambda body: _by_icalendar(_renamed(body)))


def test_ical_reads_every_item_at_its_instants(demo: Demo) -> None:
    def read(body: bytes) -> dict[str, Times]:
        events = IcsCalendarStream.calendar_from_ics(body.decode()).events
        return {str(event.uid): _read(event.dtstart, event.dtend) for event in events}

    _each(demo, read)


def test_vobject_reads_every_item_at_its_instants(demo: Demo) -> None:
    def read(body: bytes) -> dict[str, Times]:
        events = vobject.readOne(_renamed(body).decode()).contents["vevent"]
        return {event.uid.value: _read(event.dtstart.value, event.dtend.value) for event in events}

    _each(demo, read)


def test_recurring_ical_events_finds_every_item_at_its_instants(demo: Demo) -> None:
    def read(body: bytes) -> dict[str, Times]:
        found = recurring_ical_events.of(icalendar.Calendar.from_ical(body)).between((2023, 10, 1), (2023, 12, 1))
        read = {str(event["UID"]): _read(event["DTSTART"].dt, event["DTEND"].dt) for event in found}
        assert len(found) == len(read)
        return read

    _each(demo, read)


def test_icaljs_reads_every_item_at_its_instants(
    demo: Demo, icaljs: Callable[[bytes], list[dict[str, str | None]]]
) -> None:
    def read(body: bytes) -> dict[str, Times]:
        events = icaljs(_renamed(body))
        return {str(event["uid"]): (_parsed(event["start"]), _parsed(event["end"])) for event in events}

    _each(demo, read)


def test_each_feed_is_equal_on_another_replica_after_a_rebuild_and_after_a_restart(demo: Demo) -> None:
    """SEQUENCE and LAST-MODIFIED included: not even a body was written anew."""
    for feed in demo.feeds:
        later = (feed.on_another_replica, feed.after_a_rebuild, feed.after_a_restart)
        assert later == (feed.body,) * 3, feed.address.delegation
    assert demo.bodies_after_all == demo.bodies_before_the_rebuild
    counted = [event["SEQUENCE"] for event in _components(demo.feeds[0].body)]
    assert (min(counted), max(counted) > 1) == (0, True)  # there is something to get wrong


def test_every_delegation_has_its_feed_and_only_the_own_one_everything(demo: Demo) -> None:
    linked = sorted((feed.address.kind, feed.address.level) for feed in demo.feeds)
    assert linked == [("host", "delegation")] * 8 + [("own", "delegation"), ("own", "full"), ("press", "delegation")]
    assert {feed.address.delegation_id for feed in demo.feeds} == set(demo.delegations)


def test_nothing_internal_stands_below_full_and_all_of_it_in_full(demo: Demo) -> None:
    notes = {thing["notes"] for thing in (*demo.meetings.values(), *demo.movements.values()) if thing["notes"]}
    contacts = {(member["personal"]["contact"] or "").strip() for member in demo.members.values()} - {""}
    assert (len(notes) > 5, len(contacts) > 10) == (True, True)
    for feed in demo.feeds:
        said = _said(feed.body)
        if feed.address.level == "full":
            assert {note for note in notes if note not in said} == set()
            assert {contact for contact in contacts if contact not in said} == _contacts_of_the_uninvited(demo)
            continue
        assert {word for word in notes | contacts if word in said} == set(), feed.address.delegation
        assert re.findall(r"\+\d[\d -]{6,}|\S+@\S+\.\S+", said) == [], feed.address.delegation
        assert ("Press: " in said, "Hard time" in said, "Notes: " in said) == (False, False, False)
        others = [m for m in demo.members.values() if m["delegation"] != feed.address.delegation_id]
        assert [m["personal"]["name"] for m in others if m["personal"]["name"] in said] == []


def test_each_delegation_finds_its_own_people_where_it_is_invited(demo: Demo) -> None:
    for feed in demo.feeds:
        own = [m for m in demo.members.values() if m["delegation"] == feed.address.delegation_id]
        for event in _components(feed.body):
            meeting = demo.meetings.get(_thing(event))
            invited = meeting is not None and feed.address.delegation_id in meeting["delegations"]
            for member in own:
                line = f"- {member['personal']['name']}"
                there = line in str(event["DESCRIPTION"])
                assert there is (invited and member["status"] == "on-roster"), (feed.address.delegation, line)


def test_every_stop_meeting_and_topic_of_the_table_is_in_the_feeds_where_it_belongs(demo: Demo) -> None:
    (full,) = [feed for feed in demo.feeds if feed.address.level == "full"]
    stops = {stop["place"]: stop for stop in demo.stops.values() if stop["status"] == "planned"}
    assert {place: stop["zone"] for place, stop in stops.items()} == {place: row[0] for place, row in TABLE.items()}
    for place, (_, titles, topics) in TABLE.items():
        (host,) = [feed for feed in demo.feeds if feed.address.delegation_id == stops[place]["host"]]
        for feed in (full, host):
            events = {_thing(event): event for event in _components(feed.body)}
            assert events[stops[place]["id"]]["SUMMARY"] == place
            here = [
                event
                for thing, event in events.items()
                if demo.meetings.get(thing, {}).get("stop") == stops[place]["id"]
            ]
            assert titles <= {str(event["SUMMARY"]) for event in here}, (place, feed.address.delegation)
            lines = {line for event in here for line in str(event["DESCRIPTION"]).splitlines()}
            assert {f"- {topic}" for topic in topics} <= lines, (place, feed.address.delegation)


def test_every_text_begins_with_the_time_at_the_venue_and_says_where_it_is_assumed(demo: Demo) -> None:
    known = {meeting["title"]: (meeting["start"], meeting["duration"]) for meeting in demo.meetings.values()}
    assert {title: known[title] for title in KNOWN_TIMES} == KNOWN_TIMES
    for feed in demo.feeds:
        for event in _components(feed.body):
            thing = demo.items[_thing(event)]
            lines = str(event["DESCRIPTION"]).splitlines()
            assert (ASSUMED in lines) is thing["assumed"]
            wall = datetime.fromisoformat(thing.get("start") or thing.get("departs") or "")
            if _thing(event) in demo.stops:
                wall = datetime.fromisoformat(thing["arrives"])
            assert re.search(rf"\b{wall.day} Nov 2023, {wall:%H:%M}\b.*\(UTC[+-]\d\d:\d\d\)$", lines[0]), lines[0]
    assumed = {meeting["title"] for meeting in demo.meetings.values() if not meeting["assumed"]}
    assert assumed == set(KNOWN_TIMES)


def test_what_was_called_off_stays_marked(demo: Demo) -> None:
    called_off = {thing["id"] for thing in demo.items.values() if thing["status"] in ("cancelled", "dropped")}
    assert called_off
    seen = set()
    for feed in demo.feeds:
        for event in _components(feed.body):
            marks = (event["STATUS"] == "CANCELLED", str(event["SUMMARY"]).startswith("Cancelled: "))
            assert marks == ((True, True) if _thing(event) in called_off else (False, False))
            if marks[0]:
                seen.add(_thing(event))
                reason = demo.items[_thing(event)]["reason"]
                assert event["TRANSP"] == "TRANSPARENT"
                assert reason is None or f"Reason: {reason}" in str(event["DESCRIPTION"])
    assert seen == called_off


def test_feeds_hold_nothing_that_clients_take_for_an_invitation_or_choke_on(demo: Demo) -> None:
    for feed in demo.feeds:
        names = set(re.findall(rb"^([A-Z-]+)[;:]", feed.body, re.MULTILINE))
        assert names.isdisjoint({b"METHOD", b"ATTENDEE", b"ORGANIZER", b"RDATE", b"EXDATE", b"COMMENT"})
        assert b"BEGIN:VALARM" not in feed.body
        assert max(len(line) for line in feed.body.split(b"\r\n")) <= 75
        assert feed.body.replace(b"\r\n", b"").isascii() or feed.body.decode()
        zones = re.findall(rb"BEGIN:VTIMEZONE.*?END:VTIMEZONE\r\n", feed.body, re.DOTALL)
        assert zones
        assert max(map(len, zones)) <= 400
        assert len(feed.body) < 1_000_000
        order = [(_start(demo, _thing(event)), str(event["UID"])) for event in _components(feed.body)]
        assert order == sorted(order)


# The contract's tables, anew


def _belongs(demo: Demo, feed: DemoFeed) -> set[str]:
    own, kind = feed.address.delegation_id, feed.address.kind
    invited = {thing: meeting for thing, meeting in demo.meetings.items() if own in meeting["delegations"]}
    match kind:
        case "own":
            return set(demo.items)
        case "host":
            return {stop["id"] for stop in demo.stops.values() if stop["host"] == own} | set(invited)
        case _:
            return {meeting["stop"] for meeting in invited.values()} | set(invited)


def _times(thing: Thing) -> Times:
    if "starts_at" in thing:
        return _parsed(thing["starts_at"]), _parsed(thing["ends_at"])
    if "mode" in thing:
        return _parsed(thing["departs_at"]), _parsed(thing["arrives_at"])
    last = date.fromisoformat(thing["departs"][:10])
    return date.fromisoformat(thing["arrives"][:10]), last + timedelta(days=1)


def _start(demo: Demo, thing: str) -> date:
    item = demo.items[thing]
    return _parsed(item.get("starts_at") or item["departs_at" if "mode" in item else "arrives_at"])


def _contacts_of_the_uninvited(demo: Demo) -> set[str]:
    """Who has withdrawn, or is of a delegation that is invited to nothing, stands on no roster that is shown."""
    invited = {delegation for meeting in demo.meetings.values() for delegation in meeting["delegations"]}
    absent = [m for m in demo.members.values() if m["status"] == "withdrawn" or m["delegation"] not in invited]
    return {member["personal"]["contact"] for member in absent if member["personal"]["contact"]}


# Readers


def _each(demo: Demo, read: Callable[[bytes], Mapping[str, Times]]) -> None:
    """Every feed holds what it is to hold, each item at its instants."""
    for feed in demo.feeds:
        expected = {f"{thing}@{demo.domain}": _times(demo.items[thing]) for thing in _belongs(demo, feed)}
        assert read(feed.body) == expected, feed.address.delegation


def _by_icalendar(body: bytes) -> dict[str, Times]:
    return {str(event["UID"]): _read(event.decoded("DTSTART"), event.decoded("DTEND")) for event in _components(body)}


def _components(body: bytes) -> list[Any]:
    return list(icalendar.Calendar.from_ical(body).walk("VEVENT"))


def _thing(event: Any) -> str:
    return str(event["UID"]).partition("@")[0]


def _said(body: bytes) -> str:
    """All that a reader can see, UIDs aside."""
    calendar = icalendar.Calendar.from_ical(body)
    texts = [str(calendar.get("NAME")), str(calendar.get("X-WR-CALNAME"))]
    for event in calendar.walk("VEVENT"):
        texts += [str(value) for name, value in event.property_items() if name not in ("UID", "RELATED-TO")]
    return "\n".join(texts)


def _read(start: Any, end: Any) -> Times:
    return _instant(start), _instant(end)


def _instant(value: date) -> date:
    if not isinstance(value, datetime):
        return value
    assert value.utcoffset() is not None, f"floating {value}"
    return value.astimezone(UTC)


def _parsed(value: str | None) -> date:
    assert value is not None
    return datetime.fromisoformat(value).astimezone(UTC) if "T" in value else date.fromisoformat(value)


def _renamed(body: bytes) -> bytes:
    """The same under TZIDs that no time zone database knows, so that the VTIMEZONEs alone have to tell."""
    return re.sub(rb"TZID([:=])", rb"TZID\1X-Nowhere/", body)

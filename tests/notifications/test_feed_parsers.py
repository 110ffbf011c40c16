"""Every instant of a feed, read back by calendar programs that share no code with ours.

Each set of entries is read twice where a reader goes by VTIMEZONE: under its own TZIDs, and under made-up ones that no
time zone database knows, so that the VTIMEZONE alone has to tell.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from importlib import import_module
from typing import Any

import icalendar
import pytest
from ical.calendar_stream import IcsCalendarStream

from services.notifications.entry import Days, Entry

vobject: Any = import_module("vobject")  # neither says its types
recurring_ical_events: Any = import_module("recurring_ical_events")

FeedCase = tuple[str, tuple[Entry, ...]]
Render = Callable[[str, Sequence[Entry]], bytes]
Times = tuple[date, date]
"""Start and end: instants in UTC, or the first day and the day after the last."""


def test_icalendar_reads_every_instant(feed_case: FeedCase, render: Render) -> None:
    events = icalendar.Calendar.from_ical(render(*feed_case)).walk("VEVENT")
    assert {str(event["UID"]): _read(*_dates(event)) for event in events} == _expected(feed_case[1])


def test_icalendar_reads_every_instant_by_vtimezone_alone(feed_case: FeedCase, render: Render) -> None:
    events = icalendar.Calendar.from_ical(_renamed(render(*feed_case))).walk("VEVENT")
    assert {str(event["UID"]): _read(*_dates(event)) for event in events} == _expected(feed_case[1])


def test_ical_reads_every_instant(feed_case: FeedCase, render: Render) -> None:
    events = IcsCalendarStream.calendar_from_ics(render(*feed_case).decode()).events
    read = {event.uid: _read(event.dtstart, event.dtend) for event in events}
    assert read == _expected(feed_case[1])


def test_vobject_reads_every_instant_by_vtimezone_alone(feed_case: FeedCase, render: Render) -> None:
    events = vobject.readOne(_renamed(render(*feed_case)).decode()).contents.get("vevent", [])
    ends = {event.uid.value: event.dtend.value if hasattr(event, "dtend") else None for event in events}
    read = {event.uid.value: _read(event.dtstart.value, ends[event.uid.value]) for event in events}
    assert read == _expected(feed_case[1])


def test_recurring_ical_events_finds_every_item_at_its_instant(feed_case: FeedCase, render: Render) -> None:
    calendar = icalendar.Calendar.from_ical(render(*feed_case))
    found = recurring_ical_events.of(calendar).between((2022, 12, 1), (2024, 12, 1))
    read = {str(event["UID"]): _read(event["DTSTART"].dt, event["DTEND"].dt) for event in found}
    assert (len(found), read) == (len(feed_case[1]), _expected(feed_case[1]))


@pytest.mark.parametrize("renamed", [False, True], ids=["own_tzids", "unknown_tzids"])
def test_icaljs_reads_every_instant(
    feed_case: FeedCase, render: Render, icaljs: Callable[[bytes], list[dict[str, str | None]]], renamed: bool
) -> None:
    body = render(*feed_case)
    read = {
        event["uid"]: _spoken(event["start"], event["end"]) for event in icaljs(_renamed(body) if renamed else body)
    }
    assert read == _expected(feed_case[1])


def test_all_readers_read_the_same_texts(
    feed_case: FeedCase, render: Render, icaljs: Callable[[bytes], list[dict[str, str | None]]]
) -> None:
    body = render(*feed_case)
    events = icalendar.Calendar.from_ical(body).walk("VEVENT")
    by_icalendar = [_texts(event.get("SUMMARY"), event.get("DESCRIPTION")) for event in events]
    by_ical = [
        _texts(event.summary, event.description) for event in IcsCalendarStream.calendar_from_ics(body.decode()).events
    ]
    by_vobject = [_vobject_texts(event) for event in vobject.readOne(body.decode()).contents.get("vevent", [])]
    by_icaljs = [_texts(event["summary"], event["description"]) for event in icaljs(body)]
    assert by_icalendar == by_ical == by_vobject == by_icaljs


def _expected(entries: Sequence[Entry]) -> Mapping[str, Times]:
    return {f"{entry.id}@planning.example": _times(entry) for entry in entries}


def _times(entry: Entry) -> Times:
    if isinstance(entry.when, Days):
        return entry.when.first, entry.when.last + timedelta(days=1)
    return entry.when.start.instant, entry.when.end.instant


def _read(start: date | None, end: date | None) -> Times:
    assert start is not None
    return _instant(start), _instant(end if end is not None else start)


def _dates(event: icalendar.Component) -> tuple[date, date | None]:
    start: date = event.decoded("DTSTART")
    end: date | None = event.decoded("DTEND", None)
    return start, end


def _instant(value: date) -> date:
    if not isinstance(value, datetime):
        return value
    assert value.utcoffset() is not None, f"floating {value}"
    return value.astimezone(UTC)


def _spoken(start: str | None, end: str | None) -> Times:
    assert start is not None
    return _parsed(start), _parsed(end if end is not None else start)


def _parsed(value: str) -> date:
    return datetime.fromisoformat(value) if "T" in value else date.fromisoformat(value)


def _renamed(body: bytes) -> bytes:
    return re.sub(rb"TZID([:=])", rb"TZID\1X-Nowhere/", body)


def _texts(summary: object, description: object) -> tuple[str, str]:
    return str(summary or ""), str(description or "")


def _vobject_texts(event: Any) -> tuple[str, str]:
    return _texts(event.summary.value, event.description.value if hasattr(event, "description") else "")

"""The bytes of a feed: golden files compared whole, and what holds for any text.

To write the golden files anew: `GOLDEN=write pytest tests/notifications/test_feed_bytes.py`; then read their diff.
"""

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from icalendar import Calendar

from services.notifications.entry import Days, Entry, Moment, Span
from services.notifications.feed import calendar, draft, empty_calendar, stamped, zones_of

GOLDEN = Path(__file__).with_name("golden")
TOKYO = (
    b"BEGIN:VTIMEZONE\r\nTZID:Asia/Tokyo\r\nBEGIN:STANDARD\r\nDTSTART:19700101T000000\r\n"
    b"TZOFFSETFROM:+0900\r\nTZOFFSETTO:+0900\r\nTZNAME:JST\r\nEND:STANDARD\r\nEND:VTIMEZONE\r\n"
)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300)
SHARP_TEXT = st.text("a\\;,:\"\n\r\t \x00\x0b\x7f\x85\u2028éñ漢👩🏽\u200d\ud800^'", max_size=200)

FeedCase = tuple[str, tuple[Entry, ...]]
Render = Callable[[str, Sequence[Entry]], bytes]


def test_feed_is_the_golden_file(feed_case: FeedCase, render: Render) -> None:
    name, entries = feed_case
    golden = GOLDEN / f"{name}.ics"
    body = render(f"Golden: {name}", entries)
    if os.environ.get("GOLDEN") == "write":
        golden.write_bytes(body)
    assert body.decode() == golden.read_bytes().decode()


def test_no_golden_file_lies_forgotten() -> None:
    names = sorted(file.stem for file in GOLDEN.glob("*.ics"))
    assert names == ["in_utc", "nothing", "texts", "tokyo_week", "zones_that_bite"]


def test_meeting_is_written_whole(meeting: Entry) -> None:
    drafted = draft(meeting, domain="planning.example", zones={"Asia/Tokyo": TOKYO})
    block = stamped(drafted, datetime(2023, 11, 7, 1, 2, 3, 999_999, tzinfo=timezone(timedelta(hours=2))))
    assert _unfolded(block) == (
        "BEGIN:VEVENT\r\n"
        "UID:5eed0000-0000-4000-8000-000000000003@planning.example\r\n"
        "DTSTAMP:20231106T230203Z\r\n"
        "LAST-MODIFIED:20231106T230203Z\r\n"
        "SEQUENCE:4\r\n"
        "DTSTART;TZID=Asia/Tokyo:20231107T182500\r\n"
        "DTEND;TZID=Asia/Tokyo:20231107T191000\r\n"
        "SUMMARY:Bilateral with the Foreign Minister\\; working level follows\\, same room\r\n"
        "STATUS:CONFIRMED\r\n"
        "TRANSP:OPAQUE\r\n"
        "LOCATION:Iikura Guest House\\, Azabudai 1-5-3\\, Tokyo\r\n"
        "GEO:35.660000;139.740928\r\n"
        "DESCRIPTION:Tue 7 Nov 2023\\, 18:25–19:10 Tokyo (UTC+09:00)\\nTopics: supply chains\\, maritime security"
        "\\nDelegations: Principal's party\\; Ministry of Foreign Affairs"
        "\\nPress: pooled-spray\\, pre-set 17:40\\, final access 18:10\r\n"
        "CATEGORIES:bilateral,press\\, pooled\r\n"
        "COLOR:steelblue\r\n"
        "CONFERENCE;VALUE=URI;FEATURE=AUDIO,VIDEO;LABEL=Join online:https://meet.example/r/7?pwd=a,b;c\r\n"
        "RELATED-TO;RELTYPE=PARENT:5eed0000-0000-4000-8000-000000000001@planning.example\r\n"
        "BEGIN:VALARM\r\n"
        "ACTION:DISPLAY\r\n"
        "DESCRIPTION:Bilateral with the Foreign Minister\\; working level follows\\, same room\r\n"
        "TRIGGER:-P1DT20M\r\n"
        "END:VALARM\r\n"
        "END:VEVENT\r\n"
    )


def test_whole_days_end_on_the_day_after_the_last(meeting: Entry) -> None:
    days = Days(first=date(2023, 12, 30), last=date(2023, 12, 31))
    assert _times(replace(meeting, when=days), {}) == ["DTSTART;VALUE=DATE:20231230", "DTEND;VALUE=DATE:20240101"]


def test_moment_without_a_vtimezone_stands_in_utc_and_its_wall_time_in_the_text(meeting: Entry) -> None:
    unsaid = replace(meeting, text=("Tue 7 Nov 2023, time to follow", "Topics: none"))
    assert _times(unsaid, {"Asia/Tokyo": None}) == ["DTSTART:20231107T092500Z", "DTEND:20231107T101000Z"]
    assert _description(unsaid, {"Asia/Tokyo": None}) == (
        "Local time: from 2023-11-07 18:25 (Asia/Tokyo) to 2023-11-07 19:10 (Asia/Tokyo)\n"
        "Tue 7 Nov 2023, time to follow\nTopics: none"
    )


def test_wall_time_that_the_text_says_already_is_not_said_twice(meeting: Entry) -> None:
    assert _description(meeting, {"Asia/Tokyo": None}) == "\n".join(meeting.text)


def test_wall_time_is_said_alone_where_the_entry_has_no_text(meeting: Entry) -> None:
    silent = replace(meeting, text=())
    assert _description(silent, {"Asia/Tokyo": None}) == (
        "Local time: from 2023-11-07 18:25 (Asia/Tokyo) to 2023-11-07 19:10 (Asia/Tokyo)"
    )


def test_each_reading_of_the_hour_that_a_clock_repeats_stands_in_utc(meeting: Entry) -> None:
    early = _moment("2023-11-05T05:30Z", "America/New_York", "2023-11-05T01:30")
    late = replace(early, instant=datetime(2023, 11, 5, 6, 30, tzinfo=UTC))
    entry = replace(meeting, when=Span(start=early, end=late))
    assert _times(entry, zones_of([entry])) == ["DTSTART:20231105T053000Z", "DTEND:20231105T063000Z"]


def test_movement_starts_in_one_zone_and_ends_in_another(meeting: Entry) -> None:
    departs = _moment("2023-11-06T18:40Z", "America/New_York", "2023-11-06T13:40")
    arrives = _moment("2023-11-07T06:05Z", "Asia/Tokyo", "2023-11-07T15:05")
    entry = replace(meeting, when=Span(start=departs, end=arrives))
    zones = zones_of([entry])
    assert (list(zones), _times(entry, zones)) == (
        ["America/New_York", "Asia/Tokyo"],
        ["DTSTART;TZID=America/New_York:20231106T134000", "DTEND;TZID=Asia/Tokyo:20231107T150500"],
    )


def test_entry_that_takes_no_time_has_no_end(meeting: Entry) -> None:
    assert isinstance(meeting.when, Span)
    entry = replace(meeting, when=Span(start=meeting.when.start, end=meeting.when.start))
    assert _times(entry, {"Asia/Tokyo": TOKYO}) == ["DTSTART;TZID=Asia/Tokyo:20231107T182500"]


@pytest.mark.parametrize(
    ("alarm", "trigger"),
    [
        (timedelta(minutes=30), "TRIGGER:-PT30M"),
        (timedelta(hours=1, seconds=5), "TRIGGER:-PT1H5S"),
        (timedelta(days=2), "TRIGGER:-P2D"),
        (timedelta(0), "TRIGGER:PT0S"),
        (timedelta(minutes=-10), "TRIGGER:PT10M"),
    ],
)
def test_alarm_rings_that_long_before_the_start(meeting: Entry, alarm: timedelta, trigger: str) -> None:
    block = _block(replace(meeting, alarm=alarm), {"Asia/Tokyo": TOKYO})
    assert [line for line in block.split("\r\n") if line.startswith("TRIGGER")] == [trigger]


def test_no_alarm_rings_unless_it_is_asked_for(meeting: Entry) -> None:
    assert "VALARM" not in _block(replace(meeting, alarm=None), {"Asia/Tokyo": TOKYO})


def test_nobody_is_invited_by_a_feed(feed_case: FeedCase, render: Render) -> None:
    body = _unfolded(render("Feed", feed_case[1]))
    assert re.findall(r"^(METHOD|ATTENDEE|ORGANIZER)\b", body, re.MULTILINE) == []


def test_calendar_joins_its_parts_between_head_and_end() -> None:
    assert calendar("Vienna, June; part 1", [b"ZONE 1\r\n", b"ZONE 2\r\n"], [b"BLOCK 1\r\n", b"BLOCK 2\r\n"]) == (
        b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//Attache//Feeds//EN\r\nCALSCALE:GREGORIAN\r\n"
        b"NAME:Vienna\\, June\\; part 1\r\nX-WR-CALNAME:Vienna\\, June\\; part 1\r\n"
        b"REFRESH-INTERVAL;VALUE=DURATION:PT15M\r\nX-PUBLISHED-TTL:PT15M\r\n"
        b"ZONE 1\r\nZONE 2\r\nBLOCK 1\r\nBLOCK 2\r\nEND:VCALENDAR\r\n"
    )


def test_empty_calendar_says_nothing() -> None:
    assert empty_calendar() == (
        b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//Attache//Feeds//EN\r\nCALSCALE:GREGORIAN\r\n"
        b"REFRESH-INTERVAL;VALUE=DURATION:PT15M\r\nX-PUBLISHED-TTL:PT15M\r\nEND:VCALENDAR\r\n"
    )


def test_digest_is_of_the_block_without_stamps_and_of_its_zones(meeting: Entry) -> None:
    drafted = draft(meeting, domain="planning.example", zones={"Asia/Tokyo": TOKYO, "Asia/Seoul": b"not used"})
    assert drafted.uid == "5eed0000-0000-4000-8000-000000000003@planning.example"
    assert drafted.digest == sha256(drafted.head + drafted.tail + TOKYO).digest()


def test_digest_changes_with_the_text_of_a_zone(meeting: Entry) -> None:
    other = TOKYO.replace(b"TZNAME:JST", b"TZNAME:JDT")
    drafts = [draft(meeting, domain="planning.example", zones={"Asia/Tokyo": text}) for text in (TOKYO, other)]
    assert (drafts[0].tail == drafts[1].tail, drafts[0].digest == drafts[1].digest) == (True, False)


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": 5},
        {"when": Days(first=date(2023, 11, 7), last=date(2023, 11, 7))},
        {"summary": "Other"},
        {"status": "TENTATIVE"},
        {"transparent": True},
        {"location": None},
        {"geo": (35.66, 139.740929)},
        {"text": ("Tue 7 Nov 2023, 18:25–19:10 Tokyo (UTC+09:00)",)},
        {"categories": ("bilateral",)},
        {"color": None},
        {"conference": None},
        {"related_to": UUID(int=9)},
        {"alarm": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_digest_changes_with_what_is_shown(meeting: Entry, change: dict[str, object]) -> None:
    before, after = meeting, replace(meeting, **change)  # type: ignore[arg-type]
    zones = {"Asia/Tokyo": TOKYO}
    assert draft(before, domain="a.example", zones=zones).digest != draft(after, domain="a.example", zones=zones).digest


def test_digest_does_not_change_with_the_place_in_the_order(meeting: Entry) -> None:
    later = replace(meeting, sort_instant=meeting.sort_instant + timedelta(hours=1))
    zones = {"Asia/Tokyo": TOKYO}
    assert draft(meeting, domain="a.example", zones=zones) == draft(later, domain="a.example", zones=zones)


def test_stamp_without_an_offset_is_refused(meeting: Entry) -> None:
    drafted = draft(meeting, domain="planning.example", zones={"Asia/Tokyo": TOKYO})
    with pytest.raises(ValueError, match="without an offset"):
        stamped(drafted, datetime.fromisoformat("2023-11-07T01:02:03"))


def test_zones_are_right_for_all_years_that_the_entries_touch(meeting: Entry) -> None:
    here = _moment("2023-12-31T23:30Z", "Africa/Casablanca", "2024-01-01T00:30")
    spring = _moment("2023-04-01T09:00Z", "Africa/Casablanca", "2023-04-01T09:00")
    across, within = (replace(meeting, when=Span(start=moment, end=moment)) for moment in (here, spring))
    stay = replace(meeting, when=Days(first=date(2023, 12, 30), last=date(2024, 1, 2)))
    found = [zones_of(entries)["Africa/Casablanca"] for entries in ([within], [across], [within, stay])]
    assert [text is not None for text in found] == [True, False, False]
    of_trip = [zones_of([within], years)["Africa/Casablanca"] for years in ((2023, 2023), (2023, 2024))]
    assert [text is not None for text in of_trip] == [True, False]


def test_feed_without_times_has_no_zones(meeting: Entry) -> None:
    assert zones_of([replace(meeting, when=Days(first=date(2023, 11, 7), last=date(2023, 11, 7)))]) == {}


@given(summary=ANY_TEXT | SHARP_TEXT, text=st.lists(ANY_TEXT | SHARP_TEXT, max_size=4), place=SHARP_TEXT)
def test_any_text_is_read_back_and_never_makes_a_line_of_its_own(summary: str, text: list[str], place: str) -> None:
    entry = replace(
        _bare_entry(), summary=summary, text=tuple(text), location=place, conference=summary, categories=(place,)
    )
    body = calendar(summary, [], [_block(entry, {}).encode()])
    lines = body.split(b"\r\n")
    assert max(map(len, lines)) <= 75
    assert [line.decode() for line in lines if re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", line)] == []
    properties = [re.split("[:;]", line)[0] for line in _unfolded(body).splitlines()]
    assert properties == _expected_properties(entry)
    event = Calendar.from_ical(body).walk("VEVENT")[0]
    read = [str(event.get(name, "")) for name in ("SUMMARY", "DESCRIPTION", "LOCATION")]
    assert read == [_kept(summary), _kept("\n".join(text)), _kept(place)]


@given(text=ANY_TEXT | SHARP_TEXT)
def test_same_entry_gives_the_same_bytes(text: str) -> None:
    bodies = {
        calendar(text, [], [_block(replace(_bare_entry(), summary=text, text=(text,)), {}).encode()]) for _ in range(2)
    }
    assert len(bodies) == 1


@given(text=st.text("aé漢👩", min_size=60, max_size=90))
def test_line_is_filled_as_far_as_its_characters_allow(text: str) -> None:
    block = _block(replace(_bare_entry(), summary=text), {})
    lines = block[block.index("SUMMARY") : block.index("STATUS")].removesuffix("\r\n").split("\r\n")
    assert "".join([lines[0], *(line.removeprefix(" ") for line in lines[1:])]) == f"SUMMARY:{text}"
    for line, following in pairwise(lines):
        assert len(line.encode()) <= 75 < len(line.encode()) + len(following[1].encode())


def _kept(text: str) -> str:
    """What a reader gets of a text: each line break as one newline, without controls and halves of characters."""
    broken = re.sub("\r\n|[\r\x85\u2028\u2029]", "\n", text)
    return "".join(char for char in broken if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs"))


def _bare_entry() -> Entry:
    return Entry(
        id=UUID(int=1),
        sequence=0,
        when=Days(first=date(2023, 11, 7), last=date(2023, 11, 7)),
        sort_instant=datetime(2023, 11, 7, tzinfo=UTC),
        summary="",
        status="CONFIRMED",
        transparent=True,
        location=None,
        geo=None,
        text=(),
        categories=(),
        color=None,
        conference=None,
        related_to=None,
        alarm=None,
    )


def _expected_properties(entry: Entry) -> list[str]:
    head = ["BEGIN", "VERSION", "PRODID", "CALSCALE", "NAME", "X-WR-CALNAME", "REFRESH-INTERVAL", "X-PUBLISHED-TTL"]
    event = ["BEGIN", "UID", "DTSTAMP", "LAST-MODIFIED", "SEQUENCE", "DTSTART", "DTEND", "SUMMARY", "STATUS", "TRANSP"]
    optional = {
        "LOCATION": entry.location,
        "DESCRIPTION": entry.text,
        "CATEGORIES": entry.categories,
        "CONFERENCE": entry.conference,
    }
    return [*head, *event, *(name for name, value in optional.items() if value), "END", "END"]


def _moment(instant: str, zone: str, wall: str) -> Moment:
    return Moment(instant=datetime.fromisoformat(instant), zone=zone, wall=datetime.fromisoformat(wall))


def _block(entry: Entry, zones: dict[str, bytes | None]) -> str:
    drafted = draft(entry, domain="planning.example", zones=zones)
    return stamped(drafted, datetime(2023, 10, 30, 14, 5, 9, tzinfo=UTC)).decode()


def _times(entry: Entry, zones: dict[str, bytes | None]) -> list[str]:
    return [line for line in _block(entry, zones).split("\r\n") if line.startswith(("DTSTART", "DTEND"))]


def _description(entry: Entry, zones: dict[str, bytes | None]) -> str:
    body = calendar("", [], [_block(entry, zones).encode()])
    return str(Calendar.from_ical(body).walk("VEVENT")[0]["DESCRIPTION"])


def _unfolded(body: bytes) -> str:
    return body.decode().replace("\r\n ", "")

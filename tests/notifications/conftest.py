"""Entries that the feed's tests share: one set per golden file, and the way from entries to the bytes of a feed.

A test that asks for `feed_case` runs once for each set.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from services.notifications.entry import Days, Entry, Moment, Span
from services.notifications.feed import calendar, draft, stamped, zones_of
from services.notifications.zones import time_zone

DOMAIN = "planning.example"
LAST_MODIFIED = datetime(2023, 10, 30, 14, 5, 9, tzinfo=UTC)

ZONES_THAT_BITE = (
    "Africa/Casablanca",
    "America/New_York",
    "America/St_Johns",
    "Asia/Amman",
    "Asia/Hebron",
    "Asia/Jerusalem",
    "Asia/Kathmandu",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "Europe/Dublin",
    "Pacific/Apia",
)

HERE = Path(__file__).parent
ICALJS_FOLDERS = (HERE / "js" / "node_modules" / "ical.js", HERE.parents[1] / "node_modules" / "ical.js")

FeedCase = tuple[str, tuple[Entry, ...]]
Render = Callable[[str, Sequence[Entry]], bytes]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "feed_case" in metafunc.fixturenames:
        metafunc.parametrize("feed_case", list(CASES.items()), ids=list(CASES))


@pytest.fixture
def render() -> Render:
    """The bytes of a feed of this name with these entries, each changed last at LAST_MODIFIED."""
    return _render


@pytest.fixture
def meeting() -> Entry:
    """A confirmed meeting in which every field has a value of its own."""
    return MEETING


@pytest.fixture(scope="session")
def icaljs() -> Callable[[bytes], list[dict[str, str | None]]]:
    """Reads a calendar with ical.js: `npm ci --prefix tests/notifications/js` brings it. Under CI=true a must."""
    node = shutil.which("node")
    package = next((folder for folder in ICALJS_FOLDERS if folder.is_dir()), None)
    if node is None or package is None:
        reason = "ical.js is not here: it needs node, and `npm ci --prefix tests/notifications/js`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)

    def read(body: bytes) -> list[dict[str, str | None]]:
        program = [node, str(HERE / "read_with_icaljs.mjs"), str(package)]
        done = subprocess.run(program, input=body, capture_output=True, check=True, timeout=120)
        events: list[dict[str, str | None]] = json.loads(done.stdout)
        return events

    return read


@pytest.fixture
def zones_that_bite() -> tuple[str, ...]:
    return ZONES_THAT_BITE


def _render(name: str, entries: Sequence[Entry]) -> bytes:
    zones = zones_of(entries)
    ordered = sorted(entries, key=lambda entry: (entry.sort_instant, f"{entry.id}@{DOMAIN}"))
    drafts = [draft(entry, domain=DOMAIN, zones=zones) for entry in ordered]
    blocks = [stamped(drafted, LAST_MODIFIED) for drafted in drafts]
    return calendar(name, [text for text in zones.values() if text], blocks)


def _id(number: int) -> UUID:
    return UUID(int=0x5EED << 112 | 4 << 76 | 2 << 62 | number)


def _at(wall: str, zone: str, fold: int = 0) -> Moment:
    local = datetime.fromisoformat(wall)
    return Moment(instant=local.replace(tzinfo=time_zone(zone), fold=fold).astimezone(UTC), zone=zone, wall=local)


def _span(start: Moment, end: Moment) -> Span:
    return Span(start=start, end=end)


def _timed(entry: Entry, number: int, when: Span, first_line: str) -> Entry:
    return replace(entry, id=_id(number), when=when, sort_instant=when.start.instant, text=(first_line,))


MEETING = Entry(
    id=_id(3),
    sequence=4,
    when=_span(_at("2023-11-07T18:25", "Asia/Tokyo"), _at("2023-11-07T19:10", "Asia/Tokyo")),
    sort_instant=datetime(2023, 11, 7, 9, 25, tzinfo=UTC),
    summary="Bilateral with the Foreign Minister; working level follows, same room",
    status="CONFIRMED",
    transparent=False,
    location="Iikura Guest House, Azabudai 1-5-3, Tokyo",
    geo=(35.66, 139.740928),
    text=(
        "Tue 7 Nov 2023, 18:25–19:10 Tokyo (UTC+09:00)",
        "Topics: supply chains, maritime security",
        "Delegations: Principal's party; Ministry of Foreign Affairs",
        "Press: pooled-spray, pre-set 17:40, final access 18:10",
    ),
    categories=("bilateral", "press, pooled"),
    color="steelblue",
    conference="https://meet.example/r/7?pwd=a,b;c",
    related_to=_id(1),
    alarm=timedelta(days=1, minutes=20),
)

PLAIN = replace(
    MEETING,
    sequence=0,
    summary="Courtesy call",
    location=None,
    geo=None,
    text=(),
    categories=(),
    color=None,
    conference=None,
    related_to=None,
    alarm=None,
)

TOKYO_WEEK = (
    replace(
        PLAIN,
        id=_id(1),
        when=Days(first=date(2023, 11, 7), last=date(2023, 11, 8)),
        sort_instant=datetime(2023, 11, 7, 6, 5, tzinfo=UTC),
        summary="Tokyo",
        transparent=True,
        location="Tokyo, Japan",
        text=("Tue 7 Nov 2023, 15:05 – Wed 8 Nov 2023, 16:40 Tokyo (UTC+09:00)",),
        categories=("stop",),
    ),
    replace(
        PLAIN,
        id=_id(2),
        sequence=1,
        when=_span(_at("2023-11-06T13:40", "America/New_York"), _at("2023-11-07T15:05", "Asia/Tokyo")),
        sort_instant=datetime(2023, 11, 6, 18, 40, tzinfo=UTC),
        summary="Flight: New York → Tokyo",
        text=("Mon 6 Nov 2023, 13:40 New York (UTC-05:00)", "Arrives: Tue 7 Nov 2023, 15:05 Tokyo (UTC+09:00)"),
        categories=("flight",),
        related_to=_id(1),
    ),
    MEETING,
    replace(
        _timed(
            PLAIN,
            4,
            _span(_at("2023-11-08T09:00", "Asia/Tokyo"), _at("2023-11-08T10:15", "Asia/Tokyo")),
            "Wed 8 Nov 2023, 09:00–10:15 Tokyo (UTC+09:00), time assumed",
        ),
        status="TENTATIVE",
        alarm=timedelta(hours=2),
    ),
    replace(
        _timed(
            PLAIN,
            5,
            _span(_at("2023-11-08T12:30", "Asia/Tokyo"), _at("2023-11-08T12:30", "Asia/Tokyo")),
            "Wed 8 Nov 2023, 12:30 Tokyo (UTC+09:00)",
        ),
        sequence=7,
        summary="Cancelled: Press availability",
        status="CANCELLED",
        transparent=True,
        text=("Wed 8 Nov 2023, 12:30 Tokyo (UTC+09:00)", "Reason: moved to Seoul"),
    ),
)

BITING = tuple(
    _timed(
        replace(PLAIN, summary=f"{zone} {day}", location=zone),
        100 + 10 * number + later,
        _span(_at(f"2023-{day}T22:50", zone), _at(f"2023-{day}T23:35", zone)),
        f"{day}, 22:50–23:35 {zone}",
    )
    for number, zone in enumerate(ZONES_THAT_BITE)
    for later, day in enumerate(("01-15", "03-23", "03-24", "03-26", "07-15", "10-28", "10-29"))
)

_NEW_YEAR_IN_CASABLANCA = _span(
    _at("2023-12-31T23:15", "Africa/Casablanca"), _at("2024-01-01T00:45", "Africa/Casablanca")
)
_RAMADAN = _span(_at("2024-03-20T11:00", "Africa/Casablanca"), _at("2024-03-20T13:20", "Europe/Lisbon"))
_MOON = Moment(
    instant=datetime(2023, 11, 9, 8, 0, tzinfo=UTC), zone="Moon/Tranquility", wall=datetime(2023, 11, 9, 9, 58)
)
_MOON_LATER = replace(_MOON, instant=_MOON.instant + timedelta(hours=1), wall=_MOON.wall + timedelta(hours=1))
_TWICE = tuple(_at("2023-11-05T01:30", "America/New_York", fold) for fold in (0, 1))

IN_UTC = (
    _timed(
        PLAIN, 201, _NEW_YEAR_IN_CASABLANCA, "Sun 31 Dec 2023, 23:15 – Mon 1 Jan 2024, 00:45 Casablanca (UTC+01:00)"
    ),
    _timed(PLAIN, 202, _RAMADAN, "Flight to Lisbon, times to follow"),
    _timed(PLAIN, 203, _span(_MOON, _MOON_LATER), "Time at the venue: see notes, until 10:58"),
    _timed(PLAIN, 204, _span(*_TWICE), "Sun 5 Nov 2023, 01:30 (UTC-04:00) – 01:30 (UTC-05:00) New York"),
    _timed(PLAIN, 205, _span(_TWICE[1], _at("2023-11-05T02:15", "America/New_York")), "01:30–02:15 New York"),
)

TEXTS = (
    replace(
        PLAIN,
        id=_id(301),
        summary="Gespräch über Getreide, Öl; »Größe« \\ Maß\nzweite Zeile\r\ndritte\rvierte",
        location="総理大臣官邸、東京都千代田区永田町二丁目三番一号、日本国、総理大臣官邸小ホール",
        text=(
            "Tue 7 Nov 2023, 18:25–19:10 Tokyo (UTC+09:00)",
            "👩🏽‍🚀" * 12,
            "tab\tkept, bell\x07 nul\x00 escape\x1b dropped, next line\x85line\u2028paragraph\u2029end",
            "x" * 180,
            "",
            "",
            "BEGIN:VEVENT",
        ),
        categories=("ééééééééééééééééééééééééééééééééééé", "plain"),
        conference="tel:+81 (3) 5550-0199",
        alarm=timedelta(0),
    ),
    replace(PLAIN, id=_id(302), summary="", location="", text=(), conference="xmpp:raum@konferenz.example?join"),
    replace(PLAIN, id=_id(303), summary="a" * 67, conference="https://meet.example/ä\r\nX-INJECTED:1"),
    replace(PLAIN, id=_id(304), summary="a" * 68, conference="urn:example:room", geo=(-0.5, 179.9999999)),
)

CASES: dict[str, tuple[Entry, ...]] = {
    "tokyo_week": TOKYO_WEEK,
    "zones_that_bite": BITING,
    "in_utc": IN_UTC,
    "texts": TEXTS,
    "nothing": (),
}

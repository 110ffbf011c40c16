"""The least VTIMEZONE (RFC 5545 section 3.6.5) that is right for some calendar years, or the news that there is none.

Outlook knows a zone by one standard and at most one daylight rule, each "month, nth weekday, time of day", applied to
every year. Whether such a pair tells a zone's years is computed here from the zone's own changes of offset; no zone is
listed. Where no pair does, the feed says UTC.

Zone data come from the pinned `tzdata` package alone, whatever the machine has and wherever `zoneinfo` looks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, lru_cache
from importlib import resources
from itertools import pairwise, product
from zoneinfo import ZoneInfo

MAX_YEARS = 50  # a longer trip is a slip of the pen; its feed says UTC rather than hold the renderer up
_STEP = timedelta(hours=12)  # no zone has changed its offset and taken it back within so short a time
_WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")


@lru_cache(maxsize=2048)
def vtimezone(zone: str, first_year: int, last_year: int) -> bytes | None:
    """The VTIMEZONE component of an IANA zone (CRLF lines, at most 400 bytes), right for the years from first to last.

    Right means: for every instant whose year is one of these in UTC or in the zone, by RFC 5545 and by Outlook's model
    alike. The text depends on the arguments and the tz data only. DAYLIGHT is the larger offset, also where the tz data
    call the smaller one daylight (Europe/Dublin). None: no such pair of rules exists, or the zone is unknown.
    """
    tz = time_zone(zone)
    if tz is None or not 1 < first_year <= last_year < 9999 or last_year - first_year >= MAX_YEARS:
        return None
    window = _window(tz, first_year, last_year)
    changes = list(_changes(tz, *window))
    offset = _offset(tz, window[0])
    if any(known % timedelta(minutes=1) for known in (offset, *(change.after for change in changes))):
        return None  # seconds in an offset: Outlook counts minutes
    year = min(1970, first_year - 1)  # long before the years asked for, since clients look back from an instant
    if not changes:
        body = _observance("STANDARD", f"{year:04d}0101T000000", "", offset, offset, _name(tz, window[0]))
    elif pair := _pair(changes, window):
        body = "".join(
            _recurring(kind, rule, year, tz) for kind, rule in zip(("STANDARD", "DAYLIGHT"), pair, strict=True)
        )
    else:
        return None
    return f"BEGIN:VTIMEZONE\r\nTZID:{zone}\r\n{body}END:VTIMEZONE\r\n".encode("ascii")


@cache
def time_zone(zone: str) -> ZoneInfo | None:
    """The zone by its IANA name (links included), or None where the pinned tz data have none of that name."""
    if zone not in _zone_names():
        return None
    with resources.files("tzdata").joinpath("zoneinfo", *zone.split("/")).open("rb") as data:
        return ZoneInfo.from_file(data, key=zone)


@dataclass(frozen=True, slots=True, order=True, kw_only=True)
class _Change:
    """At this instant (UTC) the offset from UTC became another one."""

    at: datetime
    before: timedelta
    after: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """Each year, on the nth such weekday of the month (-1: the last) at that time of the day by the offset before."""

    month: int
    nth: int
    weekday: int
    clock: timedelta
    before: timedelta
    after: timedelta
    example: datetime
    """An instant right after such a change."""

    def wall(self, year: int) -> datetime:
        """The local time (naive, before the change) of the change in a year."""
        if self.nth > 0:
            first = date(year, self.month, 1)
            day = first + timedelta(days=(self.weekday - first.weekday()) % 7 + 7 * (self.nth - 1))
        else:
            last = date(year + self.month // 12, self.month % 12 + 1, 1) - timedelta(days=1)
            day = last - timedelta(days=(last.weekday() - self.weekday) % 7)
        return datetime.combine(day, time()) + self.clock

    def change(self, year: int) -> _Change:
        return _Change(at=(self.wall(year) - self.before).replace(tzinfo=UTC), before=self.before, after=self.after)


def _pair(changes: list[_Change], window: tuple[datetime, datetime]) -> tuple[_Rule, _Rule] | None:
    """The standard and the daylight rule that together give exactly these changes within the window."""
    standards = _rules([change for change in changes if change.after < change.before])
    daylights = _rules([change for change in changes if change.after > change.before])
    for standard, daylight in product(standards, daylights):
        if _tells(standard, daylight, changes, window):
            return standard, daylight
    return None


def _rules(changes: list[_Change]) -> list[_Rule]:
    """The rules that the first of the changes follows; the last weekday of a month before the fourth."""
    if not changes:
        return []
    first = changes[0]
    wall = first.at.replace(tzinfo=None) + first.before
    day = wall.replace(hour=0, minute=0, second=0)
    candidates = (
        _Rule(
            month=day.month,
            nth=nth,
            weekday=day.weekday(),
            clock=wall - day,
            before=first.before,
            after=first.after,
            example=first.at,
        )
        for nth in (-1, 1, 2, 3, 4)
    )
    return [rule for rule in candidates if rule.wall(wall.year) == wall]


def _tells(standard: _Rule, daylight: _Rule, changes: list[_Change], window: tuple[datetime, datetime]) -> bool:
    """Whether the two rules, applied to every year, make these changes within the window, and no other."""
    start, end = window
    years = range(start.year - 1, end.year + 2)
    told = sorted(rule.change(year) for year in years for rule in (standard, daylight))
    within = [change for change in told if start < change.at < end]
    return within == changes and all(earlier.after == later.before for earlier, later in pairwise(told))


def _window(tz: ZoneInfo, first_year: int, last_year: int) -> tuple[datetime, datetime]:
    """From the first instant of the years, in UTC or in the zone, to the first one after them."""
    starts = [datetime(first_year, 1, 1, tzinfo=clock) for clock in (UTC, tz)]
    ends = [datetime(last_year + 1, 1, 1, tzinfo=clock, fold=1) for clock in (UTC, tz)]
    return min(start.astimezone(UTC) for start in starts), max(end.astimezone(UTC) for end in ends)


def _changes(tz: ZoneInfo, start: datetime, end: datetime) -> Iterator[_Change]:
    """Every change of the zone's offset after `start` and before `end`, in order of time."""
    before = _offset(tz, start)
    earlier = start
    last = end - timedelta(seconds=1)
    while earlier < last:
        later = min(earlier + _STEP, last)
        after = _offset(tz, later)
        if after != before:
            yield _Change(at=_first_with(tz, after, earlier, later), before=before, after=after)
        earlier, before = later, after


def _first_with(tz: ZoneInfo, offset: timedelta, earlier: datetime, later: datetime) -> datetime:
    """The second at which the offset began to hold, after `earlier` and not after `later`."""
    while later - earlier > timedelta(seconds=1):
        middle = earlier + timedelta(seconds=(later - earlier) // timedelta(seconds=2))
        earlier, later = (earlier, middle) if _offset(tz, middle) == offset else (middle, later)
    return later


def _recurring(kind: str, rule: _Rule, year: int, tz: ZoneInfo) -> str:
    recurs = f"RRULE:FREQ=YEARLY;BYMONTH={rule.month};BYDAY={rule.nth}{_WEEKDAYS[rule.weekday]}\r\n"
    start = rule.wall(year).isoformat(timespec="seconds").replace("-", "").replace(":", "")
    return _observance(kind, start, recurs, rule.before, rule.after, _name(tz, rule.example))


def _observance(kind: str, start: str, recurs: str, before: timedelta, after: timedelta, name: str) -> str:
    return (
        f"BEGIN:{kind}\r\nDTSTART:{start}\r\n{recurs}TZOFFSETFROM:{_signed(before)}\r\nTZOFFSETTO:{_signed(after)}\r\n"
        f"TZNAME:{name}\r\nEND:{kind}\r\n"
    )


def _name(tz: ZoneInfo, at: datetime) -> str:
    """The zone's abbreviation ("JST"); where people use none, the tz data give the offset ("+03")."""
    return at.astimezone(tz).tzname() or _signed(_offset(tz, at))


def _signed(offset: timedelta) -> str:
    minutes = abs(offset) // timedelta(minutes=1)
    return f"{'-' if offset < timedelta() else '+'}{minutes // 60:02d}{minutes % 60:02d}"


def _offset(tz: ZoneInfo, at: datetime) -> timedelta:
    return at.astimezone(tz).utcoffset() or timedelta()


@cache
def _zone_names() -> frozenset[str]:
    return frozenset(resources.files("tzdata").joinpath("zones").read_text("ascii").split())

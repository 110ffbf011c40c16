"""The VTIMEZONE of every zone, read by interpreters that share nothing with the writer, against the tz data.

Three of them: RFC 5545 in a few lines here (dateutil's recurrence rules), `icalendar`'s own reading, and Outlook's
model (one rule for each half of the year, applied to every year). Each is asked for every hour around every change of
offset, and for the hours at which the years begin and end.
"""

import calendar
import re
import zoneinfo
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo, available_timezones

import pytest
from dateutil.rrule import rrulestr
from icalendar import Calendar, Timezone

from services.notifications.zones import MAX_YEARS, time_zone, vtimezone
from shared.time_zones import tz_release

HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
RANGES = ((2023, 2023), (2023, 2024))
SAMPLE = sorted(available_timezones())[::3]
WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")

Offsets = Callable[[datetime], timedelta]
"""The offset from UTC that a reader of a VTIMEZONE takes to hold at an instant."""


@pytest.mark.parametrize("years", RANGES)
def test_zones_that_bite_are_right_where_they_can_be_told(
    zones_that_bite: tuple[str, ...], years: tuple[int, int]
) -> None:
    assert [_faults(zone, *years) for zone in zones_that_bite] == [[] for _ in zones_that_bite]


@pytest.mark.parametrize("years", RANGES)
def test_sample_of_all_zones_is_right_where_it_can_be_told(years: tuple[int, int]) -> None:
    assert [fault for zone in SAMPLE for fault in _faults(zone, *years)] == []


@pytest.mark.parametrize("first_year", [1975, 1990, 1999, 2007, 2010, 2011, 2018, 2021, 2022])
def test_years_in_which_rules_changed_are_right_where_they_can_be_told(first_year: int) -> None:
    zones = ["America/Caracas", "America/Sao_Paulo", "Asia/Gaza", "Asia/Pyongyang", "Europe/Moscow", "Pacific/Apia"]
    assert [fault for zone in zones for fault in _faults(zone, first_year, first_year + 1)] == []


def test_icalendar_reads_the_zones_as_the_tz_data_have_them(zones_that_bite: tuple[str, ...]) -> None:
    faults = []
    for zone in zones_that_bite:
        definition = _text(zone, 2023, 2023)
        component = Calendar.from_ical("BEGIN:VCALENDAR\r\n" + definition + "END:VCALENDAR\r\n").walk("VTIMEZONE")[0]
        assert isinstance(component, Timezone)
        read = component.to_tz(lookup_tzid=False)
        for at in _instants(zone, 2023, 2023):
            local = at.astimezone(ZoneInfo(zone))
            if (
                local.replace(fold=1 - local.fold).utcoffset() == local.utcoffset()
            ):  # what is repeated, feeds say in UTC
                again = local.replace(tzinfo=read)
                faults += [(zone, local)] if again.utcoffset() != local.utcoffset() else []
    assert faults == []


@pytest.mark.parametrize(
    ("zone", "first_year", "last_year"),
    [
        ("Africa/Casablanca", 2023, 2024),  # Ramadan moves through the year
        ("Africa/El_Aaiun", 2022, 2023),
        ("America/Nuuk", 2023, 2023),  # went to summer time and stayed
        ("Asia/Amman", 2022, 2022),  # the same
        ("Asia/Amman", 2022, 2023),
        ("Asia/Gaza", 2022, 2024),
        ("Asia/Jerusalem", 2023, 2024),  # 24 March 2023 is the fourth, 29 March 2024 the fifth and last Friday
        ("Asia/Pyongyang", 2018, 2018),  # half an hour forward for good
        ("Europe/Moscow", 2011, 2011),
        ("Pacific/Apia", 2011, 2011),  # left out a whole day
        ("Pacific/Apia", 2020, 2021),  # gave summer time up
        ("Pacific/Galapagos", 1985, 1985),  # put its clocks back as 1986 began: the last hour of 1985 came twice
        ("Pacific/Galapagos", 1986, 1986),  # and by UTC that was 1986
        ("Africa/Monrovia", 1971, 1971),  # 44 minutes and 30 seconds
        ("Moon/Tranquility", 2023, 2023),
        ("../zones", 2023, 2023),
        ("", 2023, 2023),
        ("asia/tokyo", 2023, 2023),
        ("Asia/Tokyo", 2024, 2023),
        ("Asia/Tokyo", 1, 1),
        ("Asia/Tokyo", 9999, 9999),
        ("Asia/Tokyo", 2023, 2023 + MAX_YEARS),
    ],
)
def test_zone_that_no_pair_of_rules_tells_has_none(zone: str, first_year: int, last_year: int) -> None:
    assert vtimezone(zone, first_year, last_year) is None


@pytest.mark.parametrize(
    ("zone", "year"),
    [
        ("Antarctica/Casey", 1968),  # the next year began with another offset, by UTC and there at once
        ("America/Lima", 1985),  # the next year began with another offset
        ("Asia/Dhaka", 2010),  # the year before ended with another offset
        ("Asia/Singapore", 1982),  # the same, and the year's first half hour was left out
        ("Pacific/Kiritimati", 1995),  # the same with a whole day
    ],
)
def test_change_right_outside_the_years_does_not_count(zone: str, year: int) -> None:
    assert ("RRULE" in _text(zone, year, year), _faults(zone, year, year)) == (False, [])


def test_almost_every_zone_can_be_told_in_2023() -> None:
    lacking = [zone for zone in sorted(available_timezones()) if vtimezone(zone, 2023, 2023) is None]
    assert lacking == ["America/Godthab", "America/Nuuk", "Antarctica/Casey", "Antarctica/Vostok"]


def test_friday_rule_of_jerusalem_is_found_where_one_friday_fits_all_years() -> None:
    rules = {years: _rule("Asia/Jerusalem", "DAYLIGHT", *years) for years in ((2022, 2023), (2023, 2023), (2024, 2025))}
    assert rules == {
        (2022, 2023): "RRULE:FREQ=YEARLY;BYMONTH=3;BYDAY=4FR",
        (2023, 2023): "RRULE:FREQ=YEARLY;BYMONTH=3;BYDAY=4FR",
        (2024, 2025): "RRULE:FREQ=YEARLY;BYMONTH=3;BYDAY=-1FR",
    }


def test_dublin_keeps_daylight_time_in_summer() -> None:
    assert _text("Europe/Dublin", 2023, 2023) == (
        "BEGIN:VTIMEZONE\r\n"
        "TZID:Europe/Dublin\r\n"
        "BEGIN:STANDARD\r\n"
        "DTSTART:19701025T020000\r\n"
        "RRULE:FREQ=YEARLY;BYMONTH=10;BYDAY=-1SU\r\n"
        "TZOFFSETFROM:+0100\r\n"
        "TZOFFSETTO:+0000\r\n"
        "TZNAME:GMT\r\n"
        "END:STANDARD\r\n"
        "BEGIN:DAYLIGHT\r\n"
        "DTSTART:19700329T010000\r\n"
        "RRULE:FREQ=YEARLY;BYMONTH=3;BYDAY=-1SU\r\n"
        "TZOFFSETFROM:+0000\r\n"
        "TZOFFSETTO:+0100\r\n"
        "TZNAME:IST\r\n"
        "END:DAYLIGHT\r\n"
        "END:VTIMEZONE\r\n"
    )


def test_zone_without_changes_has_no_rule_and_is_named_by_its_offset() -> None:
    assert _text("Asia/Kathmandu", 2023, 2023) == (
        "BEGIN:VTIMEZONE\r\n"
        "TZID:Asia/Kathmandu\r\n"
        "BEGIN:STANDARD\r\n"
        "DTSTART:19700101T000000\r\n"
        "TZOFFSETFROM:+0545\r\n"
        "TZOFFSETTO:+0545\r\n"
        "TZNAME:+0545\r\n"
        "END:STANDARD\r\n"
        "END:VTIMEZONE\r\n"
    )


def test_zone_is_minimal() -> None:
    allowed = (
        r"(BEGIN|END):(VTIMEZONE|STANDARD|DAYLIGHT)|TZID:[\w/+-]+|DTSTART:\d{8}T\d{6}|TZOFFSET(FROM|TO):[+-]\d{4}"
        r"|RRULE:FREQ=YEARLY;BYMONTH=\d+;BYDAY=(-1|[1-4])(MO|TU|WE|TH|FR|SA|SU)|TZNAME:([A-Za-z]{3,6}|[+-]\d\d(\d\d)?)"
    )
    for zone in available_timezones():
        text = vtimezone(zone, 2023, 2023)
        if text is None:
            continue
        lines = text.decode().split("\r\n")
        assert len(text) <= 400, zone
        assert (lines.count("BEGIN:STANDARD"), lines.count("BEGIN:DAYLIGHT") < 2, lines.pop()) == (1, True, ""), zone
        assert [line for line in lines if not re.fullmatch(allowed, line) or len(line) > 75] == [], zone


def test_zone_is_told_from_the_same_start_for_any_years_after_1970() -> None:
    assert _text("America/New_York", 2023, 2023) == _text("America/New_York", 2010, 2030)


def test_rules_begin_before_the_years_that_are_asked_for() -> None:
    starts = re.findall("DTSTART:(....)", _text("America/New_York", 1969, 1970))
    assert (starts, _faults("America/New_York", 1969, 1970)) == (["1968", "1968"], [])


def test_zone_data_come_from_the_pinned_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoneinfo.TZPATH", ("/nowhere",))
    time_zone.cache_clear()
    tokyo = time_zone("Asia/Tokyo")
    assert tokyo is not None
    assert (tokyo.key, time_zone("Etc/../Etc/UTC"), time_zone("Moon/Tranquility")) == ("Asia/Tokyo", None, None)


def test_zone_files_of_the_machine_are_not_looked_at(tmp_path: Path) -> None:
    utc = resources.files("tzdata").joinpath("zoneinfo", "Etc", "UTC").read_bytes()
    (tmp_path / "Asia").mkdir()
    (tmp_path / "Asia" / "Tokyo").write_bytes(utc)
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath([tmp_path])
    ZoneInfo.clear_cache()
    time_zone.cache_clear()
    try:
        machines, tokyo = ZoneInfo("Asia/Tokyo"), time_zone("Asia/Tokyo")
    finally:
        zoneinfo.reset_tzpath(before)
        ZoneInfo.clear_cache()
        time_zone.cache_clear()
    noon = datetime(2023, 11, 7, 12, tzinfo=UTC)
    assert tokyo is not None
    assert [noon.astimezone(zone).hour for zone in (machines, tokyo)] == [12, 21]


def test_release_of_the_tz_data_is_named() -> None:
    assert re.fullmatch(r"20\d\d[a-z]", tz_release())


def _faults(zone: str, first_year: int, last_year: int) -> list[tuple[str, str, datetime]]:
    """The instants at which a reader takes another offset than the tz data have; none where the zone is not told."""
    definition = vtimezone(zone, first_year, last_year)
    if definition is None:
        return []
    text = definition.decode()
    readers = {"rfc": _by_rfc(text, last_year), "outlook": _by_outlook(text)}
    tz = ZoneInfo(zone)
    return [
        (zone, name, at)
        for at in _instants(zone, first_year, last_year)
        for name, reader in readers.items()
        if reader(at) != at.astimezone(tz).utcoffset()
    ]


@cache
def _instants(zone: str, first_year: int, last_year: int) -> tuple[datetime, ...]:
    """Each hour around each change, its seconds, the first of each month, and where the years begin and end there."""
    tz = ZoneInfo(zone)
    begin, end = datetime(first_year, 1, 1, tzinfo=UTC), datetime(last_year + 1, 1, 1, tzinfo=UTC)
    days = [begin + timedelta(days=day) for day in range(-1, (end - begin).days + 2)]
    found = [day for day in days if day.day == 1]
    for day, following in pairwise(days):
        if day.astimezone(tz).utcoffset() != following.astimezone(tz).utcoffset():
            hours = [day + hour * HOUR for hour in range(-3, 28)]
            found += [at + slip for at in hours for slip in (-SECOND, timedelta(), HOUR / 2 - SECOND, HOUR / 2)]
    found += [edge + hour * HOUR for edge in (begin, end - SECOND) for hour in range(-14, 15)]
    years = range(first_year, last_year + 1)
    return tuple(at for at in found if at.year in years or at.astimezone(tz).year in years)


def _by_rfc(text: str, last_year: int) -> Offsets:
    """RFC 5545: that observance holds whose onset, a local time by its TZOFFSETFROM, is the last before the instant."""
    onsets: list[tuple[datetime, timedelta]] = []
    for observance in re.findall("BEGIN:(?:STANDARD|DAYLIGHT)\r\n(.*?)END:", text, re.DOTALL):
        values = dict(line.split(":", 1) for line in observance.split("\r\n") if line)
        before, after = _offset(values["TZOFFSETFROM"]), _offset(values["TZOFFSETTO"])
        start = datetime.strptime(values["DTSTART"], "%Y%m%dT%H%M%S")  # noqa: DTZ007 - local by definition
        walls: Iterable[datetime] = [start]
        if "RRULE" in values:
            rule = rrulestr(values["RRULE"], dtstart=start)
            assert rule[0] == start, "DTSTART has to be the first onset"
            walls = rule.between(start, datetime(last_year + 2, 1, 1), inc=True)
        onsets += [((wall - before).replace(tzinfo=UTC), after) for wall in walls]
    onsets.sort()
    return lambda at: next(after for onset, after in reversed(onsets) if onset <= at)


def _by_outlook(text: str) -> Offsets:
    """Outlook (Windows): month, nth weekday and time for each half, the same in every year; no start and no end."""
    halves = {
        kind: dict(line.split(":", 1) for line in body.split("\r\n") if line)
        for kind, body in re.findall("BEGIN:(STANDARD|DAYLIGHT)\r\n(.*?)END:", text, re.DOTALL)
    }
    standard = _offset(halves["STANDARD"]["TZOFFSETTO"])
    if "DAYLIGHT" not in halves:
        return lambda _: standard
    daylight = _offset(halves["DAYLIGHT"]["TZOFFSETTO"])

    @cache
    def changes(year: int) -> tuple[datetime, datetime]:
        to_daylight = _nth_weekday(year, halves["DAYLIGHT"]) - standard
        to_standard = _nth_weekday(year, halves["STANDARD"]) - daylight
        return to_daylight.replace(tzinfo=UTC), to_standard.replace(tzinfo=UTC)

    def offset(at: datetime) -> timedelta:
        to_daylight, to_standard = changes((at + standard).year)
        if to_daylight < to_standard:
            return daylight if to_daylight <= at < to_standard else standard
        return standard if to_standard <= at < to_daylight else daylight

    return offset


def _nth_weekday(year: int, half: dict[str, str]) -> datetime:
    found = re.fullmatch(r"FREQ=YEARLY;BYMONTH=(\d+);BYDAY=(-?\d)(\w\w)", half["RRULE"])
    assert found is not None
    month, nth, weekday = int(found[1]), int(found[2]), WEEKDAYS.index(found[3])
    days = [week[weekday] for week in calendar.monthcalendar(year, month) if week[weekday]]
    clock = datetime.strptime(half["DTSTART"][9:], "%H%M%S")  # noqa: DTZ007 - a time of the day
    return clock.replace(year=year, month=month, day=days[nth if nth < 0 else nth - 1])


def _rule(zone: str, kind: str, first_year: int, last_year: int) -> str:
    body = _text(zone, first_year, last_year).split(f"BEGIN:{kind}\r\n")[1]
    return next(line for line in body.split("\r\n") if line.startswith("RRULE"))


def _text(zone: str, first_year: int, last_year: int) -> str:
    definition = vtimezone(zone, first_year, last_year)
    assert definition is not None
    return definition.decode()


def _offset(value: str) -> timedelta:
    minutes = timedelta(hours=int(value[1:3]), minutes=int(value[3:5]))
    return -minutes if value[0] == "-" else minutes

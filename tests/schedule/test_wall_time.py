"""Wall times: the one instant that each is, and the refusals of those that are none or two."""

import zoneinfo
from datetime import UTC, datetime, timedelta, timezone
from importlib import resources
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.schedule.wall_time import (
    Timed,
    check_instant,
    check_wall,
    check_zone,
    pin_time_zones,
    resolve,
    resolve_near,
    rfc3339,
    settle,
)
from shared.errors import Invalid, WallTimeRepeated, WallTimeSkipped, ZoneAbbreviated, ZoneUnknown
from shared.time_zones import tz_release

ZONES = [
    "Asia/Jerusalem",
    "Asia/Amman",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "America/New_York",
    "America/St_Johns",
    "Africa/Casablanca",
    "Australia/Lord_Howe",
    "Europe/Dublin",
    "Pacific/Apia",
    "UTC",
]


def timed(wall: datetime, zone: str, instant: datetime) -> Timed:
    return Timed(wall=wall, zone=zone, instant=instant, tz=tz_release())


@pytest.mark.parametrize(
    ("wall", "zone", "instant"),
    [
        (datetime(2023, 11, 7, 18, 25), "Asia/Tokyo", datetime(2023, 11, 7, 9, 25, tzinfo=UTC)),
        (datetime(2023, 11, 10, 9, 0), "Asia/Kolkata", datetime(2023, 11, 10, 3, 30, tzinfo=UTC)),
        (datetime(2023, 11, 3, 19, 30), "Asia/Jerusalem", datetime(2023, 11, 3, 17, 30, tzinfo=UTC)),
        (datetime(2023, 11, 3, 21, 10), "Asia/Amman", datetime(2023, 11, 3, 18, 10, tzinfo=UTC)),
        (datetime(2023, 11, 5, 12, 0), "Asia/Hebron", datetime(2023, 11, 5, 10, 0, tzinfo=UTC)),
        (datetime(2023, 11, 4, 12, 0), "America/New_York", datetime(2023, 11, 4, 16, 0, tzinfo=UTC)),
        (datetime(2023, 11, 6, 12, 0), "America/New_York", datetime(2023, 11, 6, 17, 0, tzinfo=UTC)),
        (datetime(2023, 11, 6, 12, 0), "UTC", datetime(2023, 11, 6, 12, 0, tzinfo=UTC)),
    ],
)
def test_wall_time_is_the_instant_of_its_zone_at_that_date(wall: datetime, zone: str, instant: datetime) -> None:
    assert resolve(wall, zone, None) == timed(wall, zone, instant)
    assert resolve(wall, zone, 1) == timed(wall, zone, instant)  # a fold means nothing where there is no choice


@pytest.mark.parametrize(
    ("wall", "zone", "first", "second"),
    [
        (datetime(2023, 10, 29, 1, 30), "Asia/Jerusalem", "2023-10-28T22:30:00Z", "2023-10-28T23:30:00Z"),
        (datetime(2023, 11, 5, 1, 30), "America/New_York", "2023-11-05T05:30:00Z", "2023-11-05T06:30:00Z"),
    ],
)
def test_repeated_wall_time_is_refused_with_both_instants_unless_fold_says_which(
    wall: datetime, zone: str, first: str, second: str
) -> None:
    with pytest.raises(WallTimeRepeated) as refused:
        resolve(wall, zone, None)
    assert refused.value.members == {"candidates": [first, second]}
    assert resolve(wall, zone, 0) == timed(wall, zone, datetime.fromisoformat(first))
    assert resolve(wall, zone, 1) == timed(wall, zone, datetime.fromisoformat(second))


def test_skipped_wall_time_is_refused_with_both_instants_and_becomes_the_one_that_exists() -> None:
    wall, zone = datetime(2024, 3, 10, 2, 30), "America/New_York"
    with pytest.raises(WallTimeSkipped) as refused:
        resolve(wall, zone, None)
    assert refused.value.members == {"candidates": ["2024-03-10T07:30:00Z", "2024-03-10T06:30:00Z"]}
    assert resolve(wall, zone, 0) == timed(datetime(2024, 3, 10, 3, 30), zone, datetime(2024, 3, 10, 7, 30, tzinfo=UTC))
    assert resolve(wall, zone, 1) == timed(datetime(2024, 3, 10, 1, 30), zone, datetime(2024, 3, 10, 6, 30, tzinfo=UTC))


def test_skipped_day_of_apia_is_refused() -> None:
    with pytest.raises(WallTimeSkipped) as refused:
        resolve(datetime(2011, 12, 30, 12, 0), "Pacific/Apia", None)
    assert refused.value.members == {"candidates": ["2011-12-30T22:00:00Z", "2011-12-29T22:00:00Z"]}


def test_fold_of_the_given_datetime_decides_nothing() -> None:
    with pytest.raises(WallTimeRepeated):
        resolve(datetime(2023, 11, 5, 1, 30, fold=1), "America/New_York", None)
    later = resolve(datetime(2023, 11, 5, 1, 30, fold=0), "America/New_York", 1)
    assert (later.wall, later.wall.fold) == (datetime(2023, 11, 5, 1, 30), 0)


@pytest.mark.parametrize(
    "zone",
    [
        "IST",
        "CST",
        "EST",
        "EST5EDT",
        "GMT",
        "GMT+2",
        "UTC+3",
        "JST",
        "Z",
        "ist",
        "Japan",
        "Singapore",
        "GB-Eire",
        "MSK-3",
    ],
)
def test_zone_by_an_abbreviation_is_refused(zone: str) -> None:
    with pytest.raises(ZoneAbbreviated) as refused:
        check_zone(zone)
    assert refused.value.members == {"zone": zone}


@pytest.mark.parametrize(
    "zone",
    [
        "Asia/Tokio",
        "Tokyo",
        "Ramat Gan",
        "",
        "/",
        "Asia/",
        "../Asia/Tokyo",
        "/etc/localtime",
        "asia/tokyo",
        "+09:00",
        "A/\0",
    ],
)
def test_zone_that_the_database_lacks_is_refused(zone: str) -> None:
    with pytest.raises(ZoneUnknown) as refused:
        check_zone(zone)
    assert refused.value.members == {"zone": zone}


def test_zone_of_every_name_with_an_area_is_accepted() -> None:
    assert [check_zone(zone).key for zone in ZONES] == ZONES


@pytest.mark.parametrize(
    "wall",
    [
        datetime(2023, 11, 7, 18, 25, tzinfo=UTC),
        datetime(2023, 11, 7, 18, 25, 0, 1),
        datetime(1, 1, 1, 0, 0),
        datetime(9999, 12, 31, 23, 59),
    ],
)
def test_wall_time_with_an_offset_or_fractions_or_at_the_edge_is_invalid(wall: datetime) -> None:
    with pytest.raises(Invalid):
        resolve(wall, "Asia/Tokyo", None)


def test_field_that_is_no_wall_time_is_named() -> None:
    check_wall("departs", datetime(2023, 11, 7, 18, 25, 59))
    with pytest.raises(Invalid) as refused:
        check_wall("departs", datetime(2023, 11, 7, 18, 25, tzinfo=UTC))
    assert refused.value.members["errors"][0]["loc"] == ["body", "departs"]


def test_instant_is_given_back_in_utc_and_refused_without_an_offset() -> None:
    at = datetime(2023, 11, 7, 18, 25, tzinfo=timezone(timedelta(hours=9)))
    assert check_instant("at", at).isoformat() == "2023-11-07T09:25:00+00:00"
    with pytest.raises(Invalid):
        check_instant("at", datetime(2023, 11, 7, 18, 25))


def test_wall_time_that_is_asked_for_again_keeps_the_former_choice() -> None:
    wall, zone = datetime(2023, 11, 5, 1, 30), "America/New_York"
    former = resolve(wall, zone, 1)
    assert settle(wall, zone, None, former) == former
    assert settle(wall, zone, 0, former) == resolve(wall, zone, 0)
    with pytest.raises(WallTimeRepeated):
        settle(wall, zone, None, resolve(datetime(2023, 11, 5, 1, 45), zone, 1))


def test_wall_time_that_came_to_be_skipped_goes_to_the_nearer_instant() -> None:
    wall, zone = datetime(2024, 3, 10, 2, 30), "America/New_York"
    assert resolve_near(wall, zone, datetime(2024, 3, 10, 7, 30, tzinfo=UTC)) == resolve(wall, zone, 0)
    assert resolve_near(wall, zone, datetime(2024, 3, 10, 6, 45, tzinfo=UTC)) == resolve(wall, zone, 1)
    assert resolve_near(wall, zone, datetime(2024, 3, 10, 7, 0, tzinfo=UTC)) == resolve(wall, zone, 1)


@given(
    instant=st.datetimes(datetime(1971, 1, 1), datetime(2037, 12, 31)).map(
        lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
    ),
    zone=st.sampled_from(ZONES),
)
def test_wall_time_of_any_instant_leads_back_to_it_or_is_refused_with_it(instant: datetime, zone: str) -> None:
    local = instant.astimezone(ZoneInfo(zone))
    wall = local.replace(tzinfo=None, fold=0)
    first, second = resolve(wall, zone, 0), resolve(wall, zone, 1)
    if first == second:
        assert resolve(wall, zone, None) == first
    else:
        with pytest.raises(WallTimeRepeated) as refused:
            resolve(wall, zone, None)
        assert refused.value.members == {"candidates": [rfc3339(first.instant), rfc3339(second.instant)]}
    assert resolve(wall, zone, 1 if local.fold else 0) == timed(wall, zone, instant)
    assert resolve_near(wall, zone, instant) == timed(wall, zone, instant)


@given(wall=st.datetimes(datetime(1971, 1, 1), datetime(2037, 12, 31)), zone=st.sampled_from(ZONES))
def test_wall_time_resolved_by_fold_exists(wall: datetime, zone: str) -> None:
    for fold in (0, 1):
        resolved = resolve(wall.replace(microsecond=0), zone, fold)
        assert resolved.instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None) == resolved.wall


def test_zones_come_from_the_pinned_package_alone(tmp_path: Path) -> None:
    other = tmp_path / "Asia" / "Tokyo"  # a machine whose file of Tokyo says what is true of Kolkata
    other.parent.mkdir()
    other.write_bytes((resources.files("tzdata") / "zoneinfo" / "Asia" / "Kolkata").read_bytes())
    zoneinfo.reset_tzpath([tmp_path])
    ZoneInfo.clear_cache()
    try:
        wall = datetime(2023, 11, 7, 18, 25)
        assert resolve(wall, "Asia/Tokyo", None).instant == datetime(2023, 11, 7, 12, 55, tzinfo=UTC)
    finally:
        pin_time_zones()
    assert resolve(wall, "Asia/Tokyo", None).instant == datetime(2023, 11, 7, 9, 25, tzinfo=UTC)


def test_release_is_the_iana_name_of_the_pinned_package() -> None:
    assert tz_release()[:4].isdigit()
    assert tz_release()[4:].isalpha()

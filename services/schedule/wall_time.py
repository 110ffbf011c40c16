"""Wall times: what a clock on the wall shows in a zone, and the instant that this is.

People agree on wall times ("18:25 in Tokyo"); instants are derived from them with the pinned IANA database, whose
release is kept with each derived instant. A wall time that never was, or was twice, is one instant only if `fold` says
which (PEP 495): 0 reckons with the offset before the change of the clocks, 1 with the one after it.
"""

import re
import zoneinfo
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from functools import cache
from typing import Literal
from zoneinfo import ZoneInfo

from shared.errors import Invalid, WallTimeRepeated, WallTimeSkipped, ZoneAbbreviated, ZoneUnknown
from shared.time_zones import tz_release

Fold = Literal[0, 1]

_ABBREVIATION = re.compile(r"([A-Z]{1,6}|[a-z]{2,5})([+-]?\d{1,4}(:\d\d)?([A-Za-z]{3,5})?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A wall time (naive) in an IANA zone, its instant (aware, UTC), and the tz database release that derived it."""

    wall: datetime
    zone: str
    instant: datetime
    tz: str


def pin_time_zones() -> None:
    """Read zones from the pinned `tzdata` package alone from now on: the files of machines differ. For the start."""
    zoneinfo.reset_tzpath(())
    ZoneInfo.clear_cache()
    _known_zones.cache_clear()


def check_zone(zone: str) -> ZoneInfo:
    """The zone of an IANA name with an area ("Asia/Tokyo") or of "UTC". Raises ZoneAbbreviated, ZoneUnknown."""
    if zone == "UTC" or ("/" in zone and zone in _known_zones()):
        return ZoneInfo(zone)
    if "/" not in zone and (zone in _known_zones() or _ABBREVIATION.fullmatch(zone)):
        raise ZoneAbbreviated(f"{zone!r} can mean several zones: name one in full, like Asia/Kolkata.", zone=zone)
    raise ZoneUnknown(f"The IANA database {tz_release()} has no zone {zone!r}.", zone=zone)


def resolve(wall: datetime, zone: str, fold: Fold | None) -> Timed:
    """The one instant of a wall time.

    A skipped wall time that `fold` resolves is given back as the one that exists: 02:30 in New York on 10 March 2024
    is 03:30 by fold 0 and 01:30 by fold 1. `fold` means nothing for a wall time that was once.
    Raises Invalid, ZoneAbbreviated, ZoneUnknown, WallTimeSkipped, WallTimeRepeated.
    """
    place = check_zone(zone)
    first, second = candidates = _candidates(wall, place)
    if first != second and fold is None:
        if _wall(first, place) == wall:
            detail = f"{wall.isoformat()} was twice in {zone}: fold says which is meant."
            raise WallTimeRepeated(detail, candidates=candidates)
        detail = f"{wall.isoformat()} never was in {zone}: fold says which instant is meant."
        raise WallTimeSkipped(detail, candidates=candidates)
    instant = candidates[fold or 0]
    return Timed(wall=_wall(instant, place), zone=zone, instant=instant, tz=tz_release())


def resolve_near(wall: datetime, zone: str, instant: datetime) -> Timed:
    """Derive anew what was resolved before; nobody is there to be asked for a fold.

    Of two candidates it is the one nearer to the former `instant`, the earlier if both are. A wall time that exists is
    kept. Raises Invalid, ZoneAbbreviated, ZoneUnknown.
    """
    place = check_zone(zone)
    nearest = min(sorted(_candidates(wall, place)), key=lambda candidate: abs(candidate - instant))
    return Timed(wall=_wall(nearest, place), zone=zone, instant=nearest, tz=tz_release())


def settle(wall: datetime, zone: str, fold: Fold | None, former: Timed) -> Timed:
    """`resolve` for a change: whoever asks for the former wall time again, without a fold, keeps the former choice."""
    if fold is None and (wall, zone) == (former.wall, former.zone):
        return resolve_near(wall, zone, former.instant)
    return resolve(wall, zone, fold)


def check_instant(name: str, instant: datetime) -> datetime:
    """The instant in UTC; Invalid if the field `name` has no offset."""
    if instant.tzinfo is None:
        raise Invalid.field(name, "an instant needs an offset")
    return instant.astimezone(UTC)


def rfc3339(instant: datetime) -> str:
    """An instant as the texts of refusals show it: "2023-11-07T09:25:00Z"."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")


def check_wall(name: str, wall: datetime) -> None:
    """Invalid unless the field `name` is a wall time: no offset, whole seconds (RFC 5545 knows no smaller ones)."""
    if wall.tzinfo is not None:
        raise Invalid.field(name, "a wall time has no offset")
    if wall.microsecond:
        raise Invalid.field(name, "a wall time has whole seconds")


def _candidates(wall: datetime, place: ZoneInfo) -> tuple[datetime, datetime]:
    """The instants by fold 0 and by fold 1: the same one for nearly every wall time."""
    check_wall("wall time", wall)
    if not MINYEAR < wall.year < MAXYEAR:  # so that no sum with an offset or a duration overflows
        raise Invalid("The wall time is at the very edge of the calendar.")
    before, after = (wall.replace(tzinfo=place, fold=fold).astimezone(UTC) for fold in (0, 1))
    return before, after


def _wall(instant: datetime, place: ZoneInfo) -> datetime:
    """What the clock shows; `fold` 0, so that equal wall times are equal in all they carry."""
    return instant.astimezone(place).replace(tzinfo=None, fold=0)


@cache
def _known_zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones())

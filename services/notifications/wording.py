"""How moments, lists and people read as lines of an entry's text: English, plain text, no zone database needed.

The names of days and months are written here because `strftime` would take them from the machine's locale.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from services.notifications.entry import Moment

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def moment_line(moment: Moment, place: str) -> str:
    """`Fri 3 Nov 2023, 19:30 Tel Aviv (UTC+02:00)`."""
    return f"{_day(moment.wall)}, {_clock(moment.wall)} {place} ({_offset(moment)})"


def span_line(start: Moment, end: Moment, place: str) -> str:
    """`Tue 7 Nov 2023, 18:25–19:10 Tokyo (UTC+09:00)`; an end on another day is written in full."""
    if start.wall.date() == end.wall.date():
        return f"{_day(start.wall)}, {_clock(start.wall)}–{_clock(end.wall)} {place} ({_offset(start)})"
    return f"{_day(start.wall)}, {_clock(start.wall)} – {moment_line(end, place)}"


def access_line(tag: str, preset: datetime | None, final: datetime | None, start: datetime) -> str:
    """`pooled-spray, pre-set 17:40, final access 18:10`: wall times, with the day where it is not that of the start."""
    times = (("pre-set", preset), ("final access", final))
    return ", ".join([tag, *(f"{what} {_beside(wall, start)}" for what, wall in times if wall is not None)])


def shifted(moment: Moment, instant: datetime) -> Moment:
    """Another instant read by the clock of `moment`: its offset is kept, a clock change in between is not followed."""
    return Moment(instant=instant, zone=moment.zone, wall=moment.wall + (instant - moment.instant))


def labelled(label: str, text: str | None) -> list[str]:
    """`Label: text`, a line for each line of the text; no line for no text."""
    return f"{label}: {text}".splitlines() if text else []


def listed(label: str, items: Iterable[str]) -> list[str]:
    """The label, then a dashed line each; no line for no items."""
    lines = [f"- {item}" for item in items]
    return [f"{label}:", *lines] if lines else lines


def person(name: str | None, function: str, title: str | None = None, contact: str | None = None) -> str:
    """`Name, Title (function), contact`, as far as it is known."""
    named = ", ".join(part for part in (name, title) if part)
    return ", ".join(part for part in (f"{named} ({function})" if named else function, contact) if part)


def _day(wall: datetime) -> str:
    return f"{_DAYS[wall.weekday()]} {wall.day} {_MONTHS[wall.month - 1]} {wall.year}"


def _clock(wall: datetime) -> str:
    return f"{wall.hour:02}:{wall.minute:02}"


def _beside(wall: datetime, other: datetime) -> str:
    return _clock(wall) if wall.date() == other.date() else f"{_day(wall)}, {_clock(wall)}"


def _offset(moment: Moment) -> str:
    return _offset_text(moment.wall.replace(tzinfo=UTC) - moment.instant)


@lru_cache(maxsize=256)
def _offset_text(offset: timedelta) -> str:
    hours, minutes = divmod(abs(offset) // timedelta(minutes=1), 60)
    return f"UTC{'-' if offset < timedelta() else '+'}{hours:02}:{minutes:02}"

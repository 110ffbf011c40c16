"""Whether the clocks of a trip file can show what it says, checked before anything is sent.

A wall time has to exist in its zone, once (or `fold` says which), and nothing may end before it begins. What depends
on other things (stays that overlap, meetings outside a stay) is the schedule service's to refuse.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from services.demo.trip_fields import Ref


class ClockWrong(Exception):
    """A time that no clock shows, or an end before its beginning; `field` is the one to look at."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field, self.problem = field, problem


class Clocks:
    """Stops, movements and meetings as the steps so far have left them, as far as their times go."""

    def __init__(self) -> None:
        self._things: dict[Ref, Mapping[str, Any]] = {}

    def follow(self, thing: Ref, body: Mapping[str, Any]) -> None:
        """Takes in what a step says of a thing. Raises ClockWrong."""
        now = {**self._things.get(thing, {}), **body}
        match thing.kind:
            case "stop":
                _check_span(now, ("arrives", now["zone"]), ("departs", now["zone"]))
            case "movement":
                _check_span(now, ("departs", now["from"]["zone"]), ("arrives", now["to"]["zone"]))
            case "meeting":
                if "stop" in body and "zone" not in body:
                    now.pop("zone", None)
                moment(now["start"], now.get("zone") or self._things[now["stop"]]["zone"], now.get("fold"))
        self._things[thing] = now


def moment(wall_time: str, zone: str, fold: int | None = None) -> datetime:
    """The instant (UTC) at which the clocks of a zone show a wall time. Raises ClockWrong if `fold` is needed."""
    wall = datetime.fromisoformat(wall_time)
    first, second = (wall.replace(tzinfo=ZoneInfo(zone), fold=each).astimezone(UTC) for each in (0, 1))
    if first == second or fold is not None:
        return second if fold else first
    if first.astimezone(ZoneInfo(zone)).replace(tzinfo=None) == wall:
        raise ClockWrong("start", f"the clocks of {zone} show {wall:%Y-%m-%d %H:%M} twice: say which by fold, 0 or 1")
    raise ClockWrong("start", f"the clocks of {zone} are put forward over {wall:%Y-%m-%d %H:%M}: it never is")


def _check_span(now: Mapping[str, Any], begin: tuple[str, str], end: tuple[str, str]) -> None:
    begins_at, ends_at = (_moment_of(now, *each) for each in (begin, end))
    if ends_at <= begins_at:
        raise ClockWrong(end[0], f"{end[0]!r} is not after {begin[0]!r}, each taken in its own zone")


def _moment_of(now: Mapping[str, Any], field: str, zone: str) -> datetime:
    try:
        return moment(now[field], zone, now.get(f"{field}_fold"))
    except ClockWrong as fault:
        raise ClockWrong(field, fault.problem.replace("by fold", f"by {field}_fold")) from None

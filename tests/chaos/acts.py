"""What writers do to a trip: it is planned, peopled and shared, and then changed again and again.

Each act changes something for certain (a number that counts on stands in it), so that the answer's tag is the version
of an event of this very command.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from typing import Any, NamedTuple

STEPS = 70
"""So many acts a trip; then its writer begins another."""
FIRST_DAY = datetime(2031, 3, 1)
DAYS = 60
MINUTES = (DAYS - 2) * 24 * 60


class Act(NamedTuple):
    """One command; the answer shows a thing of this kind."""

    service: str
    kind: str
    path: str
    body: Mapping[str, Any]


@dataclass(kw_only=True, eq=False)
class Trip:
    """What its writers know of it."""

    id: str = ""
    stop: str = ""
    delegations: list[str] = field(default_factory=list)
    links: int = 0
    meetings: dict[str, str] = field(default_factory=dict)
    """Statuses by id."""
    movements: list[str] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    steps: int = 0

    @property
    def ready(self) -> bool:
        """Whether all the first things are there, so that others can join in."""
        return self.links >= 2 and bool(self.meetings) and bool(self.members)


def next_act(trip: Trip, random: Random, number: int) -> Act:
    """What is lacking, else anything. `number` is never the same again."""
    for lacks, act in _FIRST:
        if lacks(trip):
            return act(trip, random, number)
    return random.choice(_THEN)(trip, random, number)


def take_down(trip: Trip, act: Act, thing: Mapping[str, Any]) -> None:
    """The answer to an act."""
    match act.kind:
        case "trip":
            trip.id = thing["id"]
        case "stop":
            trip.stop = thing["id"]
        case "delegation" if thing["id"] not in trip.delegations:
            trip.delegations.append(thing["id"])
        case "feed_link":
            trip.links += 1
        case "meeting":
            trip.meetings[thing["id"]] = thing["status"]
        case "movement" if thing["id"] not in trip.movements:
            trip.movements.append(thing["id"])
        case "member" if thing["status"] == "withdrawn":
            trip.members.remove(thing["id"])
        case "member" if thing["id"] not in trip.members:
            trip.members.append(thing["id"])


def revise(meeting: str, number: int) -> Act:
    """Another title."""
    return Act("schedule", "meeting", f"/schedule/meetings/{meeting}/revise", {"title": f"Talks {number}"})


def _wall(minutes: int) -> str:
    return (FIRST_DAY + timedelta(days=1, minutes=minutes % MINUTES)).isoformat()


def _plan(trip: Trip, random: Random, number: int) -> Act:
    last = (FIRST_DAY + timedelta(days=DAYS)).date().isoformat()
    home = {"place": "Lisbon", "zone": "Europe/Lisbon"}
    body = {"title": f"Trip {number}", "principals": ["Minister"], "home": home}
    days = {"starts_on": FIRST_DAY.date().isoformat(), "ends_on": last}
    return Act("schedule", "trip", "/schedule/trips", body | days)


def _add_stop(trip: Trip, random: Random, number: int) -> Act:
    body = {"place": "Oslo", "country": "Norway", "zone": "Europe/Oslo", "arrives": FIRST_DAY.isoformat()}
    departs = {"departs": (FIRST_DAY + timedelta(days=DAYS)).isoformat()}
    return Act("schedule", "stop", f"/schedule/trips/{trip.id}/stops", body | departs)


def _register(trip: Trip, random: Random, number: int) -> Act:
    body = {"name": f"Delegation {number}", "kind": "host" if trip.delegations else "own"}
    return Act("participants", "delegation", f"/participants/trips/{trip.id}/delegations", body)


def _issue(trip: Trip, random: Random, number: int) -> Act:
    level = "delegation" if trip.links else "full"
    body = {"delegation": trip.delegations[trip.links], "level": level, "label": f"Link {number}"}
    return Act("notifications", "feed_link", f"/notifications/trips/{trip.id}/feed-links", body)


def _schedule(trip: Trip, random: Random, number: int) -> Act:
    body = {"stop": trip.stop, "title": f"Talks {number}", "kind": "bilateral", "start": _wall(number * 7)}
    rest = {"duration": "PT1H", "delegations": trip.delegations}
    return Act("schedule", "meeting", f"/schedule/trips/{trip.id}/meetings", body | rest)


def _add_member(trip: Trip, random: Random, number: int) -> Act:
    body = {"function": "member", "personal": {"name": f"Dana {number}", "title": None, "contact": None}}
    path = f"/participants/delegations/{random.choice(trip.delegations)}/members"
    return Act("participants", "member", path, body)


def _revise(trip: Trip, random: Random, number: int) -> Act:
    return revise(random.choice(list(trip.meetings)), number)


def _reschedule(trip: Trip, random: Random, number: int) -> Act:
    path = f"/schedule/meetings/{random.choice(list(trip.meetings))}/reschedule"
    return Act("schedule", "meeting", path, {"start": _wall(number * 7)})


def _move(trip: Trip, random: Random, number: int) -> Act:
    path = f"/schedule/meetings/{random.choice(list(trip.meetings))}/move"
    return Act("schedule", "meeting", path, {"venue": {"name": f"Room {number}"}})


def _cancel_or_reinstate(trip: Trip, random: Random, number: int) -> Act:
    meeting, status = random.choice(list(trip.meetings.items()))
    if status == "cancelled":
        return Act("schedule", "meeting", f"/schedule/meetings/{meeting}/reinstate", {})
    return Act("schedule", "meeting", f"/schedule/meetings/{meeting}/cancel", {"reason": f"Reason {number}"})


def _move_about(trip: Trip, random: Random, number: int) -> Act:
    if len(trip.movements) < 3:
        ends = {"from": {"place": "Lisbon", "zone": "Europe/Lisbon"}, "to": {"place": "Oslo", "zone": "Europe/Oslo"}}
        body = {"mode": "flight", "departs": "2031-03-01T08:00:00", "arrives": "2031-03-01T13:00:00"} | ends
        return Act("schedule", "movement", f"/schedule/trips/{trip.id}/movements", body)
    path = f"/schedule/movements/{random.choice(trip.movements)}/change"
    return Act("schedule", "movement", path, {"notes": f"Note {number}"})


def _rename(trip: Trip, random: Random, number: int) -> Act:
    path = f"/participants/delegations/{random.choice(trip.delegations)}/rename"
    return Act("participants", "delegation", path, {"name": f"Delegation {number}"})


def _change_member(trip: Trip, random: Random, number: int) -> Act:
    if len(trip.members) < 2:
        return _add_member(trip, random, number)
    member = random.choice(trip.members)
    if len(trip.members) > 6:
        return Act("participants", "member", f"/participants/members/{member}/withdraw", {"reason": f"Why {number}"})
    personal = {"name": f"Dana {number}", "title": "Interpreter", "contact": None}
    return Act("participants", "member", f"/participants/members/{member}/change", {"personal": personal})


Make = Callable[[Trip, Random, int], Act]
_FIRST: tuple[tuple[Callable[[Trip], bool], Make], ...] = (
    (lambda trip: not trip.id, _plan),
    (lambda trip: not trip.stop, _add_stop),
    (lambda trip: len(trip.delegations) < 2, _register),
    (lambda trip: not trip.meetings, _schedule),
    (lambda trip: not trip.members, _add_member),
    (lambda trip: trip.links < 2, _issue),
)
_THEN: tuple[Make, ...] = (
    *(_schedule, _revise, _revise, _reschedule, _reschedule, _move, _cancel_or_reinstate),
    *(_move_about, _rename, _add_member, _change_member, _change_member),
)

"""The picture of one trip as this service holds it, built from the other services' messages alone.

Each thing is kept as one JSON document, the fold of its messages, with a count of its own: `merge` and `sequence` take
the next message, `snapshot` reads all documents of a trip as typed things. Every thing's messages come on one topic
and under one key, so the fold is the same for each interleaving of topics; what one topic tells may name things that
another has not told yet, so nothing here looks one thing up from another.

A document keeps fields that no feed shows today: a later level needs no rebuild. Enums are plain `str`, read open.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar
from uuid import UUID

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trip:
    """`years` are those of its first and its last day, as far as they were told."""

    id: UUID
    title: str
    years: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """`arrives` and `departs` are wall times (naive) in `zone`; the same names with `_at` are the instants (UTC)."""

    id: UUID
    sequence: int
    place: str
    country: str | None
    zone: str
    arrives: datetime
    departs: datetime
    arrives_at: datetime
    departs_at: datetime
    host: UUID | None
    assumed: bool
    status: str
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of a movement."""

    place: str
    zone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Movement:
    """`departs` is a wall time at the origin, `arrives` at the destination; `left_at`, `landed_at`: the actual ones."""

    id: UUID
    sequence: int
    mode: str
    label: str
    origin: End
    destination: End
    departs: datetime
    arrives: datetime
    departs_at: datetime
    arrives_at: datetime
    left_at: datetime | None
    landed_at: datetime | None
    hard: bool
    assumed: bool
    notes: str | None
    status: str
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Venue:
    """`geo` is latitude and longitude in degrees, `conference` a URI."""

    name: str | None
    address: str | None
    geo: tuple[float, float] | None
    conference: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Press:
    """The press tag, with the wall times (naive, in the meeting's zone) of pre-set and final access."""

    tag: str
    preset: datetime | None
    final: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """`delegations` are the invited ones in the order of the message, known or not."""

    id: UUID
    sequence: int
    stop: UUID
    title: str
    kind: str
    status: str
    start: datetime
    zone: str
    starts_at: datetime
    ends_at: datetime
    venue: Venue | None
    topics: tuple[str, ...]
    notes: str | None
    press: Press | None
    hard: bool
    assumed: bool
    delegations: tuple[UUID, ...]
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delegation:
    """`order` is the precedence of its members; it may lack some of them and name some that are not there."""

    id: UUID
    name: str
    kind: str
    status: str
    head: UUID | None
    order: tuple[UUID, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """`name`, `title` and `contact` stand in the message's `personal`; without it they are None."""

    id: UUID
    delegation: UUID
    function: str
    name: str | None
    title: str | None
    contact: str | None
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """All that is known of one trip, each thing under its id; `trip` is None as long as only other topics spoke."""

    trip: Trip | None
    stops: Mapping[UUID, Stop]
    movements: Mapping[UUID, Movement]
    meetings: Mapping[UUID, Meeting]
    delegations: Mapping[UUID, Delegation]
    members: Mapping[UUID, Member]


_COUNTED: Mapping[str, frozenset[str]] = {
    "stop": frozenset({"arrives", "departs", "arrives_at", "departs_at", "zone", "place", "country", "status"}),
    "movement": frozenset({"departs", "arrives", "departs_at", "arrives_at", "from", "to", "stop", "status"}),
    "meeting": frozenset({"start", "zone", "duration", "starts_at", "ends_at", "stop", "venue", "status"}),
}
"""By kind, the fields whose change is one of start, end, place or status; `stop` in a stop's messages is its own id."""


def merge(document: Document, body: Document, kind: str) -> dict[str, Any]:
    """The document of a thing after its next message; `{}` before the first.

    A body with `was` sets the fields that it carries, any other is the whole and replaces all. The ids of the trip and
    of the thing itself are not kept.
    """
    fields = {name: value for name, value in body.items() if name not in ("was", "trip", kind)}
    return {**document, **fields} if "was" in body else fields


def sequence(count: int | None, body: Document, kind: str) -> int:
    """SEQUENCE (RFC 5545, 3.8.7.4) after the next message of a thing; `count` is that before it, None before the first.

    A message counts once, however many of its fields count; one that reinstates carries the whole, status included.
    """
    if count is None:
        return 0
    return count + (not _COUNTED.get(kind, frozenset()).isdisjoint(body))


def snapshot(rows: Iterable[tuple[str, UUID, int, Document]]) -> Picture:
    """Read the rows (kind, id, sequence, document) of one trip, in any order.

    Kinds and fields that are not known are passed over, and so is a thing that lacks what its entry needs.
    """
    things = ((kind, thing, read_thing(kind, thing, count, document)) for kind, thing, count, document in rows)
    return assembled(things)


def read_thing(kind: str, thing: UUID, count: int, document: Document) -> Any:
    """One typed thing; None for a kind that is not known, and for one that lacks what its entry needs."""
    read = _READERS.get(kind)
    try:
        return None if read is None else read(thing, count, document)
    except KeyError:
        return None


def assembled(things: Iterable[tuple[str, UUID, Any]]) -> Picture:
    """The picture of one trip from its things (kind, id, thing), as `read_thing` gives them."""
    held: dict[str, dict[UUID, Any]] = {kind: {} for kind in _READERS}
    for kind, thing, read in things:
        if read is not None:
            held[kind][thing] = read
    return Picture(
        trip=next(iter(held["trip"].values()), None),
        stops=held["stop"],
        movements=held["movement"],
        meetings=held["meeting"],
        delegations=held["delegation"],
        members=held["member"],
    )


_T = TypeVar("_T")

# A trip's meetings name the same few stops and delegations again and again: to parse each anew is a third of the work.
_uuid: Callable[[str], UUID] = lru_cache(maxsize=4096)(UUID)


def _maybe(read: Callable[[Any], _T], value: Any) -> _T | None:
    return None if value is None else read(value)


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _wall(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=None)


def _trip(thing: UUID, _: int, document: Document) -> Trip:
    days = (document.get("starts_on"), document.get("ends_on"))
    return Trip(id=thing, title=document["title"], years=tuple(int(day[:4]) for day in days if day))


def _stop(thing: UUID, count: int, document: Document) -> Stop:
    return Stop(
        id=thing,
        sequence=count,
        place=document["place"],
        country=document.get("country"),
        zone=document["zone"],
        arrives=_wall(document["arrives"]),
        departs=_wall(document["departs"]),
        arrives_at=_instant(document["arrives_at"]),
        departs_at=_instant(document["departs_at"]),
        host=_maybe(_uuid, document.get("host")),
        assumed=bool(document.get("assumed")),
        status=document.get("status") or "planned",
        reason=document.get("reason"),
    )


def _movement(thing: UUID, count: int, document: Document) -> Movement:
    return Movement(
        id=thing,
        sequence=count,
        mode=document["mode"],
        label=document.get("label") or "",
        origin=_end(document["from"]),
        destination=_end(document["to"]),
        departs=_wall(document["departs"]),
        arrives=_wall(document["arrives"]),
        departs_at=_instant(document["departs_at"]),
        arrives_at=_instant(document["arrives_at"]),
        left_at=_maybe(_instant, document.get("left_at")),
        landed_at=_maybe(_instant, document.get("landed_at")),
        hard=bool(document.get("hard")),
        assumed=bool(document.get("assumed")),
        notes=document.get("notes"),
        status=document.get("status") or "planned",
        reason=document.get("reason"),
    )


def _end(document: Document) -> End:
    return End(place=document["place"], zone=document["zone"])


def _meeting(thing: UUID, count: int, document: Document) -> Meeting:
    return Meeting(
        id=thing,
        sequence=count,
        stop=_uuid(document["stop"]),
        title=document["title"],
        kind=document["kind"],
        status=document.get("status") or "tentative",
        start=_wall(document["start"]),
        zone=document["zone"],
        starts_at=_instant(document["starts_at"]),
        ends_at=_instant(document["ends_at"]),
        venue=_maybe(_venue, document.get("venue")),
        topics=tuple(document.get("topics") or ()),
        notes=document.get("notes"),
        press=_maybe(_press, document.get("press")),
        hard=bool(document.get("hard")),
        assumed=bool(document.get("assumed")),
        delegations=tuple(map(_uuid, document.get("delegations") or ())),
        reason=document.get("reason"),
    )


def _venue(document: Document) -> Venue:
    geo = document.get("geo")
    return Venue(
        name=document.get("name"),
        address=document.get("address"),
        geo=None if geo is None else (geo[0], geo[1]),
        conference=document.get("conference"),
    )


def _press(document: Document) -> Press:
    return Press(
        tag=document["tag"],
        preset=_maybe(_wall, document.get("preset")),
        final=_maybe(_wall, document.get("final")),
    )


def _delegation(thing: UUID, _: int, document: Document) -> Delegation:
    return Delegation(
        id=thing,
        name=document["name"],
        kind=document["kind"],
        status=document.get("status") or "registered",
        head=_maybe(_uuid, document.get("head")),
        order=tuple(map(_uuid, document.get("order") or ())),
    )


def _member(thing: UUID, _: int, document: Document) -> Member:
    personal = document.get("personal") or {}
    return Member(
        id=thing,
        delegation=_uuid(document["delegation"]),
        function=document["function"],
        name=personal.get("name"),
        title=personal.get("title"),
        contact=personal.get("contact"),
        status=document.get("status") or "on-roster",
    )


_READERS: Mapping[str, Callable[[UUID, int, Document], Any]] = {
    "trip": _trip,
    "stop": _stop,
    "movement": _movement,
    "meeting": _meeting,
    "delegation": _delegation,
    "member": _member,
}

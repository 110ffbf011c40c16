"""What stands in whose feed, and what of it: the two tables of the contract as code.

`_items` is the table by the delegation's kind, `LEVELS` the one by level; a level is the set of parts that it shows
beside what all of them show (title, kind, status, times, place). Pure: a picture and an audience in, entries out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal
from uuid import UUID

from services.notifications.entry import Days, Entry, Moment, Span
from services.notifications.picture import Delegation, Meeting, Member, Movement, Picture, Stop, Venue
from services.notifications.wording import access_line, labelled, listed, moment_line, person, shifted, span_line

Level = Literal["full", "delegation"]
Part = Literal["topics", "reason", "invited", "own-roster", "every-roster", "contacts", "notes", "press", "hard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Audience:
    """Who reads: the links of one delegation that show one level and warn this long before an entry (None: never)."""

    delegation: UUID
    level: Level
    alarm: timedelta | None


_BELOW_FULL: frozenset[Part] = frozenset({"topics", "reason", "invited", "own-roster"})

LEVELS: Mapping[Level, frozenset[Part]] = {
    "full": _BELOW_FULL | {"every-roster", "contacts", "notes", "press", "hard"},
    "delegation": _BELOW_FULL,
}

COLORS: Mapping[str, str] = {
    "stop": "lightsteelblue",
    "movement": "darkorange",
    "bilateral": "royalblue",
    "multilateral": "darkviolet",
    "pull-aside": "teal",
    "ceremony": "goldenrod",
    "working-meal": "olivedrab",
    "press-availability": "crimson",
    "internal": "slategray",
    "site-visit": "seagreen",
    "call": "steelblue",
}
"""By kind of meeting, and one each for stops and movements: names of CSS3, as RFC 7986, 5.9 asks."""


def programme(picture: Picture, audience: Audience) -> list[Entry]:
    """The entries of an audience's feed, in order of start, then id.

    Nothing for a delegation that is not known (yet), and nothing for a dissolved one: it takes part in nothing any
    more, its people should not go on reading, and only an empty calendar takes from a client what it already holds.
    """
    own = picture.delegations.get(audience.delegation)
    if own is None or _dissolved(own):
        return []
    stops, movements, meetings = _items(picture, own)
    reader = _reader(picture, audience, own, stops, meetings)
    entries = [_stop_entry(stop, reader) for stop in stops.values()]
    entries += [_movement_entry(movement, reader) for movement in movements]
    entries += [_meeting_entry(meeting, reader) for meeting in meetings]
    entries.sort(key=lambda entry: (entry.sort_instant, entry.id.int))
    return entries


def feed_name(picture: Picture, audience: Audience) -> str:
    """`Secretary's trip – Host delegation of Japan`, as far as the two are known."""
    own = picture.delegations.get(audience.delegation)
    titles = (picture.trip and picture.trip.title, own and own.name)
    return " – ".join(title for title in titles if title) or "Trip"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """What one audience may see, made once for all of its entries.

    `names` holds the delegations that may be named, `parties` the lines about who takes part, for each list of invited
    delegations that occurs: meetings share them. `stops` are those of the feed, `picture` tells the city of a meeting
    whose stop is not among them.
    """

    picture: Picture
    shows: frozenset[Part]
    alarm: timedelta | None
    stops: Mapping[UUID, Stop]
    names: Mapping[UUID, str]
    parties: Mapping[tuple[UUID, ...], list[str]]


def _items(picture: Picture, own: Delegation) -> tuple[dict[UUID, Stop], list[Movement], list[Meeting]]:
    """The contract's table of kinds. What is cancelled or dropped stays; a kind that is not known gets the least."""
    if own.kind == "own":
        return dict(picture.stops), list(picture.movements.values()), list(picture.meetings.values())
    meetings = [meeting for meeting in picture.meetings.values() if own.id in meeting.delegations]
    if own.kind == "host":
        return {stop.id: stop for stop in picture.stops.values() if stop.host == own.id}, [], meetings
    named = (picture.stops.get(meeting.stop) for meeting in meetings)
    return {stop.id: stop for stop in named if stop is not None}, [], meetings


def _dissolved(delegation: Delegation) -> bool:
    return delegation.status == "dissolved"


def _reader(
    picture: Picture, audience: Audience, own: Delegation, stops: Mapping[UUID, Stop], meetings: Sequence[Meeting]
) -> _Reader:
    # A link at `full` is refused to any other kind when it is issued; should one exist all the same, it shows no more.
    shows = LEVELS["delegation" if audience.level == "full" and own.kind != "own" else audience.level]
    present = {thing: delegation for thing, delegation in picture.delegations.items() if not _dissolved(delegation)}
    nameable, rostered = set(present), set(present)
    if "every-roster" not in shows:
        nameable &= {own.id}.union(*(meeting.delegations for meeting in meetings))
        rostered &= {own.id} if "own-roster" in shows else set()
    names = {delegation: present[delegation].name for delegation in nameable}
    rosters = _rosters(picture, [present[delegation] for delegation in rostered], contacts="contacts" in shows)
    parties = {invited: _parties(invited, names, rosters, shows) for invited in {m.delegations for m in meetings}}
    return _Reader(picture=picture, shows=shows, alarm=audience.alarm, stops=stops, names=names, parties=parties)


def _parties(
    invited: tuple[UUID, ...], names: Mapping[UUID, str], rosters: Mapping[UUID, list[str]], shows: frozenset[Part]
) -> list[str]:
    lines = listed("Invited", [names[each] for each in invited if each in names]) if "invited" in shows else []
    for each in invited:
        lines += rosters.get(each, ())
    return lines


def _rosters(picture: Picture, delegations: Sequence[Delegation], *, contacts: bool) -> dict[UUID, list[str]]:
    """A roster's lines under its delegation's id: the head, then by precedence, then who has none by id."""
    people: dict[UUID, list[Member]] = {delegation.id: [] for delegation in delegations}
    for member in picture.members.values():
        if member.delegation in people and member.status != "withdrawn":
            people[member.delegation].append(member)
    rosters = {}
    for delegation in delegations:
        rank = {member: place for place, member in enumerate(delegation.order)}
        roster = sorted(
            people[delegation.id],
            key=lambda member: (member.id != delegation.head, rank.get(member.id, len(rank)), member.id.int),
        )
        rosters[delegation.id] = listed(delegation.name, (_person(member, contacts=contacts) for member in roster))
    return rosters


def _person(member: Member, *, contacts: bool) -> str:
    if contacts:
        return person(member.name, member.function, member.title, member.contact)
    return person(member.name, member.function)


def _stop_entry(stop: Stop, reader: _Reader) -> Entry:
    dropped = stop.status == "dropped"
    arrives = Moment(instant=stop.arrives_at, zone=stop.zone, wall=stop.arrives)
    departs = Moment(instant=stop.departs_at, zone=stop.zone, wall=stop.departs)
    text = [f"Arr. {moment_line(arrives, stop.place)}", f"Dep. {moment_line(departs, stop.place)}"]
    text += _assumed(stop.assumed)
    text += labelled("Country", stop.country)
    text += labelled("Host", reader.names.get(stop.host) if stop.host else None)
    text += _state(stop.status, stop.reason, reader.shows, called_off=dropped)
    return Entry(
        id=stop.id,
        sequence=stop.sequence,
        when=Days(first=stop.arrives.date(), last=stop.departs.date()),
        sort_instant=stop.arrives_at,
        summary=_title(stop.place, called_off=dropped),
        status="CANCELLED" if dropped else "CONFIRMED",
        transparent=True,
        location=", ".join(part for part in (stop.place, stop.country) if part),
        geo=None,
        text=tuple(text),
        categories=("stop",),
        color=COLORS["stop"],
        conference=None,
        related_to=None,
        alarm=None,
    )


def _movement_entry(movement: Movement, reader: _Reader) -> Entry:
    dropped = movement.status == "dropped"
    origin, destination = movement.origin, movement.destination
    departs = Moment(instant=movement.departs_at, zone=origin.zone, wall=movement.departs)
    arrives = Moment(instant=movement.arrives_at, zone=destination.zone, wall=movement.arrives)
    text = [f"Dep. {moment_line(departs, origin.place)}", f"Arr. {moment_line(arrives, destination.place)}"]
    text += _assumed(movement.assumed)
    if movement.left_at is not None:
        text.append(f"Left: {moment_line(shifted(departs, movement.left_at), origin.place)}")
    if movement.landed_at is not None:
        text.append(f"Landed: {moment_line(shifted(arrives, movement.landed_at), destination.place)}")
    text += _hard(movement.hard, reader.shows)
    text += labelled("Mode", movement.mode)
    text += _state(movement.status, movement.reason, reader.shows, called_off=dropped)
    text += labelled("Notes", movement.notes if "notes" in reader.shows else None)
    return Entry(
        id=movement.id,
        sequence=movement.sequence,
        when=Span(start=departs, end=arrives),
        sort_instant=movement.departs_at,
        summary=_title(movement.label or f"{origin.place} – {destination.place}", called_off=dropped),
        status="CANCELLED" if dropped else "CONFIRMED",
        transparent=dropped,
        location=origin.place,
        geo=None,
        text=tuple(text),
        categories=(movement.mode,),
        color=COLORS["movement"],
        conference=None,
        related_to=None,
        alarm=None if dropped else reader.alarm,
    )


_STATUS: Mapping[str, Literal["TENTATIVE", "CONFIRMED", "CANCELLED"]] = {
    "confirmed": "CONFIRMED",
    "cancelled": "CANCELLED",
}
"""A meeting in any other state is not sure to be held."""


def _meeting_entry(meeting: Meeting, reader: _Reader) -> Entry:
    status = _STATUS.get(meeting.status, "TENTATIVE")
    called_off = status == "CANCELLED"
    stop = reader.picture.stops.get(meeting.stop)
    start = Moment(instant=meeting.starts_at, zone=meeting.zone, wall=meeting.start)
    end = shifted(start, meeting.ends_at)
    # Beside a time of another zone than the stop's, the city would be wrong.
    clock = stop.place if stop is not None and stop.zone == meeting.zone else meeting.zone
    venue = meeting.venue
    return Entry(
        id=meeting.id,
        sequence=meeting.sequence,
        when=Span(start=start, end=end),
        sort_instant=meeting.starts_at,
        summary=_title(meeting.title, called_off=called_off),
        status=status,
        transparent=called_off,
        location=_location(venue, stop),
        geo=None if venue is None else venue.geo,
        text=(span_line(start, end, clock), *_meeting_text(meeting, reader, called_off=called_off)),
        categories=(meeting.kind,),
        color=COLORS.get(meeting.kind),
        conference=_conference(venue, reader.shows),
        related_to=meeting.stop if meeting.stop in reader.stops else None,
        alarm=None if called_off else reader.alarm,
    )


def _meeting_text(meeting: Meeting, reader: _Reader, *, called_off: bool) -> list[str]:
    shows = reader.shows
    text = _assumed(meeting.assumed)
    text += _hard(meeting.hard, shows)
    text.append(f"Kind: {meeting.kind}")
    text += _state(meeting.status, meeting.reason, shows, called_off=called_off)
    if "topics" in shows:
        text += listed("Topics", meeting.topics)
    if "press" in shows and (press := meeting.press) is not None:
        text.append(f"Press: {access_line(press.tag, press.preset, press.final, meeting.start)}")
    text += reader.parties[meeting.delegations]
    if "notes" in shows:
        text += labelled("Notes", meeting.notes)
    return text


def _title(title: str, *, called_off: bool) -> str:
    return f"Cancelled: {title}" if called_off else title


def _assumed(assumed: bool) -> list[str]:
    return ["Time assumed, not confirmed"] if assumed else []


def _hard(hard: bool, shows: frozenset[Part]) -> list[str]:
    return ["Hard time: fixed by somebody else"] if hard and "hard" in shows else []


def _state(status: str, reason: str | None, shows: frozenset[Part], *, called_off: bool) -> list[str]:
    return [f"Status: {status}", *labelled("Reason", reason if called_off and "reason" in shows else None)]


def _location(venue: Venue | None, stop: Stop | None) -> str | None:
    """The venue as far as it has a name or an address, else the city."""
    parts = [] if venue is None else [part for part in (venue.name, venue.address) if part]
    return ", ".join(parts) or (stop.place if stop is not None else None)


def _conference(venue: Venue | None, shows: frozenset[Part]) -> str | None:
    """Without contacts an https address alone: others (tel, mailto, sip) carry a number or an e-mail address."""
    uri = venue.conference if venue is not None else None
    return uri if uri and ("contacts" in shows or uri.lower().startswith("https://")) else None

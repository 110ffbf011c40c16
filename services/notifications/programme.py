"""What stands in whose feed, and what of it: the two tables of the contract as code.

`_items` is the table by the delegation's kind, `LEVELS` the one by level; a level is the set of parts that it shows
beside what all of them show (title, kind, status, times, place). Pure: a picture and an audience in, entries out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(kw_only=True)
class Made:
    """One audience's entries as they were last made, each with all that it was made from.

    What is made from the very same things need not be made again: `programme` with and without it are equal.
    """

    entries: dict[UUID, tuple[tuple[object, ...], Entry]] = field(default_factory=dict)
    parties: Mapping[tuple[UUID, ...], list[str]] = field(default_factory=dict)


def programme(picture: Picture, audience: Audience, made: Made | None = None) -> list[Entry]:
    """The entries of an audience's feed, in order of start, then id.

    Nothing for a delegation that is not known (yet), and nothing for a dissolved one: it takes part in nothing any
    more, its people should not go on reading, and only an empty calendar takes from a client what it already holds.
    """
    own = picture.delegations.get(audience.delegation)
    if own is None or _dissolved(own):
        return []
    stops, movements, meetings = _items(picture, own)
    made = Made() if made is None else made
    reader = _reader(picture, audience, own, meetings, made.parties)
    entries: dict[UUID, tuple[tuple[object, ...], Entry]] = {}

    def take(thing: UUID, make: Callable[..., Entry], *source: object) -> None:
        known = made.entries.get(thing)
        entries[thing] = known if known is not None and known[0] == source else (source, make(*source))

    shown, alarm = reader.shows, reader.alarm
    for stop in stops.values():
        take(stop.id, _stop_entry, stop, reader.names.get(stop.host) if stop.host else None, reader.unplaced, shown)
    for movement in movements:
        take(movement.id, _movement_entry, movement, shown, alarm)
    for meeting in meetings:
        stop_of = picture.stops.get(meeting.stop)
        linked = meeting.stop in stops
        take(meeting.id, _meeting_entry, meeting, stop_of, linked, reader.parties[meeting.delegations], shown, alarm)
    made.entries, made.parties = entries, reader.parties
    return sorted((entry for _, entry in entries.values()), key=lambda entry: (entry.sort_instant, entry.id.int))


def feed_name(picture: Picture, audience: Audience) -> str:
    """`Secretary's trip – Host delegation of Japan`, as far as the two are known."""
    own = picture.delegations.get(audience.delegation)
    titles = (picture.trip and picture.trip.title, own and own.name)
    return " – ".join(title for title in titles if title) or "Trip"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """What one audience may see, made once for all of its entries.

    `names` holds the delegations that may be named, `parties` the lines about who takes part, for each list of invited
    delegations that occurs: meetings share them. `unplaced` are the rosters that no meeting of the feed would show: the
    stops show them.
    """

    shows: frozenset[Part]
    alarm: timedelta | None
    names: Mapping[UUID, str]
    parties: Mapping[tuple[UUID, ...], list[str]]
    unplaced: list[str]


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
    picture: Picture,
    audience: Audience,
    own: Delegation,
    meetings: Sequence[Meeting],
    before: Mapping[tuple[UUID, ...], list[str]],
) -> _Reader:
    # A link at `full` is refused to any other kind when it is issued; should one exist all the same, it shows no more.
    shows = LEVELS["delegation" if audience.level == "full" and own.kind != "own" else audience.level]
    present = {thing: delegation for thing, delegation in picture.delegations.items() if not _dissolved(delegation)}
    nameable, rostered = set(present), set(present)
    every = "every-roster" in shows
    if not every:
        nameable &= {own.id}.union(*(meeting.delegations for meeting in meetings))
        rostered &= {own.id} if "own-roster" in shows else set()
    names = {delegation: present[delegation].name for delegation in nameable}
    rosters = _rosters(picture, [present[delegation] for delegation in rostered], contacts="contacts" in shows)
    parties = {}
    for invited in {meeting.delegations for meeting in meetings}:
        lines = _parties(invited, names, rosters, shows)
        # the very lines of before where they are equal: each meeting's are compared with those that it was made from
        parties[invited] = lines if (known := before.get(invited)) is None or known != lines else known
    unplaced = _unplaced(rosters, {each for invited in parties for each in invited}, names) if every else []
    return _Reader(shows=shows, alarm=audience.alarm, names=names, parties=parties, unplaced=unplaced)


def _unplaced(rosters: Mapping[UUID, list[str]], placed: set[UUID], names: Mapping[UUID, str]) -> list[str]:
    """The rosters of who is invited to nothing, by name."""
    outside = sorted((names[each], each.int, each) for each in rosters if each not in placed)
    return [line for *_, each in outside for line in rosters[each]]


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


def _stop_entry(stop: Stop, host: str | None, people: list[str], shows: frozenset[Part]) -> Entry:
    dropped = stop.status == "dropped"
    arrives = Moment(instant=stop.arrives_at, zone=stop.zone, wall=stop.arrives)
    departs = Moment(instant=stop.departs_at, zone=stop.zone, wall=stop.departs)
    text = [f"Arr. {moment_line(arrives, stop.place)}", f"Dep. {moment_line(departs, stop.place)}"]
    text += _assumed(stop.assumed)
    text += labelled("Country", stop.country)
    text += labelled("Host", host)
    text += _state(stop.status, stop.reason, shows, called_off=dropped)
    text += people
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


def _movement_entry(movement: Movement, shows: frozenset[Part], alarm: timedelta | None) -> Entry:
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
    text += _hard(movement.hard, shows)
    text += labelled("Mode", movement.mode)
    text += _state(_progress(movement), movement.reason, shows, called_off=dropped)
    text += labelled("Notes", movement.notes if "notes" in shows else None)
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
        alarm=None if dropped else alarm,
    )


def _progress(movement: Movement) -> str:
    """Where it is, as far as it was reported."""
    if movement.status != "planned":
        return movement.status
    return "landed" if movement.landed_at else "under way" if movement.left_at else "planned"


_STATUS: Mapping[str, Literal["TENTATIVE", "CONFIRMED", "CANCELLED"]] = {
    "confirmed": "CONFIRMED",
    "cancelled": "CANCELLED",
}
"""A meeting in any other state is not sure to be held."""


def _meeting_entry(
    meeting: Meeting,
    stop: Stop | None,
    linked: bool,
    parties: list[str],
    shows: frozenset[Part],
    alarm: timedelta | None,
) -> Entry:
    """`linked`: the feed has the stop's entry too. `parties` are the lines about who takes part."""
    status = _STATUS.get(meeting.status, "TENTATIVE")
    called_off = status == "CANCELLED"
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
        text=(span_line(start, end, clock), *_meeting_text(meeting, parties, shows, called_off=called_off)),
        categories=(meeting.kind,),
        color=COLORS.get(meeting.kind),
        conference=_conference(venue, shows),
        related_to=meeting.stop if linked else None,
        alarm=None if called_off else alarm,
    )


def _meeting_text(meeting: Meeting, parties: list[str], shows: frozenset[Part], *, called_off: bool) -> list[str]:
    text = _assumed(meeting.assumed)
    text += _hard(meeting.hard, shows)
    text.append(f"Kind: {meeting.kind}")
    text += _state(meeting.status, meeting.reason, shows, called_off=called_off)
    if "topics" in shows:
        text += listed("Topics", meeting.topics)
    if "press" in shows and (press := meeting.press) is not None:
        text.append(f"Press: {access_line(press.tag, press.preset, press.final, meeting.start)}")
    text += parties
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

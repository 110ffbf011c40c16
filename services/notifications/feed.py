"""Entries to iCalendar bytes (RFC 5545, RFC 7986): pure, and written by hand because every changed item passes here.

A feed is `calendar(name, zones, blocks)`. Its zones come from `zones_of(entries)`, a block from `stamped(draft, at)`:
the draft holds all but the stamps, so its digest tells whether the item changed since it was last stamped.
Same arguments, same bytes: no clock, no randomness, and no order but the caller's.

A time is local with TZID where that says the instant without doubt, else UTC: where the zone has no VTIMEZONE, and in
the hour that a clock repeats, whose two readings one local time cannot tell apart.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from urllib.parse import quote

from services.notifications.entry import Days, Entry, Moment, Span
from services.notifications.zones import time_zone, vtimezone

_REFRESH = "PT15M"
_OPENING = "BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:-//Attache//Feeds//EN\r\nCALSCALE:GREGORIAN\r\n"
_HINTS = f"REFRESH-INTERVAL;VALUE=DURATION:{_REFRESH}\r\nX-PUBLISHED-TTL:{_REFRESH}\r\n"
_CLOSING = b"END:VCALENDAR\r\n"

_SECOND = timedelta(seconds=1)
_LINE_OCTETS = 75
_FORBIDDEN = re.compile("\r(?:\\\\n)?|[\x85\u2028\u2029]|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_BREAKS = "\r\x85\u2028\u2029"
_URI_CHARACTERS = "!#$%&'()*+,/:;=?@[]~"
_URI = re.compile("[A-Za-z0-9_.!#$%&'()*+,/:;=?@\\[\\]~-]*")
_CONFERENCE_KINDS = {
    "https": ";FEATURE=AUDIO,VIDEO;LABEL=Join online",
    "http": ";FEATURE=AUDIO,VIDEO;LABEL=Join online",
    "tel": ";FEATURE=PHONE;LABEL=Dial in",
    "sip": ";FEATURE=AUDIO",
    "sips": ";FEATURE=AUDIO",
    "xmpp": ";FEATURE=CHAT",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The VEVENT of one item without DTSTAMP and LAST-MODIFIED; these stand between `head` and `tail`.

    `digest` is the SHA-256 of the block and of the VTIMEZONE text of each zone that it names, so new tz data count as a
    change of the item.
    """

    uid: str
    digest: bytes
    head: bytes
    tail: bytes


def draft(entry: Entry, *, domain: str, zones: Mapping[str, bytes | None]) -> Draft:
    """`domain`: the instance's, fixed for ever. `zones`: the whole feed's (`zones_of`); KeyError if one is lacking."""
    uid = f"{entry.id}@{domain}"
    times, named, text = _times(entry, zones)
    lines = [
        f"SEQUENCE:{entry.sequence}",
        *times,
        _folded(f"SUMMARY:{_text(entry.summary)}"),
        f"STATUS:{entry.status}",
        "TRANSP:TRANSPARENT" if entry.transparent else "TRANSP:OPAQUE",
        *_particulars(entry, text),
    ]
    if entry.related_to:
        lines.append(_folded(f"RELATED-TO;RELTYPE=PARENT:{entry.related_to}@{domain}"))
    if entry.alarm is not None:
        lines += _alarm(entry.alarm, entry.summary)
    head = f"BEGIN:VEVENT\r\n{_folded('UID:' + uid)}\r\n".encode()
    tail = ("\r\n".join(lines) + "\r\nEND:VEVENT\r\n").encode()
    return Draft(uid=uid, digest=sha256(b"".join((head, tail, *named))).digest(), head=head, tail=tail)


def stamped(draft: Draft, last_modified: datetime) -> bytes:
    """The block as it goes out, its last change at that second (an aware instant)."""
    stamp = _utc(last_modified).encode()
    return b"%bDTSTAMP:%b\r\nLAST-MODIFIED:%b\r\n%b" % (draft.head, stamp, stamp, draft.tail)


def calendar(name: str, zones: Iterable[bytes], blocks: Iterable[bytes]) -> bytes:
    """The whole body: `zones` in order of TZID, `blocks` in order of start, then UID."""
    named = _text(name)
    head = f"{_OPENING}{_folded('NAME:' + named)}\r\n{_folded('X-WR-CALNAME:' + named)}\r\n{_HINTS}".encode()
    return b"".join((head, *zones, *blocks, _CLOSING))


def empty_calendar() -> bytes:
    """What a revoked or expired link serves, without even a name: only a 200 makes clients drop what they hold."""
    return (_OPENING + _HINTS).encode() + _CLOSING


def zones_of(entries: Iterable[Entry], of_trip: Iterable[int] = ()) -> dict[str, bytes | None]:
    """Each zone of the entries with its VTIMEZONE, or None where none is right, in order of TZID.

    Right for all calendar years that the trip (`of_trip`) and the entries touch together: so an entry in another year
    may turn a zone to None, or to another rule, and with it the drafts of all entries in that zone.
    """
    names: set[str] = set()
    years = set(of_trip)
    for entry in entries:
        when = entry.when
        if isinstance(when, Days):
            years.update((when.first.year, when.last.year))
        else:
            for moment in (when.start, when.end):
                names.add(moment.zone)
                years.update((moment.instant.year, moment.wall.year))
    return {name: vtimezone(name, min(years), max(years)) for name in sorted(names)}


def _times(entry: Entry, zones: Mapping[str, bytes | None]) -> tuple[list[str], list[bytes], tuple[str, ...]]:
    """The lines of start and end, the VTIMEZONEs they need, and the text, with wall times if they would be lost."""
    when = entry.when
    if isinstance(when, Days):
        return _all_day(when), [], entry.text
    start, start_zone = _time("DTSTART", when.start, zones)
    end, end_zone = _time("DTEND", when.end, zones)
    lasts = when.end.instant - when.start.instant >= _SECOND
    lines = [start, end] if lasts else [start]  # an end must be later than its start (RFC 5545 section 3.8.2.2)
    if start_zone and end_zone:
        return lines, [start_zone] if start_zone is end_zone else [start_zone, end_zone], entry.text
    named = [zone for zone in (start_zone, end_zone) if zone]
    return lines, named, _with_wall_times(entry.text, when, start=not start_zone, end=not end_zone)


def _particulars(entry: Entry, text: tuple[str, ...]) -> list[str]:
    """What an entry may lack, as far as it has it."""
    lines = []
    if entry.location:
        lines.append(_folded(f"LOCATION:{_text(entry.location)}"))
    if entry.geo:
        lines.append(f"GEO:{entry.geo[0]:.6f};{entry.geo[1]:.6f}")
    if text:
        lines.append(_folded("DESCRIPTION:" + _text("\n".join(text))))
    if entry.categories:
        lines.append(_folded("CATEGORIES:" + ",".join(map(_text, entry.categories))))
    if entry.color:
        lines.append(_folded(f"COLOR:{_text(entry.color)}"))
    if entry.conference:
        lines.append(_conference(entry.conference))
    return lines


def _time(name: str, moment: Moment, zones: Mapping[str, bytes | None]) -> tuple[str, bytes | None]:
    """The line, and the VTIMEZONE that it leans on (None: it stands in UTC)."""
    definition = zones[moment.zone]
    if definition is not None and (tz := time_zone(moment.zone)) is not None:
        local = moment.instant.astimezone(tz)
        changes = b"DAYLIGHT" in definition
        if not changes or (not local.fold and local.replace(fold=1).utcoffset() == local.utcoffset()):
            return f"{name};TZID={moment.zone}:{_basic(local)}", definition
    return f"{name}:{_utc(moment.instant)}", None


def _all_day(days: Days) -> list[str]:
    """Whole days; iCalendar's end is the day after the last."""
    after = max(days.first, days.last)
    if after < date.max:
        after += timedelta(days=1)
    return [
        f"DTSTART;VALUE=DATE:{days.first.isoformat().replace('-', '')}",
        f"DTEND;VALUE=DATE:{after.isoformat().replace('-', '')}",
    ]


def _with_wall_times(text: tuple[str, ...], when: Span, *, start: bool, end: bool) -> tuple[str, ...]:
    """The text, led by a line with the wall times that stand in UTC above, unless its first lines say them already."""
    said = " ".join(text[:2])  # the time at the venue; a movement may say its arrival on a line of its own
    unsaid = [
        f"{word} {moment.wall:%Y-%m-%d %H:%M} ({moment.zone})"
        for word, moment, needed in (("from", when.start, start), ("to", when.end, end))
        if needed and f"{moment.wall:%H:%M}" not in said
    ]
    return (f"Local time: {' '.join(unsaid)}", *text) if unsaid else text


def _conference(uri: str) -> str:
    """RFC 7986 section 5.11; what may not stand in a URI (RFC 3986) is percent-encoded."""
    kind = _CONFERENCE_KINDS.get(uri.partition(":")[0].lower(), "")
    if not _URI.fullmatch(uri):
        uri = quote(uri, safe=_URI_CHARACTERS, errors="replace")
    return _folded(f"CONFERENCE;VALUE=URI{kind}:{uri}")


def _alarm(before: timedelta, summary: str) -> list[str]:
    seconds = before // timedelta(seconds=1)
    days, rest = divmod(abs(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    parts = ((hours, "H"), (rest // 60, "M"), (rest % 60, "S"))
    clock = "".join(f"{count}{unit}" for count, unit in parts if count)
    span = (f"{days}D" if days else "") + (f"T{clock}" if clock else "")
    return [
        "BEGIN:VALARM",
        "ACTION:DISPLAY",
        _folded(f"DESCRIPTION:{_text(summary)}"),
        f"TRIGGER:{'-' if seconds > 0 else ''}P{span or 'T0S'}",
        "END:VALARM",
    ]


def _text(value: str) -> str:
    """A TEXT value (RFC 5545 section 3.3.11). Every kind of line break is made one kind; controls are dropped.

    Unicode's own line breaks are legal here, but readers that split lines by them take what follows for a new property.
    """
    value = value.replace("\\", "\\\\").replace(";", "\\;").replace(",", "\\,").replace("\n", "\\n")
    if value.isprintable():
        return value
    return _FORBIDDEN.sub(lambda found: "\\n" if found[0][0] in _BREAKS else "", value)


def _folded(line: str) -> str:
    """The line in pieces of at most 75 octets, cut between characters (RFC 5545 section 3.1)."""
    if len(line) <= _LINE_OCTETS and line.isascii():
        return line
    octets = line.encode()
    pieces = []
    start, room = 0, _LINE_OCTETS
    while len(octets) - start > room:
        end = start + room
        while octets[end] & 0xC0 == 0x80:  # within a character
            end -= 1
        pieces.append(octets[start:end])
        start, room = end, _LINE_OCTETS - 1  # the space that marks a continuation counts
    pieces.append(octets[start:])
    return b"\r\n ".join(pieces).decode()


def _utc(instant: datetime) -> str:
    if instant.utcoffset() is None:
        raise ValueError(f"an instant without an offset: {instant!r}")
    return _basic(instant.astimezone(UTC)) + "Z"


def _basic(local: datetime) -> str:
    """YYYYMMDDTHHMMSS"""
    return local.isoformat()[:19].replace("-", "").replace(":", "")

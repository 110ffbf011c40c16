"""How one value of a trip file is read: a YAML node in, the JSON value that the API takes out, or the faulty line.

Values are read by the field they stand in, never by YAML's own guesses: `NO` is a text where a text belongs, and
`19:30` is no number. Names of things (external ids) become `Ref`s, which the player replaces by the ids of the answers.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from difflib import get_close_matches
from typing import TypeAlias
from zoneinfo import ZoneInfo

from yaml import MappingNode, Node, ScalarNode, SequenceNode


@dataclass(frozen=True, slots=True)
class Ref:
    """A thing by its kind and external id. `line` is where it is named, and no part of its identity."""

    kind: str
    id: str
    line: int = field(default=0, compare=False)


Value: TypeAlias = bool | int | float | str | Ref | tuple["Value", ...] | Mapping[str, "Value"] | None
Reader: TypeAlias = Callable[[Node], Value]


_INSTANT = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d(?::\d\d)?) ?(Z|[+-]\d\d:\d\d)")


class TripFileWrong(Exception):
    """A trip file that cannot be played: the file, the line (from 1) and what is wrong. Nothing of it was sent."""

    def __init__(self, file: str, line: int, problem: str) -> None:
        super().__init__(f"{file}:{line}: {problem}")
        self.file, self.line, self.problem = file, line, problem


def wrong(node: Node, problem: str) -> TripFileWrong:
    """The fault at a node: the node's marks carry the file's name and the line."""
    return TripFileWrong(str(node.start_mark.name), line_of(node), problem)


def line_of(node: Node) -> int:
    """The line that a node begins on, counted from 1."""
    return int(node.start_mark.line) + 1


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a mapping may hold. Calling it reads one: a key twice, unknown or missing is a fault at its line."""

    required: Mapping[str, Reader] = field(default_factory=dict)
    optional: Mapping[str, Reader] = field(default_factory=dict)

    def __call__(self, node: Node) -> dict[str, Value]:
        readers = {**self.required, **self.optional}
        return {key: readers[key](value) for key, value in keyed(node, self.required, self.optional).items()}


def keyed(node: Node, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Node]:
    """The values of a mapping by their keys: all that are required, and no other than the optional ones."""
    if not isinstance(node, MappingNode):
        raise wrong(node, "keys with values are expected here")
    known = [*required, *optional]
    values: dict[str, Node] = {}
    for key_node, value in node.value:
        key = text(key_node)
        if key in values:
            raise wrong(key_node, f"{key!r} stands here twice")
        if key not in known:
            raise wrong(key_node, f"unknown key {key!r}{_meant(key, known)}")
        values[key] = value
    for key in required:
        if key not in values:
            raise wrong(node, f"{key!r} is missing")
    return values


def items(node: Node) -> list[Node]:
    """The entries of a list."""
    if not isinstance(node, SequenceNode):
        raise wrong(node, "a list is expected here")
    return list(node.value)


def text(node: Node) -> str:
    """A text that is not empty."""
    if not isinstance(node, ScalarNode) or not node.value.strip() or _is_null(node):
        raise wrong(node, "a text is expected here")
    return str(node.value)


def texts(node: Node) -> Value:
    """A list of texts."""
    return tuple(text(item) for item in items(node))


def flag(node: Node) -> bool:
    """`true` or `false`, and no other spelling."""
    return {"true": True, "false": False}[choice("true", "false")(node)]


def fold(node: Node) -> int:
    """Which of two equal wall times is meant: 0 the first, 1 the second."""
    return int(choice("0", "1")(node))


def choice(*words: str) -> Callable[[Node], str]:
    """One of these words."""

    def read(node: Node) -> str:
        word = text(node)
        if word not in words:
            raise wrong(node, f"{word!r} is none of {', '.join(words)}")
        return word

    return read


def external_id(node: Node) -> str:
    """The name of a thing within the file: lower case, digits, single hyphens."""
    name = text(node)
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise wrong(node, f"{name!r} is no external id: lower-case letters and digits, joined by single hyphens")
    return name


def ref(kind: str) -> Callable[[Node], Ref]:
    """The external id of a thing of this kind."""
    return lambda node: Ref(kind, external_id(node), line_of(node))


def refs(kind: str) -> Reader:
    """A list of external ids of this kind, none of them twice."""

    def read(node: Node) -> Value:
        found = tuple(ref(kind)(item) for item in items(node))
        for item, each in zip(items(node), found, strict=True):
            if found.count(each) > 1:
                raise wrong(item, f"{each.id!r} stands in this list twice")
        return found

    return read


def day(node: Node) -> str:
    """A date: 2023-11-07."""
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", written := text(node)):
            return date.fromisoformat(written).isoformat()
    except ValueError:
        pass
    raise wrong(node, f"{written!r} is no date like 2023-11-07")


def wall(node: Node) -> str:
    """A local time without an offset, `2023-11-07 18:25`, as the API writes it."""
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?", written := text(node)):
            return datetime.fromisoformat(written).isoformat()
    except ValueError:
        pass
    raise wrong(node, f"{written!r} is no local time like 2023-11-07 18:25 (no offset: the zone says it)")


def instant(node: Node) -> str:
    """An instant with its offset, `2023-11-07 18:25 +09:00`, in RFC 3339."""
    try:
        if found := _INSTANT.fullmatch(written := text(node)):
            return datetime.fromisoformat("{}T{}{}".format(*found.groups())).isoformat()
    except ValueError:
        pass
    raise wrong(node, f"{written!r} is no instant like 2023-11-07 18:25 +09:00 (with its offset)")


def duration(node: Node) -> str:
    """A length of time in ISO 8601: PT45M, PT1H30M. Not nothing."""
    written = text(node)
    found = re.fullmatch(r"P(?:(\d+)D)?(?:T(?=\d)(?:(\d+)H)?(?:(\d+)M)?)?", written)
    if not found or not any(int(part) for part in found.groups("0")):
        raise wrong(node, f"{written!r} is no duration like PT45M or PT1H30M")
    return written


def zone(node: Node) -> str:
    """An IANA time zone that the time zone database holds; never an abbreviation."""
    name = text(node)
    if "/" not in name and name != "UTC":
        raise wrong(node, f"{name!r} is no IANA time zone like Asia/Tokyo; abbreviations can mean several")
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise wrong(node, f"the time zone database holds no {name!r}") from None
    return name


def coordinates(node: Node) -> Value:
    """Latitude and longitude in degrees: [35.68, 139.77]."""
    try:
        latitude, longitude = (float(text(item)) for item in items(node))
    except ValueError:
        raise wrong(node, "two numbers are expected here: latitude and longitude") from None
    if not (abs(latitude) <= 90 and abs(longitude) <= 180):
        raise wrong(node, f"there is no place at {latitude}, {longitude}: latitude first, then longitude")
    return (latitude, longitude)


def or_null(reader: Reader) -> Reader:
    """What the reader reads, or `null`: the field is emptied."""
    return lambda node: None if _is_null(node) else reader(node)


PLACE = Shape(required={"place": text, "zone": zone})
VENUE = Shape(required={"name": text}, optional={"address": text, "geo": coordinates, "conference": text})
PRESS_TAG = choice("closed", "spray-at-top", "pooled-spray", "open", "determined-by-host")
PRESS = Shape(required={"tag": PRESS_TAG}, optional={"preset": wall, "final": wall})
PERSONAL = Shape(required={"name": text}, optional={"title": text, "contact": text})


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.style is None and node.value in ("null", "~", "")


def _meant(key: str, known: Sequence[str]) -> str:
    close = get_close_matches(key, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else f"; known here: {', '.join(known)}"

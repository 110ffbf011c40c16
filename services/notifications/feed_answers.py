"""The headers of a feed's answers, and what a request says of the answer that it can use (RFC 9110).

Headers are made once for each body; a GET then only chooses. What the header fields of a request hold is not trusted:
whatever cannot be read is as if it were not there, and never an error.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from functools import lru_cache

Headers = list[tuple[bytes, bytes]]

COMMON: Headers = [
    (b"cache-control", b"private, no-cache"),
    (b"vary", b"Accept-Encoding"),
    (b"x-robots-tag", b"noindex"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
CALENDAR: Headers = [
    (b"content-type", b"text/calendar; charset=utf-8"),
    (b"content-disposition", b'inline; filename="programme.ics"'),
    *COMMON,
]

_TAGS = re.compile(rb'(?:W/)?"([^"]*)"')
_CODING = re.compile(rb"\s*([^\s;]+)\s*(?:;\s*q\s*=\s*([0-9.]{1,5})\s*)?")
_KEPT_FIELD = 300
"""Longer fields are read each time: what strangers send is not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The headers of every answer that one body can give. `etag` has no quotes, `since` is a whole second."""

    etag: bytes
    since: datetime
    whole: Headers
    whole_gzip: Headers
    unchanged: Headers
    unchanged_gzip: Headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request says: the client's User-Agent, whether it takes gzip, and the two preconditions of a GET."""

    agent: bytes
    gzip: bool
    none_match: Sequence[bytes]
    modified_since: bytes | None

    def has(self, answers: Answers) -> bool:
        """Whether the client holds this body already, under either tag; the date counts where no tag was sent."""
        if self.none_match:
            return any(_holds(value, answers.etag) for value in self.none_match)
        return self.modified_since is not None and _not_since(self.modified_since, answers.since)


def answers(etag: str, since: datetime, size: int, compressed_size: int) -> Answers:
    """For a body with this tag (no quotes) that began at `since`, of so many bytes, plain and compressed."""
    since = since.replace(microsecond=0)
    modified = (b"last-modified", format_datetime(since, usegmt=True).encode())
    plain = [(b"etag", b'"%b"' % etag.encode()), modified]
    zipped = [(b"etag", b'"%b-gz"' % etag.encode()), modified]
    return Answers(
        etag=etag.encode(),
        since=since,
        whole=sized([*plain, *CALENDAR], size),
        whole_gzip=sized([*zipped, *CALENDAR, (b"content-encoding", b"gzip")], compressed_size),
        unchanged=[*plain, *COMMON],
        unchanged_gzip=[*zipped, *COMMON],
    )


def sized(headers: Headers, size: int) -> Headers:
    """The headers with the length of what follows them."""
    return [*headers, (b"content-length", b"%d" % size)]


def asked(headers: Iterable[tuple[bytes, bytes]]) -> Asked:
    """Read a request's headers (ASGI's: names in lower case)."""
    agent, encoding = b"", b""
    modified_since = None
    none_match: list[bytes] = []
    for name, value in headers:
        if name == b"accept-encoding":
            encoding = b"%b,%b" % (encoding, value) if encoding else value
        elif name == b"user-agent":
            agent = value
        elif name == b"if-none-match":
            none_match.append(value)
        elif name == b"if-modified-since":
            modified_since = value
    return Asked(agent=agent, gzip=takes_gzip(encoding), none_match=none_match, modified_since=modified_since)


def takes_gzip(value: bytes) -> bool:
    """Whether gzip was asked for, by name or by `*`, and not less than the plain bytes (RFC 9110, 12.5.3)."""
    return (_takes_gzip_kept if len(value) <= _KEPT_FIELD else _takes_gzip)(value)


def client_family(agent: bytes) -> str:
    """A calendar client's family by its User-Agent: enough to know how often it asks, too little to know a person."""
    return (_family_kept if len(agent) <= _KEPT_FIELD else _family)(agent)


_FAMILIES: tuple[tuple[bytes, str], ...] = (
    (b"google", "google"),
    (b"thunderbird", "thunderbird"),
    (b"lightning", "thunderbird"),
    (b"icsx5", "icsx5"),
    (b"davx5", "davx5"),
    (b"microsoft", "outlook"),
    (b"outlook", "outlook"),
    (b"ms-office", "outlook"),
    (b"exchange", "outlook"),
    (b"dataaccessd", "apple"),
    (b"calendaragent", "apple"),
    (b"ios/", "apple"),
    (b"macos/", "apple"),
    (b"curl", "curl"),
)


def _holds(value: bytes, etag: bytes) -> bool:
    return value.strip() == b"*" or any(tag in (etag, etag + b"-gz") for tag in _TAGS.findall(value))


def _not_since(value: bytes, since: datetime) -> bool:
    try:
        asked_for = parsedate_to_datetime(value.decode("latin-1"))
    except (ValueError, TypeError, IndexError, OverflowError):
        return False
    return since <= (asked_for if asked_for.tzinfo else asked_for.replace(tzinfo=UTC))


def _takes_gzip(value: bytes) -> bool:
    weights: dict[bytes, float] = {}
    for part in value.lower().split(b","):
        if (found := _CODING.fullmatch(part)) is not None:
            weights[found[1]] = _weight(found[2])
    wanted = weights.get(b"gzip", weights.get(b"x-gzip", weights.get(b"*", 0.0)))
    return wanted > 0 and wanted >= weights.get(b"identity", 0.0)


def _weight(text: bytes | None) -> float:
    try:
        return 1.0 if text is None else float(text)
    except ValueError:
        return 0.0


def _family(agent: bytes) -> str:
    lowered = agent.lower()
    return next((family for token, family in _FAMILIES if token in lowered), "other")


_takes_gzip_kept = lru_cache(maxsize=512)(_takes_gzip)
_family_kept = lru_cache(maxsize=512)(_family)

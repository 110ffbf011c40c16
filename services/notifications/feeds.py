"""`/feeds/<secret>.ics`: the bytes of a feed over HTTP, answered from memory alone.

It stands before the framework, because every calendar client of every delegate asks here, again and again. A live link
is never answered by anything but 200, 304 or, for what is no GET, 405. A revoked or expired one gets an empty calendar,
since nothing else makes all clients clear what they hold (RFC 5545 has no word for it); after 30 days, 410.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from hashlib import sha256
from typing import Literal
from uuid import UUID

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from services.notifications.feed import empty_calendar
from services.notifications.feed_link import ends_at, standing
from services.notifications.shelf import Card, Shelf

PREFIX = "/feeds/"
FIRST_BODY_SECONDS = 5.0
UNKNOWN_SECONDS = 1.0
"""A link may have been issued a moment ago on another replica: nobody is told 404 before one more look."""

_SECRET = re.compile(r"[A-Za-z0-9_-]{16,128}\.ics")
_TAGS = re.compile(rb'(?:W/)?"([^"]*)"')
_FIXED = (
    (b"content-type", b"text/calendar; charset=utf-8"),
    (b"content-disposition", b'inline; filename="programme.ics"'),
    (b"cache-control", b"private, no-cache"),
    (b"vary", b"Accept-Encoding"),
    (b"x-robots-tag", b"noindex"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
Headers = list[tuple[bytes, bytes]]

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a GET of one audience can be answered with, headers included; made once a body."""

    version: int
    etag: bytes
    since: datetime
    validators: tuple[tuple[bytes, bytes], ...]
    validators_gzip: tuple[tuple[bytes, bytes], ...]


@dataclass(kw_only=True)
class Fetched:
    """How a link was used since the last time that this was written down."""

    at: datetime
    client: str
    version: int
    count: int = 0


@dataclass(kw_only=True)
class Fetches:
    """Who fetched what, gathered in memory and written in batches."""

    by_link: dict[UUID, Fetched] = field(default_factory=dict)

    def note(self, link: UUID, client: str, version: int, at: datetime) -> None:
        """One more fetch of a link."""
        fetched = self.by_link.get(link)
        if fetched is None:
            fetched = self.by_link[link] = Fetched(at=at, client=client, version=version)
        fetched.at, fetched.client, fetched.version = at, client, version
        fetched.count += 1

    def take(self) -> dict[UUID, Fetched]:
        """All that was noted; it is forgotten here."""
        taken, self.by_link = self.by_link, {}
        return taken


class FeedDoor:
    """ASGI middleware: takes the requests under `/feeds/`, hands on all others."""

    def __init__(self, app: ASGIApp, *, shelf: Shelf, fetches: Fetches) -> None:
        self._app = app
        self._shelf = shelf
        self._fetches = fetches
        self._served: dict[UUID, Served] = {}
        self._empty = empty_calendar()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            await _send(send, 405, [(b"allow", b"GET, HEAD"), *_FIXED[2:]], b"", head=False)
            return
        await self._get(scope, send)

    async def _get(self, scope: Scope, send: Send) -> None:
        head = scope["method"] == "HEAD"
        name = scope["path"][len(PREFIX) :]
        # an address that cannot be one takes the same way as one that is unknown
        secret_hash = sha256(name.removesuffix(".ics").encode()).hexdigest() if _SECRET.fullmatch(name) else ""
        card = self._shelf.card(secret_hash)
        if card is None:
            await self._shelf.look_again(UNKNOWN_SECONDS)
            card = self._shelf.card(secret_hash)
        if card is None:
            await _send(send, 404, _PLAIN_TEXT, b"There is no such feed.\n", head=head)
            return
        match standing(card.link, secret_hash, now := datetime.now(UTC)):
            case "live":
                await self._live(scope, send, card, now, head=head)
            case "empty":
                ended = ends_at(card.link, secret_hash)
                await _send_empty(scope, send, self._empty, ended, head=head)
            case "gone":
                await _send(send, 410, _PLAIN_TEXT, b"This feed has ended.\n", head=head)

    async def _live(self, scope: Scope, send: Send, card: Card, now: datetime, *, head: bool) -> None:
        body = self._shelf.body(card.audience) or await self._shelf.body_within(card.audience, FIRST_BODY_SECONDS)
        if body is None:
            # the first rendering is late; an empty calendar without validators is replaced at the next fetch
            await _send(send, 200, [*_FIXED], self._empty, head=head)
            return
        served = self._served.get(card.audience)
        if served is None or served.version != body.version:
            served = self._served[card.audience] = _prepared(body.version, body.etag, body.since)
        agent, wants_gzip, unchanged = _asked(scope["headers"], served.etag, served.since)
        self._fetches.note(card.link.id, client_family(agent), body.version, now)
        validators = served.validators_gzip if wants_gzip else served.validators
        if unchanged:
            await _send(send, 304, [*validators, *_FIXED[2:]], b"", head=True)
        elif wants_gzip:
            encoded = (b"content-encoding", b"gzip")
            await _send(send, 200, [*validators, *_FIXED, encoded], body.compressed, head=head)
        else:
            await _send(send, 200, [*validators, *_FIXED], self._shelf.plain(card.audience, body), head=head)


def client_family(agent: bytes) -> str:
    """A calendar client's family by its User-Agent: enough to know how often it will ask, too little to know a person."""
    lowered = agent.lower()
    return next((family for token, family in _FAMILIES if token in lowered), "other")


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
_PLAIN_TEXT: Headers = [(b"content-type", b"text/plain; charset=utf-8"), *_FIXED[2:]]


def _prepared(version: int, etag: str, since: datetime) -> Served:
    since = since.replace(microsecond=0)
    modified = (b"last-modified", format_datetime(since, usegmt=True).encode())
    return Served(
        version=version,
        etag=etag.encode(),
        since=since,
        validators=((b"etag", f'"{etag}"'.encode()), modified),
        validators_gzip=((b"etag", f'"{etag}-gz"'.encode()), modified),
    )


def _asked(headers: Iterable[tuple[bytes, bytes]], etag: bytes, since: datetime) -> tuple[bytes, bool, bool]:
    """The client, whether it takes gzip, and whether it has these bytes already (RFC 9110, 13.2.2)."""
    agent = b""
    wants_gzip = False
    none_match: bool | None = None
    modified_since = False
    for name, value in headers:
        if name == b"user-agent":
            agent = value
        elif name == b"accept-encoding":
            wants_gzip = wants_gzip or _takes_gzip(value)
        elif name == b"if-none-match":
            none_match = bool(none_match) or _matches(value, etag)
        elif name == b"if-modified-since":
            modified_since = _not_since(value, since)
    return agent, wants_gzip, modified_since if none_match is None else none_match


def _matches(value: bytes, etag: bytes) -> bool:
    return value.strip() == b"*" or any(tag in (etag, etag + b"-gz") for tag in _TAGS.findall(value))


def _not_since(value: bytes, since: datetime) -> bool:
    try:
        asked = parsedate_to_datetime(value.decode("latin-1"))
    except (ValueError, TypeError):
        return False
    return since <= (asked if asked.tzinfo else asked.replace(tzinfo=UTC))


def _takes_gzip(value: bytes) -> bool:
    """RFC 9110, 12.5.3; `*` and `x-gzip` count, a weight of 0 refuses."""
    for part in value.lower().split(b","):
        coding, _, weight = part.partition(b";")
        if coding.strip() in (b"gzip", b"x-gzip", b"*"):
            return not re.fullmatch(rb"\s*q\s*=\s*0(\.0*)?\s*", weight)
    return False


async def _send_empty(scope: Scope, send: Send, body: bytes, ended: datetime, *, head: bool) -> None:
    served = _prepared(0, sha256(body).hexdigest()[:32], ended)
    _, _, unchanged = _asked(scope["headers"], served.etag, served.since)
    if unchanged:
        await _send(send, 304, [*served.validators, *_FIXED[2:]], b"", head=True)
    else:
        await _send(send, 200, [*served.validators, *_FIXED], body, head=head)


async def _send(
    send: Send, status: Literal[200, 304, 404, 405, 410], headers: Headers, body: bytes, *, head: bool
) -> None:
    if status != 304:
        headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else body})
    if status not in (200, 304):
        log.info("feed.answered", status=status, path="/feeds/***.ics")

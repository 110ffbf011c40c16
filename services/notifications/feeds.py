"""`/feeds/<secret>.ics`: the bytes of a feed over HTTP, answered from memory alone.

It stands before the framework, because every calendar client of every delegate asks here, again and again. A live link
is never answered by anything but 200, 304 or, for what is no GET, 405. A revoked or expired one gets an empty calendar,
since nothing else makes all clients clear what they hold (RFC 5545 has no word for it); after 30 days, 410.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from uuid import UUID

import structlog
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.notifications.feed import empty_calendar
from services.notifications.feed_answers import (
    CALENDAR,
    COMMON,
    Headers,
    answers,
    asked,
    client_family,
    sized,
)
from services.notifications.feed_link import ends_at, standing
from services.notifications.metrics import FeedAnswers
from services.notifications.shelf import Card, Shelf
from shared.errors import NotFound, StoreAway
from shared.problems import problem, unrouted_problem
from shared.tracing import OFF, Tracing

PREFIX = "/feeds/"
ROBOTS = "/robots.txt"
ROUTE = "/feeds/{secret}.ics"
FIRST_BODY_SECONDS = 5.0
UNKNOWN_SECONDS = 1.0
"""A link may have been issued a moment ago on another replica: nobody is told 404 before one more look."""

_SECRET = re.compile(r"[A-Za-z0-9_-]{16,128}\.ics")
_METHODS = ("GET", "HEAD")
_ROBOTS_TEXT = b"User-agent: *\nAllow: /feeds/\nDisallow: /\n"
"""Google's calendar asks for this before it asks for a feed, and goes by it (RFC 9309)."""

log = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Fetched:
    """How a link was used since the last time that this was written down."""

    at: datetime
    client: str
    version: int
    count: int = 0


@dataclass(kw_only=True)
class Fetches:
    """Who fetched what, gathered in memory and written in batches: one entry for each link that was used."""

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

    def give_back(self, taken: Mapping[UUID, Fetched]) -> None:
        """What was taken and could not be written down; newer fetches stay the last ones."""
        for link, fetched in taken.items():
            self.by_link.setdefault(link, Fetched(at=fetched.at, client=fetched.client, version=fetched.version))
            self.by_link[link].count += fetched.count


class FeedDoor:
    """ASGI middleware: takes the requests under `/feeds/` and for `/robots.txt`, hands on all others."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        shelf: Shelf,
        fetches: Fetches,
        answered: FeedAnswers,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        tracing: Tracing = OFF,
    ) -> None:
        self._app = app
        self._tracing = tracing
        self._shelf = shelf
        self._fetches = fetches
        self._answered = answered
        self._counts = answered.by_status
        self._clock = clock
        self._empty = empty_calendar()
        self._empty_etag = sha256(self._empty).hexdigest()[:32]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path.startswith(PREFIX):
            answer = self._get
        elif path == ROBOTS:
            answer = self._robots
        else:
            await self._app(scope, receive, send)
            return
        if scope["method"] not in _METHODS:
            await self._refuse(scope, send, _NO_METHOD)
            return
        try:
            await (self._traced(answer, scope, send) if self._tracing.on else answer(scope, send))
        except Exception:
            self._counts[500] += 1
            raise

    async def _traced(self, answer: Callable[[Scope, Send], Awaitable[None]], scope: Scope, send: Send) -> None:
        """Named by its template alone, since the address is a secret; whoever asks begins a trace of his own."""
        status = 0

        async def sender(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        with self._tracing.request(scope["method"], None) as span:
            await answer(scope, sender)
            span.answered(ROUTE if answer == self._get else ROBOTS, status)

    async def _get(self, scope: Scope, send: Send) -> None:
        name = scope["path"][len(PREFIX) :]
        # an address that cannot be one takes the same way as one that is unknown
        secret_hash = sha256(name[:-4].encode()).hexdigest() if _SECRET.fullmatch(name) else ""
        card = self._shelf.card(secret_hash)
        if card is None:
            looked = await self._shelf.look_again(UNKNOWN_SECONDS)
            card = self._shelf.card(secret_hash)
            if card is None:
                # issued a moment ago by another replica, perhaps: a client may take a 404 for the feed's end
                await self._refuse(scope, send, _UNKNOWN if looked else _UNCERTAIN)
                return
        now = self._clock()
        match standing(card.link, secret_hash, now):
            case "live":
                await self._live(scope, send, card, now)
            case "empty":
                await self._ended(scope, send, ends_at(card.link, secret_hash))
            case "gone":
                await self._refuse(scope, send, _GONE)

    async def _live(self, scope: Scope, send: Send, card: Card, now: datetime) -> None:
        audience = card.audience
        body = self._shelf.body(audience) or await self._shelf.body_within(audience, FIRST_BODY_SECONDS)
        if body is None:
            # the first rendering is late; an empty calendar without validators is replaced at the next fetch
            self._answered.unrendered += 1
            self._counts[200] += 1
            await _send(scope, send, 200, sized(CALENDAR, len(self._empty)), self._empty)
            return
        request = asked(scope["headers"])
        self._fetches.note(card.link.id, client_family(request.agent), body.version, now)
        made = body.answers
        if request.has(made):
            self._counts[304] += 1
            await _send(scope, send, 304, made.unchanged_gzip if request.gzip else made.unchanged, b"")
            return
        self._counts[200] += 1
        if request.gzip:
            await _send(scope, send, 200, made.whole_gzip, body.compressed)
        else:
            await _send(scope, send, 200, made.whole, self._shelf.plain(audience, body))

    async def _ended(self, scope: Scope, send: Send, ended: datetime) -> None:
        """An empty calendar. Its tag alone gives a 304: the feed's last body may be younger than the end of its link,

        by the moment that a revocation takes to be known everywhere, and a client that asks by date would keep it.
        """
        made = answers(self._empty_etag, ended, len(self._empty), 0)
        request = asked(scope["headers"])
        if request.none_match and request.has(made):
            self._counts[304] += 1
            await _send(scope, send, 304, made.unchanged, b"")
        else:
            self._counts[200] += 1
            await _send(scope, send, 200, made.whole, self._empty)

    async def _robots(self, scope: Scope, send: Send) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"public, max-age=3600")]
        await _send(scope, send, 200, sized(headers, len(_ROBOTS_TEXT)), _ROBOTS_TEXT)

    async def _refuse(self, scope: Scope, send: Send, refused: Response) -> None:
        # never the address: who has a dead one may have a live one
        log.info("feed.refused", status=refused.status_code)
        self._counts[refused.status_code] += 1
        await _send(scope, send, refused.status_code, [*refused.raw_headers, *COMMON], bytes(refused.body))


_UNKNOWN = problem(NotFound("There is no such feed."))
_UNCERTAIN = problem(StoreAway("Whether there is such a feed cannot be told just now; try again."))
_GONE = problem(NotFound("This feed has ended."), status=410)
_NO_METHOD = unrouted_problem(HTTPException(405, headers={"Allow": "GET, HEAD"}))


async def _send(scope: Scope, send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

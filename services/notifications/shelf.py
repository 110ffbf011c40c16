"""What the feeds are served from: every link and the newest bodies, in memory, whatever happens to database or bus.

A link is found by the hash of its secret; what it opens is decided at each GET from its own instants. Of bodies only
those are held that a live link opens. The shelf follows the database by two cursors, the log's position for links and
the bodies' place, both of which become visible in their order. It is woken in process and looks every 250 ms
otherwise, so a revocation holds everywhere within a second.
"""

import asyncio
import contextlib
import gzip
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog
from prometheus_client.core import Metric
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.ext.asyncio import AsyncEngine

from services.notifications.feed_answers import Answers, answers
from services.notifications.feed_link import EMPTY, FeedLink
from shared.database import driver_of, is_away
from shared.metrics import Families

POLL_SECONDS = 0.25
ROUND_SECONDS = 0.02
"""No two looks begin closer together, however many strangers ask for feeds that do not exist."""
SWEEP_SECONDS = 3600.0
PAGE = 200
PLAIN_BYTES_KEPT = 64 * 1024 * 1024

_HEADS = "SELECT coalesce((SELECT max(position) FROM events), 0), coalesce((SELECT max(place) FROM bodies), 0)"
_BODY = "version, since, etag, compressed"

log = structlog.get_logger()

LINK: TypeAdapter[FeedLink] = TypeAdapter(FeedLink)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One link as a GET needs it."""

    link: FeedLink
    audience: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelfBody:
    """The newest body of an audience, compressed, and the headers under which it goes out."""

    version: int
    compressed: bytes
    answers: Answers


class Shelf:
    """Links by secret hash, bodies by audience. Only the event loop's thread may use it."""

    def __init__(self, engine: AsyncEngine, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._engine = engine
        self._clock = clock
        self._cards: dict[str, Card] = {}
        self._expiries: dict[UUID, dict[UUID, datetime]] = {}  # by audience and link
        self._bodies: dict[UUID, ShelfBody] = {}
        self._plain: OrderedDict[tuple[UUID, int], bytes] = OrderedDict()
        self._plain_bytes = 0
        self._position = 0
        self._place = 0
        self._woken = asyncio.Event()
        self._changed = asyncio.Condition()
        self._begun = 0
        self._ended = 0
        self._swept_at = self._looked_at = time.monotonic()

    def card(self, secret_hash: str) -> Card | None:
        """The link with this secret, past ones included."""
        return self._cards.get(secret_hash)

    def body(self, audience: UUID) -> ShelfBody | None:
        """The newest body of an audience; None before its first rendering."""
        return self._bodies.get(audience)

    def plain(self, audience: UUID, body: ShelfBody) -> bytes:
        """The bytes of a body, kept at hand while they are asked for."""
        key = (audience, body.version)
        if (bytes_ := self._plain.get(key)) is not None:
            self._plain.move_to_end(key)
            return bytes_
        bytes_ = self._plain[key] = gzip.decompress(body.compressed)
        self._plain_bytes += len(bytes_)
        while self._plain_bytes > PLAIN_BYTES_KEPT and len(self._plain) > 1:
            _, dropped = self._plain.popitem(last=False)
            self._plain_bytes -= len(dropped)
        return bytes_

    def __len__(self) -> int:
        return len(self._cards)

    def metrics(self, of: Families) -> Iterator[Metric]:
        """What is held for answers."""
        yield of.gauge("feed_addresses", "Secrets of feed links that are known here, past ones too", len(self._cards))
        yield of.gauge("feed_bodies", "Feeds whose newest body is held for answers", len(self._bodies))
        age = time.monotonic() - self._looked_at
        yield of.gauge("feed_shelf_age_seconds", "How long ago what is held was last compared with the database", age)

    def wake(self) -> None:
        """There may be something new."""
        self._woken.set()

    async def look_again(self, patience: float) -> bool:
        """Until a look that begins from now on has ended; False where patience ends first (the database is away)."""
        wanted = self._begun + 1  # the one that is under way may have read before
        self.wake()
        await self._until(lambda: self._ended >= wanted, patience)
        return self._ended >= wanted

    async def body_within(self, audience: UUID, patience: float) -> ShelfBody | None:
        """The newest body, waiting for a first one."""
        await self._until(lambda: audience in self._bodies, patience)
        return self._bodies.get(audience)

    async def fill(self) -> None:
        """Read all that there is, once, before anything is served. Raises what the database raises."""
        async with self._engine.connect() as connection:
            driver = await driver_of(connection)
            # the cursors first: what changes while the rest is read is then read again
            position, place = await _heads(driver)
            rows = await driver.fetch("SELECT id, audience, secrets FROM feed_links ORDER BY id LIMIT $1", PAGE)
            while rows:
                await self._take_links(driver, rows)
                rows = await driver.fetch(
                    "SELECT id, audience, secrets FROM feed_links WHERE id > $1 ORDER BY id LIMIT $2",
                    rows[-1]["id"],
                    PAGE,
                )
        self._position, self._place = position, place
        while await self._refresh():
            pass

    async def run(self) -> None:
        """Follow the database for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._woken.wait()
            self._woken.clear()
            self._begun += 1
            try:
                while await self._refresh():
                    pass
            except Exception as error:
                if not is_away(error):
                    log.exception("shelf.failed")
                await asyncio.sleep(POLL_SECONDS)
                continue
            self._ended = self._begun
            self._looked_at = time.monotonic()
            async with self._changed:
                self._changed.notify_all()
            self._sweep()
            await asyncio.sleep(ROUND_SECONDS)

    async def _until(self, reached: Callable[[], bool], patience: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience), self._changed:
                await self._changed.wait_for(reached)

    async def _refresh(self) -> bool:
        """Take in a page of what is new; returns whether there may be more."""
        async with self._engine.connect() as connection:
            driver = await driver_of(connection)
            position, place = await _heads(driver)
            more = False
            if position > self._position:
                more |= await self._follow_links(driver)
            if place > self._place:
                more |= await self._follow_bodies(driver)
        return more

    async def _follow_links(self, driver: Any) -> bool:
        events = await driver.fetch(
            "SELECT position, stream FROM events WHERE position > $1 ORDER BY position LIMIT $2", self._position, PAGE
        )
        if not events:
            return False
        links = sorted({event["stream"].split("/")[1] for event in events})
        rows = await driver.fetch("SELECT id, audience, secrets FROM feed_links WHERE id = ANY($1::uuid[])", links)
        await self._take_links(driver, rows)
        self._position = events[-1]["position"]
        return len(events) == PAGE

    async def _take_links(self, driver: Any, rows: Collection[Any]) -> None:
        for row in rows:
            self._put_link(row)
        # an audience may have a body from the time of an earlier link
        await self._take_bodies(driver, {row["audience"] for row in rows} - self._bodies.keys())

    async def _follow_bodies(self, driver: Any) -> bool:
        rows = await driver.fetch(
            "SELECT audience, place FROM bodies WHERE place > $1 ORDER BY place LIMIT $2", self._place, PAGE
        )
        if not rows:
            return False
        await self._take_bodies(driver, {row["audience"] for row in rows})
        self._place = rows[-1]["place"]
        return len(rows) == PAGE

    async def _take_bodies(self, driver: Any, audiences: Collection[UUID]) -> None:
        """The newest body of each of the audiences that a link may still open."""
        wanted = [audience for audience in audiences if self._is_wanted(audience)]
        if not wanted:
            return
        rows = await driver.fetch(
            f"SELECT audience, newest.* FROM unnest($1::uuid[]) AS audience CROSS JOIN LATERAL (SELECT {_BODY} "
            "FROM bodies WHERE bodies.audience = audience.audience ORDER BY version DESC LIMIT 1) AS newest",
            wanted,
        )
        for row in rows:
            self._put_body(row)

    def _put_link(self, row: Any) -> None:
        try:
            link = LINK.validate_json(row["secrets"])
        except ValidationError:
            # it was written by a newer program; what is wrong with it may not hold up the others' revocations
            log.error("link.unreadable", link=str(row["id"]))
            return
        card = Card(link=link, audience=row["audience"])
        for secret_hash in (link.secret_hash, *(earlier.secret_hash for earlier in link.earlier_secrets)):
            self._cards[secret_hash] = card
        expiry = min(link.expires_at, link.revoked_at or link.expires_at)
        self._expiries.setdefault(card.audience, {})[link.id] = expiry

    def _put_body(self, row: Any) -> None:
        audience, compressed = row["audience"], row["compressed"]
        before = self._bodies.get(audience)
        if before is not None and before.version >= row["version"]:
            return
        self._drop(audience)
        size = int.from_bytes(compressed[-4:], "little")  # RFC 1952, 2.3.1: ISIZE
        self._bodies[audience] = ShelfBody(
            version=row["version"],
            compressed=compressed,
            answers=answers(row["etag"], row["since"], size, len(compressed)),
        )

    def _drop(self, audience: UUID) -> None:
        body = self._bodies.pop(audience, None)
        if body is not None and (plain := self._plain.pop((audience, body.version), None)) is not None:
            self._plain_bytes -= len(plain)

    def _is_wanted(self, audience: UUID) -> bool:
        """Whether a link opens it, or did of late: a clock that is put right may make one live again."""
        now = self._clock()
        return any(now - EMPTY < expiry for expiry in self._expiries.get(audience, {}).values())

    def _sweep(self) -> None:
        """Let go of what no link opens any more."""
        if time.monotonic() - self._swept_at < SWEEP_SECONDS:
            return
        self._swept_at = time.monotonic()
        for audience in [audience for audience in self._bodies if not self._is_wanted(audience)]:
            self._drop(audience)


async def _heads(driver: Any) -> tuple[int, int]:
    """How far the log and the bodies' places go."""
    row = await driver.fetchrow(_HEADS)
    return row[0], row[1]

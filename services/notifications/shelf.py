"""What the feeds are served from: every link and every newest body, in memory, whatever happens to database or bus.

A link is found by the hash of its secret; what it opens is decided at each GET from its own instants. The shelf follows
the database by two cursors, the log's position for links and the bodies' place, both of which become visible in their
order. It is woken in process and looks every 250 ms otherwise, so a revocation holds everywhere within a second.
"""

import asyncio
import contextlib
import gzip
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from pydantic import TypeAdapter
from sqlalchemy.ext.asyncio import AsyncEngine

from services.notifications.feed_link import FeedLink
from shared.database import driver_of, is_away

POLL_SECONDS = 0.25
PAGE = 200
PLAIN_BYTES_KEPT = 64 * 1024 * 1024

log = structlog.get_logger()

LINK: TypeAdapter[FeedLink] = TypeAdapter(FeedLink)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One link as a GET needs it."""

    link: FeedLink
    audience: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelfBody:
    """The newest body of an audience, compressed. `since` is when it began; `etag` has no quotes."""

    version: int
    etag: str
    since: datetime
    compressed: bytes


class Shelf:
    """Links by secret hash, bodies by audience. Only the event loop's thread may use it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._cards: dict[str, Card] = {}
        self._bodies: dict[UUID, ShelfBody] = {}
        self._plain: OrderedDict[tuple[UUID, int], bytes] = OrderedDict()
        self._plain_bytes = 0
        self._position = 0
        self._place = 0
        self._woken = asyncio.Event()
        self._changed = asyncio.Condition()
        self.rounds = 0

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

    def wake(self) -> None:
        """There may be something new."""
        self._woken.set()

    async def look_again(self, patience: float) -> None:
        """Until the shelf has looked once more from now on, or patience ends."""
        wanted = self.rounds + 2  # the round that is under way may have read before
        self.wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience), self._changed:
                await self._changed.wait_for(lambda: self.rounds >= wanted or self._again())

    async def body_within(self, audience: UUID, patience: float) -> ShelfBody | None:
        """The newest body, waiting for a first one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience), self._changed:
                await self._changed.wait_for(lambda: audience in self._bodies)
        return self._bodies.get(audience)

    async def fill(self) -> None:
        """Read all that there is, once, before anything is served. Raises what the database raises."""
        while await self._refresh():
            pass

    async def run(self) -> None:
        """Follow the database for ever."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS):
                    await self._woken.wait()
            self._woken.clear()
            try:
                while await self._refresh():
                    pass
            except Exception as error:
                if not is_away(error):
                    log.exception("shelf.failed")
                await asyncio.sleep(POLL_SECONDS)
                continue
            self.rounds += 1
            async with self._changed:
                self._changed.notify_all()

    def _again(self) -> bool:
        self._woken.set()
        return False

    async def _refresh(self) -> bool:
        """Take in a page of what is new; returns whether there may be more."""
        async with self._engine.connect() as connection:
            driver = await driver_of(connection)
            events = await driver.fetch(
                "SELECT position, stream FROM events WHERE position > $1 ORDER BY position LIMIT $2",
                self._position,
                PAGE,
            )
            if events:
                links = sorted({event["stream"].split("/")[1] for event in events})
                rows = await driver.fetch("SELECT audience, secrets FROM feed_links WHERE id = ANY($1::uuid[])", links)
                for row in rows:
                    self._put_link(row)
                self._position = events[-1]["position"]
            bodies = await driver.fetch(
                "SELECT audience, version, place, since, etag, compressed FROM bodies WHERE place > $1 "
                "ORDER BY place LIMIT $2",
                self._place,
                PAGE,
            )
            for row in bodies:
                self._put_body(row)
        return len(events) == PAGE or len(bodies) == PAGE

    def _put_link(self, row: Any) -> None:
        link = LINK.validate_json(row["secrets"])
        card = Card(link=link, audience=row["audience"])
        for secret_hash in (link.secret_hash, *(earlier.secret_hash for earlier in link.earlier_secrets)):
            self._cards[secret_hash] = card

    def _put_body(self, row: Any) -> None:
        self._place = row["place"]
        before = self._bodies.get(row["audience"])
        if before is not None and before.version >= row["version"]:
            return
        if before is not None and (old := self._plain.pop((row["audience"], before.version), None)) is not None:
            self._plain_bytes -= len(old)
        self._bodies[row["audience"]] = ShelfBody(
            version=row["version"], etag=row["etag"], since=row["since"], compressed=row["compressed"]
        )

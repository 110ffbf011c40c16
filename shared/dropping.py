"""Dropping: an operator gives up one parked message for good, so that its key goes on without it.

Only the message that stands in its key's way can be dropped: the mark moves past it, and who did it and why is
written down in the same transaction. What was dropped is passed over wherever it is told again, also when its key is
built anew from the producer's log (`shared.marks`): the very message, by key, number and id, and never another one
that comes to stand under its number. The producer's log is asked first what stands there: what only the bus brought
needs no dropping.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import httpx
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.key_healing import KeyHealing
from shared.marks import Mark, Marks
from shared.message_log import Page
from shared.messages import Undecodable
from shared.parking import GAP, KEY_WAITS, NOT_APPLIED, wait_again
from shared.rebuilding import EpochBehind
from shared.redrive import NAMED, TYPED
from shared.taking import Taking

LONGEST = 500
"""Characters of a reason or a name."""

_FIND = f"""
SELECT id, topic, key, sequence, message_id, slug, announced_at IS NOT NULL AS announced, {TYPED} AS type
FROM parked_messages WHERE {NAMED} = :name AND (CAST(:topic AS text) IS NULL OR topic = :topic)
"""
_DROP = f"""
WITH gone AS (DELETE FROM parked_messages WHERE id = :id RETURNING *)
INSERT INTO dropped_messages
    (topic, key, sequence, message_id, type, number, "offset", slug, attempts, parked_at, dropped_by, reason)
SELECT topic, key, sequence, message_id, {TYPED}, number, "offset", CAST(:slug AS text), attempts, parked_at, :by,
    :reason FROM gone
"""
_FIRST = f"""
SELECT {NAMED} FROM parked_messages WHERE topic = :topic AND key = :key AND sequence IS NOT NULL
ORDER BY sequence LIMIT 1
"""
_GOT_ON = "it was tried or dropped at this very moment: look again with --dry-run"


class CannotDrop(Exception):
    """It may not be dropped; the text is one readable line that says why."""


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """What was dropped; `sequence` is None for what nobody could read."""

    topic: str
    key: str
    sequence: int | None
    type: str | None


@dataclass(frozen=True, kw_only=True)
class Dropping:
    """Drops parked messages of one service's database. `by` and `reason` are kept with them."""

    engine: AsyncEngine
    taking: Taking
    keys: KeyHealing
    by: str
    reason: str

    async def look(self, name: str, topic: str | None) -> dict[str, Any]:
        """The parked message of this name, if it may be dropped; nothing is changed. Raises `CannotDrop`."""
        async with self.engine.connect() as connection:
            rows = (await connection.execute(text(_FIND), {"name": name, "topic": topic})).mappings().all()
        if len(rows) != 1:
            many = f"{len(rows)} parked messages are called {name!r}: say --topic"
            raise CannotDrop(many if rows else f"no parked message is called {name!r}: --dry-run says what is")
        found = dict(rows[0])
        if found["slug"] == KEY_WAITS or (found["slug"] == GAP and not await self._is_next(found)):
            first = await self._first(found)
            raise CannotDrop(f"{name} waits for what comes before it in its key; what is parked first there is {first}")
        if not found["announced"] and found["slug"] != GAP:
            raise CannotDrop(f"{name} is not announced on the dead-letter topic yet: the service's relay does that")
        return found

    async def drop(self, name: str, topic: str | None) -> Dropped:
        """Drop it, and let its key go on. Raises `CannotDrop`, and nothing is done."""
        found = await self.look(name, topic)
        if found["sequence"] is None:
            async with self.engine.begin() as connection:
                await self._write_down(connection, found)
        else:
            await self._pass_over(found)
            # it is dropped all the same, and services go on with its key
            with contextlib.suppress(httpx.HTTPError, EpochBehind, Undecodable):
                await self.keys.heal(found["topic"], found["key"])
        return Dropped(**{field: found[field] for field in ("topic", "key", "sequence", "type")})

    async def _pass_over(self, found: dict[str, Any]) -> None:
        topic, key, sequence = found["topic"], found["key"], found["sequence"]
        page = await self._page_before(found)
        if not page.messages or (page.messages[0].sequence, page.messages[0].id) != (sequence, found["message_id"]):
            raise CannotDrop("its producer's log has another message in its place: redrive takes that one")
        async with self.engine.begin() as connection:
            marks = Marks(connection, topic)
            await marks.lock([key])
            stands = {Mark(page.epoch, sequence - 1, waits) for waits in (NOT_APPLIED, GAP)}
            if marks.of(key) not in stands or marks.epoch != page.epoch:
                raise CannotDrop(_GOT_ON)
            await self._write_down(connection, found)
            marks.advance(key, sequence)
            marks.wait(key, GAP)
            await wait_again(connection, topic, key)
            await marks.save()
        self.taking.committed(topic, [(page.messages[0], "dropped")])

    async def _page_before(self, found: dict[str, Any]) -> Page:
        try:
            return await self.keys.told(found["topic"], found["key"], found["sequence"] - 1)
        except KeyError as error:
            raise CannotDrop(f"this program does not hear {found['topic']}") from error
        except EpochBehind as error:
            raise CannotDrop(str(error)) from error
        except Undecodable as error:
            raise CannotDrop(f"what its producer's message log has there cannot be read ({error.slug})") from error
        except httpx.HTTPError as error:
            said = f"its producer's message log does not answer ({type(error).__name__})"
            raise CannotDrop(f"{said}, and what stands there is to be seen first") from error

    async def _write_down(self, connection: AsyncConnection, found: dict[str, Any]) -> None:
        # a key that was being tried has another slug meanwhile: what is kept is what it was parked for
        slug = NOT_APPLIED if found["slug"] == GAP else found["slug"]
        values = {"id": found["id"], "slug": slug, "by": self.by, "reason": self.reason}
        if (await connection.execute(text(_DROP), values)).rowcount != 1:
            raise CannotDrop(_GOT_ON)

    async def _is_next(self, found: dict[str, Any]) -> bool:
        """Whether it is the next of its key though that waits for a gap: it is being tried, or ended who tried it."""
        mark = await self.keys.mark(found["topic"], found["key"])
        return mark.sequence + 1 == int(found["sequence"])

    async def _first(self, found: dict[str, Any]) -> Any:
        async with self.engine.connect() as connection:
            return await connection.scalar(text(_FIRST), {"topic": found["topic"], "key": found["key"]})

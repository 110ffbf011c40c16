"""The message log over HTTP: the very messages that went to the bus, for who has no Kafka or missed one.

The server's part is one router a service; the client's part is for the plumbing alone (`shared.healer`).
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import httpx
from fastapi import APIRouter, Query
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.call import Call, needs
from shared.database import driver_of
from shared.errors import NotFound
from shared.event_store import EventStore, StoredEvent
from shared.messages import KEY_LENGTH, Message, read_structured, structured, topic_of
from shared.openapi import QUERY, problems

PAGE = 500
TIMEOUT_SECONDS = 5.0

_NO_NUL = r"^[^\x00]*$"

BodyOf = Callable[[StoredEvent, bool], bytes]


def message_log_router(service: str, engine: AsyncEngine, store: EventStore, body_of: BodyOf) -> APIRouter:
    """`GET /{service}/messages` and `/messages/heads` of one service."""
    router = APIRouter(tags=["message log"], responses=problems(*QUERY))
    open_topics = {topic_of(service, openly=True): True, topic_of(service, openly=False): False}

    def is_open(topic: str) -> bool:
        if topic not in open_topics:
            raise NotFound(f"{service} writes to {' and '.join(open_topics)}")
        return open_topics[topic]

    @router.get("/messages", summary="The messages of one key behind a sequence number")
    async def messages(
        _: Annotated[Call, needs("service")],
        topic: Annotated[str, Query(examples=[topic_of(service, openly=True)])],
        key: Annotated[str, Query(description="the partition key: the trip", max_length=KEY_LENGTH, pattern=_NO_NUL)],
        after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    ) -> dict[str, Any]:
        """CloudEvents in structured mode, in order, at most 500; `next` is the `after` of the next page.

        `epoch` rises when this service's database was restored to an earlier point: all that was read before counts
        for nothing then.
        """
        openly = is_open(topic)
        epoch, events = await _events(engine, store, key, after=after, openly=openly)
        items = [structured(event, body_of(event, openly), service, openly=openly, epoch=epoch) for event in events]
        return {"items": items, "next": int(items[-1]["sequence"]) if len(items) == PAGE else None, "epoch": epoch}

    @router.get("/messages/heads", summary="The last sequence number of each key")
    async def heads(
        _: Annotated[Call, needs("service")],
        topic: Annotated[str, Query(description="the open one unless given")] = topic_of(service, openly=True),
        after: Annotated[
            str, Query(description="the last key of the page before", max_length=KEY_LENGTH, pattern=_NO_NUL)
        ] = "",
    ) -> dict[str, Any]:
        """By key, at most 500, and the `epoch`; a key that the topic has never carried does not stand here."""
        epoch, items = await _heads(engine, after=after, openly=is_open(topic))
        return {"items": items, "next": items[-1]["key"] if len(items) == PAGE else None, "epoch": epoch}

    return router


class Page(NamedTuple):
    """A page of a key's messages, in order, and the epoch of the log that they are from."""

    epoch: int
    messages: list[Message]


class Heads(NamedTuple):
    """A page of the last sequence number of each key, and the epoch of the log that they are from."""

    epoch: int
    heads: list[tuple[str, int]]


@dataclass(frozen=True, kw_only=True)
class MessageLog:
    """Another service's message log. Raises `httpx.HTTPError` when it is away, and `Undecodable`."""

    client: httpx.AsyncClient
    service: str
    base: str
    token: str

    async def after(self, topic: str, key: str, sequence: int) -> Page:
        """The next page of a key's messages, in order; empty at the end."""
        page = await self._get("/messages", {"topic": topic, "key": key, "after": str(sequence)})
        return Page(page["epoch"], [read_structured(item) for item in page["items"]])

    async def heads(self, topic: str) -> AsyncIterator[Heads]:
        """The last sequence number of every key, a page at a time."""
        after: str | None = ""
        while after is not None:
            page = await self._get("/messages/heads", {"topic": topic, "after": after})
            yield Heads(page["epoch"], [(item["key"], item["sequence"]) for item in page["items"]])
            after = page.get("next")

    async def _get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        answer = await self.client.get(
            f"{self.base}/{self.service}{path}",
            params=query,
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=TIMEOUT_SECONDS,
        )
        answer.raise_for_status()
        with contextlib.suppress(ValueError):
            document = answer.json()
            # a producer of the first release does not tell its epoch, and has never been at another one
            if (
                isinstance(document, dict)
                and isinstance(document.get("items"), list)
                and isinstance(document.setdefault("epoch", 1), int)
            ):
                return document
        raise httpx.DecodingError(f"{self.base} answers with something else than a message log", request=answer.request)


async def _events(
    engine: AsyncEngine, store: EventStore, key: str, *, after: int, openly: bool
) -> tuple[int, Sequence[StoredEvent]]:
    """A page of a key's events, and the epoch that they are told as of."""
    async with engine.connect() as connection:
        driver = await driver_of(connection)
        # before the events: what was read before a restore must never be told as of the epoch after it
        epoch: int = await driver.fetchval("SELECT epoch FROM relay_cursor")
        return epoch, await store.of_key(driver, key, after=after, openly=openly, limit=PAGE)


async def _heads(engine: AsyncEngine, *, after: str, openly: bool) -> tuple[int, list[dict[str, Any]]]:
    """A page of keys with their last sequence numbers, and the epoch of the log."""
    column = "open_sequence" if openly else "cleared_sequence"
    async with engine.connect() as connection:
        driver = await driver_of(connection)
        rows = await driver.fetch(
            f"SELECT key, {column} AS sequence FROM heads WHERE key > $1 AND {column} > 0 ORDER BY key LIMIT $2",
            after,
            PAGE,
        )
        epoch: int = await driver.fetchval("SELECT epoch FROM relay_cursor")
    return epoch, [dict(row) for row in rows]

"""A member of a group on the local bus.

A partition is owned through a session advisory lock on the member's own connection, so no two members ever own one at
once, and a dead one owns nothing. Who should own what follows from the list of living members alone: each takes its
share as its locks come free, and gives up what is no longer its own.
"""

import asyncio
import contextlib
import json
import uuid
import weakref
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import structlog
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.bus import BusAway, Delivery, Partition
from shared.bus_holding import Holding

FAILED = (exc.SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""Everything that a database can do to us; a time-out is an OSError. None of it concerns a single record."""

LISTENING: "weakref.WeakSet[LocalSubscription]" = weakref.WeakSet()
"""The members in this process: three services in one have three adapters, and each send wakes the members of all."""

QUERY_SECONDS = 5.0
CLOSE_SECONDS = 2.0

# A killed member's connection is gone at once; the silence counts for one that stands still.
_BEAT = """
WITH beat AS (
    INSERT INTO members (group_name, member, topics, backend, seen_at)
    VALUES ($1, $2, $3, pg_backend_pid(), clock_timestamp())
    ON CONFLICT (group_name, member) DO UPDATE SET backend = excluded.backend, seen_at = excluded.seen_at
)
SELECT member, topics FROM members
WHERE group_name = $1 AND member <> $2 AND seen_at > clock_timestamp() - make_interval(secs => $4)
    AND EXISTS (SELECT FROM pg_stat_get_activity(backend))
UNION ALL SELECT $2, $3
"""
_FORGET = "DELETE FROM members WHERE seen_at < clock_timestamp() - interval '1 hour'"
_LEAVE = "DELETE FROM members WHERE group_name = $1 AND member = $2"
_TAKE = """
SELECT p.topic, p.number FROM unnest($2::text[], $3::int[]) AS p (topic, number)
WHERE pg_try_advisory_lock(hashtextextended($1 || '/' || p.topic || '/' || p.number, 0))
"""
_LET_GO = """
SELECT pg_advisory_unlock(hashtextextended($1 || '/' || p.topic || '/' || p.number, 0))
FROM unnest($2::text[], $3::int[]) AS p (topic, number)
"""
_PARTITIONS = "SELECT name, partitions FROM topics WHERE name = ANY($1)"
_HEADS = "SELECT topic, number, next_offset FROM heads WHERE topic = ANY($1)"
_READ = """
SELECT "offset", key, headers, body FROM records WHERE topic = $1 AND number = $2 AND "offset" >= $3
ORDER BY "offset" LIMIT $4
"""

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class LocalTimes:
    """In seconds. A member that was silent for `expiry` counts as gone; `patience` is what `on_revoked` gets."""

    poll: float = 0.1
    heartbeat: float = 1.0
    expiry: float = 5.0
    patience: float = 10.0
    send: float = 10.0


class LocalSubscription:
    """See `shared.bus.Subscription`."""

    def __init__(
        self, engine: AsyncEngine, group: str, topics: Sequence[str], holding: Holding, times: LocalTimes
    ) -> None:
        self._engine = engine
        self._group = group
        self._topics = list(topics)
        self._holding = holding
        self._times = times
        self._member = str(uuid.uuid4())
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._severed = asyncio.Event()
        self._line = asyncio.Lock()  # a connection does one thing at a time
        self._driver: asyncpg.Connection[Any] | None = None
        self._locked: frozenset[Partition] = frozenset()
        self._leaving: dict[asyncio.Task[None], frozenset[Partition]] = {}
        self._next: dict[Partition, int] = {}
        self._turn = 0
        self._keeper: asyncio.Task[None] | None = None

    async def join(self) -> None:
        """Connect and take what is free of our share. Raises `BusAway`."""
        try:
            await self._connect()
            await self._ask(_FORGET)
            await self._beat()
        except FAILED as error:
            self._cut()
            raise BusAway(said(error)) from error
        self._keeper = asyncio.create_task(self._keep())

    def wake(self) -> None:
        """Something was sent in this process."""
        if self._loop is asyncio.get_running_loop():
            self._woken.set()

    async def fetch(self, limit: int, wait: float) -> Mapping[Partition, Sequence[Delivery]]:
        """See `shared.bus.Subscription`."""
        deadline = self._loop.time() + wait
        while True:
            self._woken.clear()
            self._next.update(await self._holding.settle())
            try:
                found = await self._read(limit)
            except FAILED:
                self._cut()
                found = {}
            left = deadline - self._loop.time()
            if found or left <= 0:
                return found
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, self._times.poll)):
                    await self._woken.wait()

    def assigned(self) -> frozenset[Partition]:
        """See `shared.bus.Subscription`."""
        return self._holding.held()

    async def ends(self) -> Mapping[Partition, int]:
        """See `shared.bus.Subscription`."""
        try:
            heads = await self._heads()
        except FAILED as error:
            self._cut()
            raise BusAway(said(error)) from error
        return {partition: heads[partition] for partition in self._holding.held()}

    def seek(self, partition: Partition, offset: int) -> None:
        """See `shared.bus.Subscription`. A partition that has gone is left alone."""
        if partition in self._holding.held():
            self._next[partition] = offset

    async def report(self, partition: Partition, next_offset: int) -> None:
        """There is nobody to tell: the offsets stand in the caller's own database, on the same machine."""

    async def close(self) -> None:
        """See `shared.bus.Subscription`."""
        LISTENING.discard(self)
        tasks = [*self._leaving, *([self._keeper] if self._keeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(*FAILED):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._ask(_LEAVE, self._group, self._member)
                await self._ask("SELECT pg_advisory_unlock_all()")
        self._cut()

    async def _keep(self) -> None:
        """Beat, and connect anew whenever the connection has gone. With it went the locks, and so the partitions."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._times.heartbeat):
                    await self._severed.wait()
            self._severed.clear()
            try:
                if self._driver is None or self._driver.is_closed():
                    self._cut()
                    lost, self._locked = self._locked, frozenset()
                    await self._holding.lose(lost)
                    await self._connect()
                await self._beat()
            except FAILED as error:
                log.warning("bus.away", group=self._group, error=said(error))
                self._cut()
                self._severed.clear()

    async def _beat(self) -> None:
        others = await self._ask(_BEAT, self._group, self._member, self._topics, self._times.expiry)
        sizes = await self._ask(_PARTITIONS, self._topics)
        share: set[Partition] = set()
        for name, partitions in sizes:
            listeners = sorted(other["member"] for other in others if name in other["topics"])
            share.update(self._share(name, partitions, listeners))
        leaving = frozenset().union(*self._leaving.values())
        if surplus := self._locked - share - leaving:
            task = asyncio.create_task(self._give_up(surplus))
            self._leaving[task] = surplus
            task.add_done_callback(self._leaving.pop)
        if lacking := share - self._locked:
            taken = await self._ask(_TAKE, self._group, *_columns(lacking))
            gained = frozenset(Partition(row["topic"], row["number"]) for row in taken)
            self._locked |= gained
            self._holding.gain(gained)
            if gained:
                self._woken.set()

    def _share(self, topic: str, partitions: int, members: Sequence[str]) -> Iterable[Partition]:
        # shifted by topic, so that small topics do not all fall to the first member
        shift = zlib.crc32(topic.encode())
        mine = members.index(self._member)
        return (Partition(topic, number) for number in range(partitions) if (number + shift) % len(members) == mine)

    async def _give_up(self, partitions: frozenset[Partition]) -> None:
        driver = self._driver
        await self._holding.lose(partitions)
        if driver is not self._driver:
            return  # the locks went with the old connection; those of the new one are none of this task's
        try:
            await self._ask(_LET_GO, self._group, *_columns(partitions))
            self._locked -= partitions
        except FAILED:
            self._cut()

    async def _read(self, limit: int) -> dict[Partition, Sequence[Delivery]]:
        found: dict[Partition, Sequence[Delivery]] = {}
        held = sorted(self._holding.held())
        heads = await self._heads() if held else {}
        self._turn += 1  # begin with another one each time: a busy partition must not starve the others
        for partition in held[self._turn % len(held) :] + held[: self._turn % len(held)] if held else []:
            if self._next[partition] > heads[partition]:
                self._next[partition] = 0
            if self._next[partition] == heads[partition] or limit <= 0:
                continue
            rows = await self._ask(_READ, *partition, self._next[partition], limit)
            if partition not in self._holding.held():
                continue
            if rows:
                found[partition] = [delivery_of(partition, row) for row in rows]
            limit -= len(rows)
            self._next[partition] = rows[-1]["offset"] + 1 if rows else heads[partition]
        return found

    async def _heads(self) -> dict[Partition, int]:
        rows = await self._ask(_HEADS, self._topics)
        return {Partition(row["topic"], row["number"]): row["next_offset"] for row in rows}

    async def _ask(self, query: str, *values: object) -> list[Any]:
        async with self._line:
            if self._driver is None:
                raise ConnectionError("not connected")
            return await self._driver.fetch(query, *values, timeout=QUERY_SECONDS)

    async def _connect(self) -> None:
        # outside the pool: the locks must not be handed on with the connection
        _, options = self._engine.dialect.create_connect_args(self._engine.url)
        settings = {"application_name": f"attache-bus-{self._group}", "synchronous_commit": "off"}
        self._driver = await asyncpg.connect(**{"timeout": QUERY_SECONDS, **options, "server_settings": settings})

    def _cut(self) -> None:
        if self._driver is not None:
            self._driver.terminate()
            self._severed.set()
        self._driver = None


def said(error: BaseException) -> str:
    """One line for the log."""
    return f"the bus's database: {type(error).__name__}: {error}".splitlines()[0]


def _columns(partitions: Iterable[Partition]) -> tuple[list[str], list[int]]:
    ordered = sorted(partitions)
    return [partition.topic for partition in ordered], [partition.number for partition in ordered]


def delivery_of(partition: Partition, row: Any) -> Delivery:
    """A row of `records`, as the driver gives it."""
    return Delivery(
        topic=partition.topic,
        number=partition.number,
        offset=row["offset"],
        key=row["key"],
        headers=tuple((name, value.encode()) for name, value in json.loads(row["headers"])),
        body=row["body"],
    )

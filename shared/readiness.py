"""Whether one service does its work: what stands still, in words, and how far it is behind, in numbers.

`/readyz` and `/metrics` tell the same finding. A process that is not ready is not to be ended, and not to be left out
by a proxy either: it answers from what it has, and feeds keep their last bodies. That is what `/healthz` is for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.background import heed_cancellation
from shared.clock import clock_behind
from shared.consumer import Consumer
from shared.database import is_away, pool_use
from shared.healer import Healer
from shared.migrations import ahead, behind, current_and_head, is_ahead
from shared.relay import Relay
from shared.settings import ROLES, Role

STALLED_SECONDS = 8.0
"""A relay or a consumer that has something to do and has not got on for so long stands still: said within 10 s."""
LAG_SECONDS = 300.0
"""A consumer that moves, and is further behind than this, is reported too."""
WATCH_SECONDS = 1.0
STORE_SECONDS = 3.0
"""So long a finding waits for the database, a connection of its pool included."""
PRODUCERS_SECONDS = 3.0

Part = Literal["store", "pool", "schema", "relay", "consumer", "lag"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a service's own database says. `age` is the oldest unpublished event's, in seconds; `size` is in bytes;
    `clock_behind` is by how many seconds this machine's clock is before the newest event, None where it is not.

    `parked` counts messages by topic, `waiting_keys` keys by topic and by what they wait for.
    """

    schema: str | None
    position: int
    epoch: int
    unpublished: int
    age: float
    catching_up: int
    size: int
    clock_behind: int | None
    parked: Mapping[str, int]
    waiting_keys: Mapping[tuple[str, str], int]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One look at everything. `reasons` are sentences; `unheard` is None where a producer does not answer.

    `error` is why there is no `standing`.
    """

    reasons: Mapping[Part, str]
    standing: Standing | None = None
    error: BaseException | None = None
    waiting: int = 0
    unheard: int | None = None

    @property
    def ready(self) -> bool:
        return not self.reasons


@dataclass(kw_only=True)
class Readiness:
    """Looks at one service. `waiting` tells how much derived work (rendering) is still to be done."""

    name: str
    engine: AsyncEngine
    migrations: str
    relay: Relay
    consumer: Consumer
    healer: Healer
    roles: frozenset[Role] = frozenset(ROLES)
    """What this process does; what another one does is for that one to report."""
    waiting: Callable[[], Awaitable[int]] | None = None
    pools: dict[str, AsyncEngine] = field(default_factory=dict)
    """The engines whose connections can run out, by what they are for."""
    stalled: float = STALLED_SECONDS
    lag: float = LAG_SECONDS
    stopping: bool = False
    """It was asked to end, and others take over."""
    _cursor: tuple[int, float] = (-1, 0.0)
    """The relay's position, and the (monotonic) moment at which it was first seen there."""

    async def watch(self) -> None:
        """See for ever what moves, so that whoever asks for the first time is told at once what stands still."""
        while True:
            try:
                async with asyncio.timeout(STORE_SECONDS), self.engine.connect() as connection:
                    position = await connection.scalar(text("SELECT position FROM relay_cursor"))
                self._stands(position or 0)
                if self.waiting is not None:
                    await self.waiting()
            except Exception as error:
                heed_cancellation()
                if not is_away(error):
                    raise
            await asyncio.sleep(WATCH_SECONDS)

    async def find(self) -> Finding:
        """Look. The relay's cursor is judged, whichever process leads: a backlog that shrinks is no fault."""
        full = [name for name, engine in self.pools.items() if _is_full(engine)]
        try:
            async with asyncio.timeout(STORE_SECONDS):
                async with self.engine.connect() as connection:
                    standing, head = await self._standing(connection)
                waiting = await self.waiting() if self.waiting is not None else 0
        except Exception as error:  # noqa: BLE001  whatever it is, it is what is reported
            heed_cancellation()
            return Finding(reasons=self._without_store(error, full) | self._heard(), error=error)
        reasons = {**self._schema(standing, head), **self._relayed(standing), **self._heard()}
        return Finding(reasons=reasons, standing=standing, waiting=waiting, unheard=await self._unheard())

    async def report(self) -> dict[str, Any]:
        """The finding as `/readyz` tells it."""
        if self.stopping:
            said = {"stopping": "it was asked to stop; it serves on for a moment, others take over"}
            return {"service": self.name, "ready": False, "reasons": said}
        finding = await self.find()
        report: dict[str, Any] = {"service": self.name, "ready": finding.ready, "reasons": dict(finding.reasons)}
        report |= {"relay": self.relay.state.last_error, "consumer": self.consumer.state.last_error}
        if finding.standing is None:
            return report | {"store": type(finding.error).__name__}
        standing = finding.standing
        report |= {"schema": standing.schema, "epoch": standing.epoch, "unpublished": standing.unpublished}
        report |= {"parked": sum(standing.parked.values()), "catching_up": standing.catching_up}
        report |= {"clock_behind": standing.clock_behind}
        return report | {"waiting": finding.waiting, "unheard": finding.unheard}

    async def _standing(self, connection: AsyncConnection) -> tuple[Standing, str | None]:
        current, head = await current_and_head(self.migrations, connection)
        row = (await connection.execute(text(_STANDING))).one()._asdict()
        parked = (await connection.execute(text(_PARKED))).all()
        keys = (await connection.execute(text(_WAITING_KEYS))).all()
        standing = Standing(
            **row,
            schema=current,
            clock_behind=await clock_behind(connection),
            parked={one.topic: one.messages for one in parked},
            waiting_keys={(topic, waits_for): count for topic, waits_for, count in keys},
        )
        return standing, head

    async def _unheard(self) -> int | None:
        """A producer that is away says nothing about this service."""
        try:
            async with asyncio.timeout(PRODUCERS_SECONDS):
                return await self.healer.lag()
        except Exception:  # noqa: BLE001  it is not this service's fault, and the healer logs it
            heed_cancellation()
            return None

    def _stands(self, position: int) -> float:
        """For how many seconds the relay's cursor has been seen at a position."""
        if self._cursor[0] != position:
            self._cursor = (position, time.monotonic())
        return time.monotonic() - self._cursor[1]

    def _schema(self, standing: Standing, head: str | None) -> dict[Part, str]:
        if standing.schema == head:
            return {}
        if is_ahead(self.migrations, standing.schema):
            return {"schema": ahead(standing.schema, head)}
        return {"schema": behind(standing.schema, head, self.name)}

    def _relayed(self, standing: Standing) -> dict[Part, str]:
        stands = self._stands(standing.position)
        if "relay" not in self.roles or min(standing.age, stands) < self.stalled:
            return {}
        error = self.relay.state.last_error
        leads = "this process leads" if self.relay.state.leads else "this process does not lead"
        return {
            "relay": f"the relay has stood at position {standing.position} for {stands:.0f} s: {standing.unpublished} "
            f"events wait, the oldest for {standing.age:.0f} s ({leads}{f', {error}' if error else ''})"
        }

    def _heard(self) -> dict[Part, str]:
        if "consumer" not in self.roles:
            return {}
        state = self.consumer.state
        stands = time.monotonic() - state.healthy_at
        error = f" ({state.last_error})" if state.last_error else ""
        if stands == float("inf"):
            return {"consumer": f"the consumer has not come to any partition's end or message yet{error}"}
        if stands >= self.stalled:
            held = f"with {len(state.assigned)} partitions assigned"
            return {"consumer": f"a partition has stood still for {stands:.0f} s, {held}{error}"}
        late = [(seconds, topic) for topic, seconds in self.consumer.lag.seconds().items() if seconds > self.lag]
        if not late:
            return {}
        return {"lag": ", ".join(f"the consumer is {seconds:.0f} s behind on {topic}" for seconds, topic in late)}

    def _without_store(self, error: Exception, full: list[str]) -> dict[Part, str]:
        full = [name for name in full if _is_full(self.pools[name])]
        if not full:
            return {"store": f"the database does not answer ({type(error).__name__})"}
        counts = ", ".join("{} of {} ({})".format(*pool_use(self.pools[name]), name) for name in full)
        return {"pool": f"the database's connections are all in use: {counts}"}


def _is_full(engine: AsyncEngine) -> bool:
    in_use, limit = pool_use(engine)
    return in_use >= limit


_STANDING = """
SELECT position, epoch,
    (SELECT count(*) FROM events WHERE events.position > relay_cursor.position) AS unpublished,
    coalesce((SELECT extract(epoch FROM clock_timestamp() - recorded_at)::float FROM events
        WHERE events.position > relay_cursor.position ORDER BY events.position LIMIT 1), 0) AS age,
    (SELECT count(*) FROM consumer_offsets WHERE behind) AS catching_up,
    pg_database_size(current_database()) AS size
FROM relay_cursor
"""
_PARKED = "SELECT topic, count(*) AS messages FROM parked_messages GROUP BY topic"
_WAITING_KEYS = """
SELECT topic, waits_for, count(*) FROM consumer_marks WHERE waits_for IS NOT NULL GROUP BY topic, waits_for
"""

"""What every service runs besides its routes: relay, consumer, healer, announcements, and the probes that tell of them.

`Service` is made by a service's `main.create_app` with all that differs between services given by hand.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, get_args

import httpx
import structlog
from fastapi import APIRouter, FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.background import heed_cancellation
from shared.bus import Bus, Topic
from shared.command import Desk, forget_old_answers
from shared.consumer import Apply, Consumer, ConsumerTimes, Outcome
from shared.contracts import MESSAGES
from shared.database import is_away
from shared.dead_letters import announce_parked, dead_letter_topic
from shared.event_store import EventStore, StoredEvent
from shared.healer import Healer
from shared.http import Call, needs
from shared.message_log import BodyOf, MessageLog, message_log_router
from shared.messages import record, topic_of
from shared.migrations import current_and_head
from shared.openapi import problems
from shared.relay import Relay

FORGET_SECONDS = 3600.0
STALLED_SECONDS = 10.0
"""A relay or a consumer that has something to do and has not got on for so long is reported as not ready."""
END_SECONDS = 15.0
"""So long a background task may take to end: an adapter of the bus lets go within a few seconds, or is left."""

log = structlog.get_logger()

Background = Callable[[], Coroutine[Any, Any, None]]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
F = TypeVar("F", GaugeMetricFamily, CounterMetricFamily)


@dataclass(kw_only=True, eq=False)
class Service:
    """One service's plumbing, wired. `extra` are its own background tasks, by name."""

    name: str
    engine: AsyncEngine
    store: EventStore
    desk: Desk
    bus: Bus
    topics: Sequence[Topic]
    """The topics that this service writes to."""
    relay: Relay
    consumer: Consumer
    healer: Healer
    client: httpx.AsyncClient
    body_of: BodyOf
    migrations: str
    extra: dict[str, Background] = field(default_factory=dict)
    waiting: Callable[[], Awaitable[int]] | None = None
    """How much derived work is still to be done (rendering), for readiness."""
    stalled: float = STALLED_SECONDS
    _cursor: tuple[int, float] = (-1, 0.0)
    """The relay's position, and the (monotonic) moment at which it was first seen there."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run all background tasks; on the way out each is cancelled and awaited, and connections are closed."""
        work: dict[str, Background] = {
            "relay": self.relay.run,
            "consumer": self.consumer.run,
            "healer": self.healer.run,
            "dead-letters": lambda: announce_parked(self.name, self.engine, self.bus),
            "forget": self._forget,
            **self.extra,
        }
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.engine.dispose)
            stack.push_async_callback(self.bus.close)
            stack.push_async_callback(self.client.aclose)
            tasks = [asyncio.create_task(self._guard(*one), name=f"{self.name}.{one[0]}") for one in work.items()]
            stack.push_async_callback(_end, tasks)
            yield

    def router(self) -> APIRouter:
        """The probes and the message log; mounted under the service's name."""
        router = APIRouter(prefix=f"/{self.name}")
        router.include_router(message_log_router(self.name, self.engine, self.store, self.body_of))

        @router.get("/healthz", tags=["probes"], summary="Whether the process answers")
        async def healthz() -> dict[str, str]:
            return {"status": "alive"}

        @router.get(
            "/readyz",
            tags=["probes"],
            summary="Whether the service does its work, and how far it is behind",
            responses={503: {"description": "It does not; the report says what stands still."}},
        )
        async def readyz(response: Response) -> dict[str, Any]:
            report = await self.readiness()
            response.status_code = 200 if report["ready"] else 503
            return report

        @router.get(
            "/metrics",
            tags=["probes"],
            summary="Prometheus metrics",
            responses=problems("token-missing", "token-unknown", "scope-missing"),
        )
        async def metrics(_: Annotated[Call, needs("operator")]) -> Response:
            return Response(generate_latest(self._registry()), media_type=CONTENT_TYPE_LATEST)

        return router

    async def readiness(self) -> dict[str, Any]:
        """What is behind, in counts. `ready` is false where the schema is another or relay or consumer stands still.

        The relay does when something has been unpublished, and the cursor has been seen at the same position, for
        `stalled` seconds. The cursor's row is judged, whichever process leads: a backlog that shrinks is no fault.
        """
        report: dict[str, Any] = {"service": self.name, "ready": False}
        report |= {"relay": self.relay.state.last_error, "consumer": self.consumer.state.last_error}
        try:
            async with asyncio.timeout(3), self.engine.connect() as connection:
                current, head = await current_and_head(self.migrations, connection)
                row = (await connection.execute(text(_BEHIND))).one()
            report |= {"schema": current, "unpublished": row.unpublished, "parked": row.parked}
            report["catching_up"] = row.catching_up
            report["waiting"] = await self.waiting() if self.waiting is not None else 0
            relayed = min(row.age, self._stands(row.position)) < self.stalled
            heard = time.monotonic() - self.consumer.state.healthy_at < self.stalled
            report["ready"] = current == head and relayed and heard
        except Exception as error:  # noqa: BLE001  whatever it is, it is what is reported
            report["store"] = type(error).__name__
            return report
        report["unheard"] = None  # a producer that is away says nothing about this service
        with contextlib.suppress(Exception):
            async with asyncio.timeout(5):
                report["unheard"] = await self.healer.lag()
        return report

    def _stands(self, position: int) -> float:
        """For how many seconds the relay's cursor has been seen at a position."""
        if self._cursor[0] != position:
            self._cursor = (position, time.monotonic())
        return time.monotonic() - self._cursor[1]

    async def _guard(self, name: str, work: Background) -> None:
        while True:
            try:
                await work()
                return
            except Exception:
                heed_cancellation()
                log.exception("task.failed", service=self.name, task=name)
                await asyncio.sleep(1)

    async def _forget(self) -> None:
        while True:
            try:
                await forget_old_answers(self.engine)
            except Exception as error:
                if not is_away(error):
                    raise
            await asyncio.sleep(FORGET_SECONDS)

    def _registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(self)
        return registry

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks a collector for."""
        relay, consumer = self.relay.state, self.consumer.state
        for name, gauge in {
            "relay_leads": int(relay.leads),
            "relay_position": relay.position,
            "consumer_assigned_partitions": len(consumer.assigned),
        }.items():
            yield _labelled(GaugeMetricFamily(f"attache_{name}", _said(name), labels=["service"]), self.name, gauge)
        for name, count in {
            "relay_records_sent": relay.sent,
            "relay_restarts": relay.restarts,
            **{f"consumer_{outcome}": consumer.counts.get(outcome, 0) for outcome in OUTCOMES},
            "consumer_restarts": consumer.restarts,
            "healer_healed": self.healer.healed,
        }.items():
            yield _labelled(CounterMetricFamily(f"attache_{name}", _said(name), labels=["service"]), self.name, count)


_BEHIND = """
SELECT position,
    (SELECT count(*) FROM events WHERE events.position > relay_cursor.position) AS unpublished,
    coalesce((SELECT extract(epoch FROM clock_timestamp() - recorded_at)::float FROM events
        WHERE events.position > relay_cursor.position ORDER BY events.position LIMIT 1), 0) AS age,
    (SELECT count(*) FROM parked_messages) AS parked,
    (SELECT count(*) FROM consumer_offsets WHERE behind) AS catching_up
FROM relay_cursor
"""


def make_service(
    *,
    name: str,
    engine: AsyncEngine,
    store: EventStore,
    bus: Bus,
    project: Any,
    openly: Callable[[Any], bool],
    body_of: BodyOf,
    apply: Mapping[str, Mapping[str, Apply]],
    bases: Mapping[str, str],
    token: str,
    migrations: str,
    client: httpx.AsyncClient | None = None,
    topic: Topic | None = None,
    applied: Callable[[], None] = lambda: None,
    times: ConsumerTimes | None = None,
    committed: Sequence[Callable[[], None]] = (),
) -> Service:
    """Wire one service's plumbing. `apply` holds, by the producing service, what each type of its messages does.

    `topic` says what every topic of ours is like, whatever its name there. The client is closed with the service.
    """
    # proxies of the environment are passed over: these are our own addresses
    client = client or httpx.AsyncClient(trust_env=False)
    like = topic or Topic(name="any")

    def to_records(event: StoredEvent, epoch: int) -> Sequence[Any]:
        topics = (False, True) if event.open_sequence is not None else (False,)
        return [record(event, body_of(event, openly), name, openly=openly, epoch=epoch) for openly in topics]

    def after_commit() -> None:
        for woken in (relay.wake, *committed):
            woken()

    def called(topic_name: str, partitions: int = like.partitions) -> Topic:
        return dataclasses.replace(like, name=topic_name, partitions=partitions)

    cleared = {producer: topic_of(producer, openly=False) for producer in apply}
    topics = [*(called(topic_of(name, openly=openly)) for openly in (True, False)), called(dead_letter_topic(name), 1)]
    relay = Relay(service=name, engine=engine, store=store, bus=bus, topics=topics, to_records=to_records)
    consumer = Consumer(
        group=f"attache.{name}",
        engine=engine,
        bus=bus,
        topics=[called(topic_name) for topic_name in cleared.values()],
        apply={versioned(type_): handler for handlers in apply.values() for type_, handler in handlers.items()},
        applied=applied,
        times=times,
    )
    logs = {
        topic_name: MessageLog(client=client, service=producer, base=bases[producer], token=token)
        for producer, topic_name in cleared.items()
    }
    return Service(
        name=name,
        engine=engine,
        store=store,
        desk=Desk(engine=engine, store=store, project=project, openly=openly, committed=after_commit),
        bus=bus,
        topics=topics,
        relay=relay,
        consumer=consumer,
        healer=Healer(consumer, logs),
        client=client,
        body_of=body_of,
        migrations=migrations,
    )


def lifespan_of(service: Service) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    """The lifespan of a service's app: its background tasks live as long as the app serves."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    return lifespan


def versioned(type_: str) -> str:
    """The type and version of a message as a consumer looks them up: those that this program's contracts know."""
    return f"{type_}.v{MESSAGES[type_].VERSION}"


async def _end(tasks: Sequence["asyncio.Task[None]"]) -> None:
    left = set(tasks)
    until = time.monotonic() + END_SECONDS
    while left and time.monotonic() < until:
        for task in left:
            task.cancel()  # again, where one was lost in a connection's own error
        _, left = await asyncio.wait(left, timeout=2.0)
    for task in left:
        log.error("task.hung", task=task.get_name())


def _labelled(family: F, service: str, value: float) -> F:
    family.add_metric([service], value)
    return family


def _said(name: str) -> str:
    return name.replace("_", " ")

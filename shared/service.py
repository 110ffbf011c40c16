"""What every service runs besides its routes: relay, consumer, healer, announcements, and the probes that tell of them.

`Service` is made by a service's `main.create_app` with all that differs between services given by hand.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import structlog
from fastapi import APIRouter, FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.bus import Bus, BusAway, Topic
from shared.command import Desk, forget_old_answers
from shared.consumer import Apply, Consumer
from shared.database import is_away
from shared.dead_letters import announce_parked, dead_letter_topic
from shared.event_store import EventStore, StoredEvent
from shared.healer import Healer
from shared.message_log import BodyOf, MessageLog, message_log_router
from shared.messages import record, topic_of
from shared.migrations import current_and_head
from shared.relay import Relay

FORGET_SECONDS = 3600.0
TOPICS_RETRY_SECONDS = 1.0

log = structlog.get_logger()

Background = Callable[[], Coroutine[Any, Any, None]]


@dataclass(kw_only=True)
class Service:
    """One service's plumbing, wired. `extra` are its own background tasks, by name."""

    name: str
    engine: AsyncEngine
    store: EventStore
    desk: Desk
    bus: Bus
    relay: Relay
    consumer: Consumer
    healer: Healer
    body_of: BodyOf
    migrations: str
    partitions: int = 8
    extra: dict[str, Background] = field(default_factory=dict)
    waiting: Callable[[], Awaitable[int]] | None = None
    """How much derived work is still to be done (rendering), for readiness."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run all background tasks; on the way out each is cancelled and awaited, and connections are closed."""
        tasks = [
            asyncio.create_task(self._guard(name, work), name=f"{self.name}.{name}")
            for name, work in {
                "relay": self._with_topics(self.relay.run),
                "consumer": self._with_topics(self.consumer.run),
                "healer": self.healer.run,
                "dead-letters": lambda: announce_parked(self.name, self.engine, self.bus),
                "forget": self._forget,
                **self.extra,
            }.items()
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.bus.close()
            await self.engine.dispose()

    def topics(self) -> list[Topic]:
        """The topics that this service writes to."""
        names = (topic_of(self.name, openly=True), topic_of(self.name, openly=False))
        return [
            *(Topic(name=name, partitions=self.partitions) for name in names),
            Topic(name=dead_letter_topic(self.name), partitions=1),
        ]

    def router(self) -> APIRouter:
        """The probes and the message log; mounted under the service's name."""
        router = APIRouter(prefix=f"/{self.name}")
        router.include_router(message_log_router(self.name, self.engine, self.store, self.body_of))

        @router.get("/healthz", tags=["probes"], summary="Whether the process answers")
        async def healthz() -> dict[str, str]:
            return {"status": "alive"}

        @router.get("/readyz", tags=["probes"], summary="Whether the service does its work, and how far it is behind")
        async def readyz(response: Response) -> dict[str, Any]:
            report = await self.readiness()
            response.status_code = 200 if report["ready"] else 503
            return report

        @router.get("/metrics", tags=["probes"], summary="Prometheus metrics")
        async def metrics() -> Response:
            return Response(generate_latest(self._registry()), media_type=CONTENT_TYPE_LATEST)

        return router

    async def readiness(self) -> dict[str, Any]:
        """What is behind, in counts. `ready` is false where a command or a message would not be taken."""
        report: dict[str, Any] = {"service": self.name, "ready": False, "relay": self.relay.state.last_error}
        try:
            async with asyncio.timeout(3), self.engine.connect() as connection:
                current, head = await current_and_head(self.migrations, connection)
                row = (await connection.execute(text(_BEHIND))).one()
            report |= {"schema": current, "unpublished": row[0], "parked": row[1], "catching_up": row[2]}
            report["waiting"] = await self.waiting() if self.waiting is not None else 0
            report["ready"] = current == head and bool(
                self.consumer.state.assigned or self.consumer.state.restarts == 0
            )
        except Exception as error:
            report["store"] = type(error).__name__
            return report
        try:
            async with asyncio.timeout(5):
                report["unheard"] = await self.healer.lag()
        except (httpx.HTTPError, TimeoutError):
            report["unheard"] = None  # a producer that is away says nothing about this service
        return report

    async def _guard(self, name: str, work: Background) -> None:
        while True:
            try:
                await work()
                return
            except Exception:
                log.exception("task.failed", service=self.name, task=name)
                await asyncio.sleep(1)

    def _with_topics(self, work: Background) -> Background:
        async def ensured() -> None:
            while True:
                try:
                    await self.bus.ensure_topics([*self.topics(), *self._heard()])
                    break
                except BusAway as error:
                    log.warning("topics.waited", service=self.name, error=str(error))
                    await asyncio.sleep(TOPICS_RETRY_SECONDS)
            await work()

        return ensured

    def _heard(self) -> list[Topic]:
        return [Topic(name=name, partitions=self.partitions) for name in self.consumer.topics]

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
        for name, value in {
            "relay_leads": int(self.relay.state.leads),
            "relay_position": self.relay.state.position,
            "relay_records_sent_total": self.relay.state.sent,
            "relay_restarts_total": self.relay.state.restarts,
            "consumer_applied_total": self.consumer.state.applied,
            "consumer_skipped_total": self.consumer.state.skipped,
            "consumer_unknown_total": self.consumer.state.unknown,
            "consumer_parked_total": self.consumer.state.parked,
            "consumer_restarts_total": self.consumer.state.restarts,
            "consumer_assigned_partitions": len(self.consumer.state.assigned),
            "healer_healed_total": self.healer.healed,
        }.items():
            Gauge(f"attache_{name}", name.replace("_", " "), ["service"], registry=registry).labels(self.name).set(
                value
            )
        return registry


_BEHIND = """
SELECT (SELECT count(*) FROM events, relay_cursor WHERE events.position > relay_cursor.position),
    (SELECT count(*) FROM parked_messages), (SELECT count(*) FROM consumer_offsets WHERE behind)
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
    client: httpx.AsyncClient,
    migrations: str,
    applied: Callable[[], None] = lambda: None,
    committed: Sequence[Callable[[], None]] = (),
) -> Service:
    """Wire one service's plumbing. `apply` holds, by the producing service, what each type of its messages does."""

    def to_records(event: StoredEvent, epoch: int) -> Sequence[Any]:
        topics = (False, True) if event.open_sequence is not None else (False,)
        return [record(event, body_of(event, openly), name, openly=openly, epoch=epoch) for openly in topics]

    def after_commit() -> None:
        for woken in (relay.wake, *committed):
            woken()

    relay = Relay(service=name, engine=engine, store=store, bus=bus, to_records=to_records)
    consumer = Consumer(
        group=f"attache.{name}",
        engine=engine,
        bus=bus,
        topics=[topic_of(producer, openly=False) for producer in apply],
        apply={type_: handler for handlers in apply.values() for type_, handler in handlers.items()},
        applied=applied,
    )
    logs = {
        topic_of(producer, openly=False): MessageLog(client=client, service=producer, base=bases[producer], token=token)
        for producer in apply
    }
    return Service(
        name=name,
        engine=engine,
        store=store,
        desk=Desk(engine=engine, store=store, project=project, openly=openly, committed=after_commit),
        bus=bus,
        relay=relay,
        consumer=consumer,
        healer=Healer(consumer, logs),
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

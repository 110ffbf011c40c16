"""The wiring that the services share: a service from what it stands on and what is its own, and an app around it.

What differs between services is given by hand in each one's `main.create_app`.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import APIRouter, FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.bus import Bus, Topic
from shared.bus_choice import make_bus, topic_like
from shared.command import Desk
from shared.consumer import Consumer, ConsumerTimes
from shared.contracts import MESSAGES
from shared.database import make_engine
from shared.dead_letters import dead_letter_topic
from shared.event_store import EventStore, StoredEvent
from shared.healer import Healer
from shared.http import NO_TELEMETRY, install
from shared.message_log import BodyOf, MessageLog
from shared.messages import record, topic_of
from shared.oidc import oidc_of
from shared.readiness import Readiness
from shared.rebuilding import Anew
from shared.relay import Relay
from shared.service import Lifespan, Service, lifespan_of
from shared.settings import ROLES, Role, Settings
from shared.taking import Apply
from shared.tokens import TokenFile
from shared.tracing import OFF, Tracing, make_tracing


@dataclass(frozen=True, kw_only=True)
class Footing:
    """What a service stands on. All of it is closed with the service."""

    engine: AsyncEngine
    bus: Bus
    topic: Topic
    """What every topic of ours is like, whatever its name."""
    token: str
    """The service's own, for the others' message logs."""
    client: httpx.AsyncClient
    """Asks the others."""
    roles: Collection[Role] = ROLES
    tracing: Tracing = OFF


def footing_of(settings: Settings, name: str, *, bus: Bus | None = None) -> Footing:
    """What the settings say that a service stands on; `bus` goes before theirs."""
    return Footing(
        engine=make_engine(settings.database_url.get_secret_value(), name=name),
        bus=bus or make_bus(settings, name),
        topic=topic_like(settings),
        token=settings.service_token.get_secret_value(),
        client=httpx.AsyncClient(trust_env=False),  # no proxies of the environment: these are our own addresses
        roles=settings.roles,
        tracing=make_tracing(settings, name),
    )


def make_service(
    footing: Footing,
    *,
    name: str,
    migrations: str,
    store: EventStore,
    project: Any,
    openly: Callable[[Any], bool],
    body_of: BodyOf,
    apply: Mapping[str, Mapping[str, Apply]],
    anew: Mapping[str, Anew],
    bases: Mapping[str, str],
    applied: Callable[[], None] = lambda: None,
    committed: Sequence[Callable[[], None]] = (),
    times: ConsumerTimes | None = None,
) -> Service:
    """One service's plumbing, not running yet. `apply` holds, by the producing service, what each of its types does.

    `anew` holds, by the same, what goes around all messages of a key when it is built anew, and `bases` where the
    producer is. `applied` is called when messages were taken, `committed` when a command was.
    """
    engine, tracing, roles = footing.engine, footing.tracing, frozenset(footing.roles)
    topics = topics_of(name, footing.topic)
    relay = Relay(
        service=name,
        engine=engine,
        store=store,
        bus=footing.bus,
        topics=topics,
        to_records=_to_records(name, body_of),
        tracing=tracing,
    )
    consumer = _consumer(footing, name, apply, applied, times)
    healer = _healer(footing, consumer, anew, bases)
    return Service(
        name=name,
        engine=engine,
        store=store,
        desk=Desk(
            engine=engine,
            store=store,
            project=project,
            openly=openly,
            committed=_each_of(relay.wake, *committed),
            tracing=tracing,
        ),
        bus=footing.bus,
        topics=topics,
        relay=relay,
        consumer=consumer,
        healer=healer,
        client=footing.client,
        body_of=body_of,
        readiness=Readiness(
            name=name,
            engine=engine,
            migrations=migrations,
            relay=relay,
            consumer=consumer,
            healer=healer,
            roles=roles,
            pools={"commands": engine},
        ),
        tracing=tracing,
        roles=roles,
    )


def make_app(
    service: Service, settings: Settings, *routers: APIRouter, description: str, lifespan: Lifespan | None = None
) -> FastAPI:
    """The app of a service, behind the edge; `routers` are its API's, which only a process with that role has.

    The service runs as long as the app serves, unless `lifespan` sees to it.
    """
    app = FastAPI(
        title=f"Attaché: {service.name}",
        description=description,
        openapi_url=None,
        lifespan=lifespan or lifespan_of(service),
        telemetry=NO_TELEMETRY,
    )
    app.state.tokens = TokenFile(settings.tokens_file)
    app.state.oidc = oidc_of(settings)
    app.state.service = service
    app.state.desk = service.desk
    install(app, service=service.name, requests=service.requests, tracing=service.tracing)
    for router in routers if "api" in service.roles else ():
        app.include_router(router)
    app.include_router(service.router())
    return app


def topics_of(service: str, like: Topic) -> list[Topic]:
    """The topics that a service writes to: the open one, the cleared one, and where it announces what it parked."""
    names = {topic_of(service, openly=openly): like.partitions for openly in (True, False)} | {
        dead_letter_topic(service): 1
    }
    return [dataclasses.replace(like, name=name, partitions=partitions) for name, partitions in names.items()]


def _consumer(
    footing: Footing,
    name: str,
    apply: Mapping[str, Mapping[str, Apply]],
    applied: Callable[[], None],
    times: ConsumerTimes | None,
) -> Consumer:
    """Hears all of each producer, its cleared topic."""
    return Consumer(
        group=f"attache.{name}",
        engine=footing.engine,
        bus=footing.bus,
        topics=[dataclasses.replace(footing.topic, name=topic_of(producer, openly=False)) for producer in apply],
        apply={versioned(type_): handler for handlers in apply.values() for type_, handler in handlers.items()},
        applied=applied,
        times=times,
        tracing=footing.tracing,
    )


def versioned(type_: str) -> str:
    """The type and version of a message as a consumer looks them up: those that this program's contracts know."""
    return f"{type_}.v{MESSAGES[type_].VERSION}"


def _healer(footing: Footing, consumer: Consumer, anew: Mapping[str, Anew], bases: Mapping[str, str]) -> Healer:
    """Asks each producer for what the consumer missed."""
    logs = {
        topic_of(producer, openly=False): MessageLog(
            client=footing.client, service=producer, base=base, token=footing.token
        )
        for producer, base in bases.items()
    }
    healer = Healer(consumer, logs, {topic_of(producer, openly=False): around for producer, around in anew.items()})
    consumer.learn = healer.learn
    return healer


def _to_records(name: str, body_of: BodyOf) -> Callable[[StoredEvent, int], Sequence[Any]]:
    """What the relay sends of an event: its message on the cleared topic, and on the open one where it is open."""

    def to_records(event: StoredEvent, epoch: int) -> Sequence[Any]:
        topics = (False, True) if event.open_sequence is not None else (False,)
        return [record(event, body_of(event, openly), name, openly=openly, epoch=epoch) for openly in topics]

    return to_records


def _each_of(*calls: Callable[[], None]) -> Callable[[], None]:
    def each() -> None:
        for call in calls:
            call()

    return each

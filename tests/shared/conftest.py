"""A publishing and a listening service of nothing but plumbing, on both buses: for relay, consumer and healer tests.

`Publishing` has a real log and message log over HTTP, `Listening` a database in which every applied message is a row.
Each test has names of its own, so that one broker serves them all.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import URL, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.bus import Bus, Delivery, Partition, Place, Record, Topic
from shared.bus_kafka import KafkaBus, KafkaTimes
from shared.bus_local import LocalBus
from shared.bus_local_member import LocalTimes
from shared.consumer import Consumer, ConsumerTimes
from shared.database import driver_of, make_engine
from shared.event_store import Append, Codec, EventStore, NewEvent, StoredEvent
from shared.healer import Healer, HealerTimes
from shared.http import install
from shared.message_log import MessageLog, message_log_router
from shared.messages import Message, record, topic_of
from shared.relay import SILENCE_SECONDS, Relay
from shared.service import Service
from shared.settings import ROLES, Role
from shared.taking import each
from shared.tokens import TokenFile, add_token
from shared.wiring import Footing, make_service
from tests.patience import PLUMBING

LOCAL = LocalTimes(poll=0.05, heartbeat=0.1, expiry=1.0, patience=30.0, send=60.0)
KAFKA = KafkaTimes(heartbeat=0.2, session=30.0, patience=30.0, send=60.0)
QUICK = ConsumerTimes(fetch=0.1, backoff=0.05, look=0.3, watchdog=300.0)
HEALING = HealerTimes(retry=0.1, compare=0.6, missing=0.3)
MIGRATIONS = "services/schedule/migrations"
PARTITIONS = 4

Hear = Callable[[AsyncConnection, Message], Awaitable[None]]
Until = Callable[[Callable[[], Awaitable[bool]], float], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Noted:
    """The one event of the services in these tests."""

    what: str


@dataclass(kw_only=True)
class Publishing:
    """A service that has a log and publishes it."""

    name: str
    engine: AsyncEngine
    bus: Bus
    app: FastAPI
    token: str
    operator: str
    """The token of somebody who may see metrics."""
    store: EventStore = field(default_factory=lambda: EventStore(Codec([Noted])))
    versions: dict[str, int] = field(default_factory=dict)
    traceparent: str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    lost: set[str] = field(default_factory=set)
    """The `what`s that a producer of `send` leaves out."""
    stopped: bool = False
    """Whether its message log is as that of a service that does not run."""

    @property
    def cleared(self) -> str:
        return topic_of(self.name, openly=False)

    @property
    def opened(self) -> str:
        return topic_of(self.name, openly=True)

    @property
    def topics(self) -> list[Topic]:
        return [Topic(name=name, partitions=PARTITIONS) for name in (self.opened, self.cleared)]

    async def note(self, key: str, *whats: str, openly: bool = True) -> None:
        """Append one event for each of these to the key's stream, in one transaction."""
        version = self.versions.get(key, 0)
        events = [NewEvent(id=uuid4(), data=Noted(what=what), open=openly) for what in whats]
        metadata = {
            "occurred_at": "2023-11-07T09:25:00.000000Z",
            "correlation_id": str(uuid4()),
            "causation_id": str(uuid4()),
            "traceparent": self.traceparent,
        }
        async with self.engine.begin() as connection:
            await connection.execute(text("SELECT 1"))
            append = Append(stream=f"thing/{key}", expected_version=version, events=events)
            await self.store.append(connection, key, metadata, [append])
        self.versions[key] = version + len(whats)

    async def log(self) -> list[StoredEvent]:
        """The whole log."""
        async with self.engine.connect() as connection:
            return await self.store.after(await driver_of(connection), 0, 100_000)

    def body(self, event: StoredEvent, openly: bool) -> bytes:
        return json.dumps({"trip": event.key, "what": event.data.what, "openly": openly}).encode()

    def to_records(self, event: StoredEvent, epoch: int) -> Sequence[Record]:
        """What the relay sends of an event."""
        kinds = (False, True) if event.open_sequence is not None else (False,)
        return [record(event, self.body(event, one), self.name, openly=one, epoch=epoch) for one in kinds]

    def relay(self, bus: Bus | None = None, silence: float = SILENCE_SECONDS, look: float = 0.2) -> Relay:
        return Relay(
            service=self.name,
            engine=self.engine,
            store=self.store,
            bus=bus or self.bus,
            topics=self.topics,
            to_records=self.to_records,
            silence=silence,
            look=look,
        )

    def service(self, bus: Bus | None = None, roles: Collection[Role] = ROLES) -> Service:
        """All of a service's plumbing, with a consumer that hears its own messages; its probes are in the app then."""
        footing = Footing(
            engine=self.engine,
            bus=bus or self.bus,
            topic=Topic(name="any", partitions=PARTITIONS),
            token=self.token,
            client=httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app)),
            roles=roles,
        )
        service = make_service(
            footing,
            name=self.name,
            migrations=MIGRATIONS,
            store=self.store,
            project=None,  # no command is given here
            openly=lambda _: True,
            body_of=self.body,
            apply={self.name: {}},
            anew={self.name: nothing_to_forget},
            bases={self.name: "http://publishing"},
            times=QUICK,
        )
        service.readiness.stalled = 3600.0
        self.app.include_router(service.router())
        return service

    async def ask(self, path: str, token: str = "") -> httpx.Response:
        """Ask the service's app."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=self.app)) as client:
            return await client.get(f"http://publishing/{self.name}/{path}", headers=headers)

    async def send(self) -> list[Place]:
        """Send the whole log to the cleared topic, past the relay, but for what is to be lost on the way."""
        records = [self.to_records(event, 1)[0] for event in await self.log() if event.data.what not in self.lost]
        return await self.send_records(records)

    async def send_records(self, records: Sequence[Record]) -> list[Place]:
        await self.bus.ensure_topics(self.topics)
        producer = await self.bus.producer()
        try:
            return list(await producer.send(records))
        finally:
            await producer.close()

    async def cursor(self) -> int:
        async with self.engine.connect() as connection:
            return await connection.scalar(text("SELECT position FROM relay_cursor")) or 0

    def message_log(self) -> MessageLog:
        client = httpx.AsyncClient(transport=_Door(self))
        return MessageLog(client=client, service=self.name, base="http://publishing", token=self.token)


class _Door(httpx.ASGITransport):
    """The way to a service's app; nobody answers where it is stopped."""

    def __init__(self, publishing: Publishing) -> None:
        super().__init__(app=publishing.app)
        self._publishing = publishing

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._publishing.stopped:
            raise httpx.ConnectError("the service is stopped", request=request)
        return await super().handle_async_request(request)


@dataclass(kw_only=True)
class Listening:
    """A service that listens: each applied message is a row of `heard`, and the last of a key is in `newest`."""

    name: str
    engine: AsyncEngine
    watching: AsyncEngine
    """The test's own connections, which outlive those of the service."""
    open_bus: Callable[[], Bus]
    pause: float = 0.0
    refused: set[str] = field(default_factory=set)
    """The `what`s that its handler cannot take."""
    told: list[int] = field(default_factory=list)

    async def hear(self, connection: AsyncConnection, message: Message) -> None:
        """The handler: slow if it is to be, in the middle of its writing."""
        values = {"key": message.key, "sequence": message.sequence, "what": message.body["what"]}
        await connection.execute(
            text("INSERT INTO heard (key, sequence, what) VALUES (:key, :sequence, :what)"), values
        )
        if self.pause:
            await asyncio.sleep(self.pause)
        if message.body["what"] in self.refused:
            raise ValueError(f"cannot take {message.body['what']}")

    @contextlib.asynccontextmanager
    async def anew(self, connection: AsyncConnection, key: str) -> AsyncIterator[None]:
        """Forgets what was heard of a key."""
        await connection.execute(text("DELETE FROM heard WHERE key = :key"), {"key": key})
        yield

    def consumer(
        self,
        publishing: Publishing,
        *,
        apply: Mapping[str, Hear] | None = None,
        topics: Sequence[Topic] | None = None,
        bus: Bus | None = None,
        times: ConsumerTimes = QUICK,
    ) -> Consumer:
        """A member of its group; by default it takes `Noted`, from the cleared topic."""
        return Consumer(
            group=self.name,
            engine=self.engine,
            bus=bus or self.open_bus(),
            topics=topics or publishing.topics[1:],
            apply={name: each(hear) for name, hear in ({"Noted.v1": self.hear} if apply is None else apply).items()},
            applied=lambda: self.told.append(1),
            times=times,
        )

    def healer(self, consumer: Consumer, publishing: Publishing, times: HealerTimes = HEALING) -> Healer:
        logs = {publishing.cleared: publishing.message_log()}
        return Healer(consumer, logs, {publishing.cleared: self.anew}, times)

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query finds."""
        async with self.watching.connect() as connection:
            return [tuple(row) for row in (await connection.execute(text(query))).all()]

    async def heard(self, key: str) -> list[tuple[int, str]]:
        """What was applied of a key, in the order in which it was: number and content."""
        found = await self.rows(f"SELECT sequence, what FROM heard WHERE key = '{key}' ORDER BY place")
        return [(sequence, what) for sequence, what in found]

    async def parked(self) -> list[tuple[Any, ...]]:
        """Key, sequence and slug of what is parked, in the order in which it was."""
        return await self.rows("SELECT key, sequence, slug FROM parked_messages ORDER BY id")


@contextlib.asynccontextmanager
async def nothing_to_forget(connection: AsyncConnection, key: str) -> AsyncIterator[None]:
    """Around the messages of a key that gave nothing."""
    yield


async def _until(true: Callable[[], Awaitable[bool]], seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while not await true():
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def _running(*work: Awaitable[None]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        yield
        for task in tasks:
            assert not task.done(), task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def as_shipped() -> None:
    """Who asks for this has the times that the program has."""


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is given up because the machine stands still for a while."""
    if "as_shipped" not in request.fixturenames:
        for name, value in PLUMBING.items():
            monkeypatch.setattr(name, value)


@pytest.fixture
def patient_locks(patient: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a lock, or a transaction in which nothing happens: for tests that hold one while they look around."""
    if "as_shipped" not in request.fixturenames:
        monkeypatch.setattr("shared.database.LOCK_TIMEOUT", "120s")
        monkeypatch.setattr("shared.database.IDLE_IN_TRANSACTION_TIMEOUT", "120s")


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """`await until(condition, seconds=120)`: polls an async condition; TimeoutError when it does not come true."""
    return _until


@pytest.fixture
def running() -> Callable[..., contextlib.AbstractAsyncContextManager[None]]:
    """`async with running(relay.run(), consumer.run()):` background tasks that are ended with the block."""
    return _running


@pytest.fixture(params=["local", "kafka"])
def bus_name(request: pytest.FixtureRequest) -> str:
    """Runs the test on each of the two buses."""
    name: str = request.param
    return name


@pytest.fixture
async def open_bus(
    bus_name: str, request: pytest.FixtureRequest, make_database: Callable[..., Awaitable[str]]
) -> AsyncIterator[Callable[[], Bus]]:
    """Answers a bus as another process has it: the same topics, connections of its own."""
    engines: list[AsyncEngine] = []
    address = request.getfixturevalue("kafka_address") if bus_name == "kafka" else ""
    url = await make_database("shared/bus_migrations") if bus_name == "local" else ""

    def make() -> Bus:
        if bus_name == "kafka":
            return KafkaBus(address, client_id="plumbing", times=KAFKA)
        engines.append(make_engine(url, name="plumbing-bus"))
        return LocalBus(engines[-1], times=LOCAL)

    yield make
    for engine in engines:
        await engine.dispose()


@pytest.fixture
async def make_publishing(
    open_bus: Callable[[], Bus], make_database: Callable[..., Awaitable[str]], tmp_path: Path
) -> AsyncIterator[Callable[[], Awaitable[Publishing]]]:
    engines: list[AsyncEngine] = []

    async def make() -> Publishing:
        name = f"teller{uuid4().hex[:8]}"
        engines.append(make_engine(await make_database(MIGRATIONS), name=name))
        app = FastAPI(openapi_url=None)
        token = add_token(tmp_path / name, "listener", ("service",))
        operator = add_token(tmp_path / name, "operator", ("operator",))
        app.state.tokens = TokenFile(tmp_path / name)
        publishing = Publishing(name=name, engine=engines[-1], bus=open_bus(), app=app, token=token, operator=operator)
        install(app, service=name)
        router = message_log_router(name, engines[-1], publishing.store, publishing.body)
        app.include_router(router, prefix=f"/{name}")
        return publishing

    yield make
    for engine in engines:
        await engine.dispose()


@pytest.fixture
async def publishing(make_publishing: Callable[[], Awaitable[Publishing]]) -> Publishing:
    """A service with an empty log, whose topics are not there yet."""
    return await make_publishing()


@pytest.fixture
async def listening(
    open_bus: Callable[[], Bus], make_database: Callable[..., Awaitable[str]]
) -> AsyncIterator[Listening]:
    """A service that has heard nothing yet."""
    url = await make_database(MIGRATIONS)
    engine, watching = make_engine(url, name="listening"), make_engine(url, name="watching")
    async with watching.begin() as connection:
        await connection.execute(
            text("CREATE TABLE heard (place bigint GENERATED ALWAYS AS IDENTITY, key text, sequence bigint, what text)")
        )
    yield Listening(name=f"listener{uuid4().hex[:8]}", engine=engine, watching=watching, open_bus=open_bus)
    await engine.dispose()
    await watching.dispose()


@pytest.fixture
def read_topic(until: Callable[..., Awaitable[None]]) -> Callable[[Bus, str, int], Awaitable[list[Delivery]]]:
    """`await read_topic(bus, topic, count)`: a topic from its beginning, until there are so many records."""

    async def start(partitions: frozenset[Partition]) -> Mapping[Partition, int]:
        return dict.fromkeys(partitions, 0)

    async def leave(partitions: frozenset[Partition]) -> None: ...

    async def read(bus: Bus, topic: str, count: int) -> list[Delivery]:
        member = await bus.subscribe(f"reader-{uuid4()}", [topic], on_assigned=start, on_revoked=leave)
        found: list[Delivery] = []
        try:

            async def enough() -> bool:
                for deliveries in (await member.fetch(1000, 0.1)).values():
                    found.extend(deliveries)
                return len(found) >= count

            await until(enough)
        finally:
            await member.close()
        return found

    return read


@pytest.fixture
def kill_backends() -> Callable[[AsyncEngine, str], Awaitable[int]]:
    """`await kill_backends(engine, "%-relay")`: ends connections of a database by their name; answers how many."""

    async def kill(engine: AsyncEngine, name: str) -> int:
        _, options = engine.dialect.create_connect_args(engine.url)
        connection = await asyncpg.connect(**options)
        try:
            found = await connection.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name LIKE $1",
                name,
            )
        finally:
            await connection.close()
        return len(found)

    return kill


@dataclass
class Gate:
    """A way to a database that can be shut: nobody answers at its port then, and who was through is thrown out."""

    url: URL
    _server: asyncio.Server | None = None
    _kept: socket.socket = field(default_factory=lambda: _bound(0))
    _through: set[asyncio.StreamWriter] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.port: int = self._kept.getsockname()[1]

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._pass, sock=self._kept)

    async def shut(self) -> None:
        """The port is kept: nobody else is to listen there meanwhile."""
        if self._server is not None:
            self._server.close()
            self._server, self._kept = None, _bound(self.port)
        for writer in self._through:
            writer.transport.abort()

    def end(self) -> None:
        self._kept.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(self.url.host, self.url.port)
        self._through |= {writer, inner_writer}
        with contextlib.suppress(OSError):
            await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))


def _bound(port: int) -> socket.socket:
    """A port of this process, at which nobody listens yet."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@pytest.fixture
async def gate(listening: Listening) -> AsyncIterator[Gate]:
    """The listening service reaches its database through this gate alone, which is shut at first."""
    one = Gate(listening.engine.url)
    listening.engine = make_engine(
        listening.engine.url.set(port=one.port).render_as_string(hide_password=False), name="listening"
    )
    yield one
    await listening.engine.dispose()
    await one.shut()
    one.end()

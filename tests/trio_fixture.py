"""The three services as three processes of one test, on databases and a bus of their own."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from aiokafka.errors import KafkaConnectionError  # type: ignore[import-untyped]

from deploy.kafka_node import free_port
from shared.bus import Bus, BusAway, Partition, Subscription
from shared.bus_kafka import KafkaBus
from shared.bus_local import LocalBus
from shared.database import make_engine
from shared.messages import read_delivery
from shared.tokens import add_token

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("schedule", "participants", "notifications")
BASE = "http://attache.test"


class ByPath(httpx.AsyncBaseTransport):
    """One address in front of three, as the proxy has it: the first part of the path names the service."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self._ports = {**ports, "feeds": ports["notifications"]}
        self._inner = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        port = self._ports[request.url.path.split("/")[1]]
        request.url = request.url.copy_with(scheme="http", host="127.0.0.1", port=port)
        return await self._inner.handle_async_request(request)

    async def aclose(self) -> None:
        await self._inner.aclose()


@dataclass(kw_only=True)
class Trio:
    """The three processes, their databases and their bus."""

    folder: Path
    databases: Mapping[str, str]
    environment: Mapping[str, str]
    ports: Mapping[str, int]
    token: str
    bus: Callable[[], Bus]
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def start(self, *names: str) -> None:
        for name in names:
            self.processes[name] = self._run(name, "serve")

    def command(self, command: str, *names: str) -> dict[str, int]:
        """Run one command of each service at the same time; their exit codes."""
        running = {name: self._run(name, command) for name in names}
        return {name: process.wait(120) for name, process in running.items()}

    def stop(self, number: signal.Signals, *names: str) -> dict[str, int]:
        for name in names:
            self.processes[name].send_signal(number)
        return {name: self.processes.pop(name).wait(120) for name in names}

    def client(self) -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.AsyncClient(transport=ByPath(self.ports), base_url=BASE, headers=headers, timeout=60)

    def said(self) -> str:
        return "\n".join((self.folder / f"{name}.log").read_text()[-3000:] for name in SERVICES)

    def _run(self, name: str, command: str) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"services.{name}", command],
                cwd=ROOT,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


@pytest.fixture
async def make_trio(make_database: Callable[..., Awaitable[str]], tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """`await make_trio("host:port" | None)`: nothing serves yet. On the local bus the command line has migrated.

    What else is given goes into the environment of each. On Kafka nobody was there before: the records of another
    installation would be ghosts of this one's. Tests of the parameter `kafka` run one by one (tests/workers.py).
    """
    trios: list[Trio] = []
    engines = []

    async def make(kafka: str | None, **more: str) -> Trio:
        migrated = {name: f"services/{name}/migrations" for name in SERVICES} if kafka else {}
        databases = {name: await make_database(migrated.get(name)) for name in (*SERVICES, "bus")}
        ports = {name: free_port() for name in SERVICES}
        environment = {
            "BUS": "kafka" if kafka else "local",
            "BUS_URL": databases["bus"],
            "KAFKA_BOOTSTRAP": kafka or "",
            "TOKENS_FILE": str(tmp_path / "tokens"),
            "SERVICE_TOKEN": add_token(tmp_path / "tokens", "services", ("service",)),
            "PUBLIC_URL": BASE,
            "LOG_FORMAT": "json",
            **{f"{name.upper()}_DATABASE_URL": databases[name] for name in SERVICES},
            **{f"{name.upper()}_URL": f"http://127.0.0.1:{port}" for name, port in ports.items()},
            **{f"{name.upper()}_PORT": str(port) for name, port in ports.items()},
            **more,
        }
        if kafka:
            await emptied(kafka)
        engines.append(make_engine(databases["bus"], name="test-bus"))
        trio = Trio(
            folder=tmp_path,
            databases=databases,
            environment=environment,
            ports=ports,
            token=add_token(tmp_path / "tokens", "test", ("planner", "staff", "operator")),
            bus=lambda: KafkaBus(kafka) if kafka else LocalBus(engines[0]),
        )
        trios.append(trio)
        if not kafka:
            assert trio.command("migrate", *SERVICES) == dict.fromkeys(SERVICES, 0), trio.said()
        return trio

    yield make
    for trio in trios:
        for process in trio.processes.values():
            process.kill()
            process.wait()
    for engine in engines:
        await engine.dispose()


async def emptied(kafka: str) -> None:
    """Delete the services' topics, where there is a broker yet and it has them; other tests have theirs beside them."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    try:
        await admin.start()
        names = tuple(f"attache.{name}" for name in SERVICES)
        ours = [name for name in await admin.list_topics() if name.startswith(names)]
        if ours:
            await admin.delete_topics(ours)
        async with asyncio.timeout(120):
            while set(ours) & set(await admin.list_topics()):
                await asyncio.sleep(0.05)
    except KafkaConnectionError:
        return
    finally:
        await admin.close()


async def settled(trio: Trio, client: httpx.AsyncClient) -> None:
    """Until nothing is unpublished, unheard or unrendered."""

    async def at_rest() -> bool:
        return await looked() and await looked()  # what is taken in during one look is waiting at the next

    async def looked() -> bool:
        reports = [(await client.get(f"/{name}/readyz")).json() for name in SERVICES]
        counts = [
            report.get(name) for report in reports for name in ("unpublished", "unheard", "catching_up", "waiting")
        ]
        return all(report["ready"] for report in reports) and counts == [0] * len(counts)

    await until(at_rest, 180, trio)


async def until(true: Callable[[], Awaitable[bool]], seconds: float, trio: Trio) -> None:
    """Until it is true, while services may be away; what they said stands in the failure."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if await true():
                return
        assert time.monotonic() < end, trio.said()
        await asyncio.sleep(0.05)


async def told(bus: Bus, topic: str, keys: set[str]) -> list[tuple[str, str, int]]:
    """A topic's messages of these keys, each once: by key, in the order of their first coming."""

    async def start(partitions: frozenset[Partition]) -> Mapping[Partition, int]:
        return dict.fromkeys(partitions, 0)

    async def leave(partitions: frozenset[Partition]) -> None: ...

    member = await bus.subscribe(f"test-{uuid4()}", [topic], on_assigned=start, on_revoked=leave)
    seen: dict[str, tuple[str, str, int]] = {}
    position: dict[Partition, int] = {}
    try:
        async with asyncio.timeout(120):
            while not await _is_read(member, position):
                for partition, deliveries in (await member.fetch(1000, 0.1)).items():
                    position[partition] = deliveries[-1].offset + 1
                    for message in map(read_delivery, deliveries):
                        if message.key in keys:
                            seen.setdefault(message.id, (message.id, message.key, message.sequence))
    finally:
        await member.close()
    return sorted(seen.values(), key=lambda one: one[1])  # stable: within a key as they came


async def _is_read(member: Subscription, position: Mapping[Partition, int]) -> bool:
    """Whether all of a topic was read; a bus that was slow to tell where it ends is asked again."""
    if len(member.assigned()) < 8:
        return False
    try:
        ends = await member.ends()
    except BusAway:
        return False
    return all(position.get(one, 0) >= end for one, end in ends.items())

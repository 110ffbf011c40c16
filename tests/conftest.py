"""What every test may ask for: databases, and an account of what this machine could not run.

One PostgreSQL serves the whole session, and each worker has its own: the server that ATTACHE_TEST_POSTGRES names (a
superuser's URL), else the wheel in a folder of its own, which is quicker than a container. Kafka's part is
`tests/kafka_fixture.py`; `tests/shared/containers/` runs what touches either on containers as well.
"""

import asyncio
import gc
import os
import secrets
import shutil
import tempfile
import zoneinfo
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import hypothesis
import pytest

from services.embedded import EmbeddedPostgres
from shared.migrations import upgrade

zoneinfo.reset_tzpath(())  # the pinned tzdata, as in every process of the application

# a busy machine is not a failure
hypothesis.settings.register_profile("attache", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("attache")

pytest_plugins = [
    "tests.patience",  # before those that use it
    "tests.kafka_fixture",
    "tests.edge_fixture",
    "tests.feeds_fixture",
    "tests.demo_fixture",
    "tests.otlp_fixture",
    "tests.trio_fixture",
    "tests.workers",
]

MakeDatabase = Callable[..., Awaitable[str]]
"""`await make_database(migrations="services/schedule/migrations")` answers SQLAlchemy's address of a new database."""

FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "300"}
"""Nothing of the tests' server has to outlive a crash of the machine."""


@dataclass
class PostgresServer:
    """A server: a superuser's address, and the role, no superuser, that owns the tests' databases."""

    url: str
    role: str = field(default_factory=lambda: f"attache_test_{secrets.token_hex(4)}")
    password: str = field(default_factory=lambda: secrets.token_hex(12))
    templates: dict[str, str] = field(default_factory=dict)
    made: int = 0

    def connect(self) -> "Awaitable[asyncpg.Connection[asyncpg.Record]]":
        """A connection of the superuser, outside any of the tests' databases."""
        return asyncpg.connect(self.url)

    def database_url(self, name: str) -> str:
        """SQLAlchemy's address of one database, for the role that owns it."""
        host = urlsplit(self.url).netloc.rpartition("@")[2]
        return urlunsplit(("postgresql+asyncpg", f"{self.role}:{self.password}@{host}", f"/{name}", "", ""))

    async def create_role(self) -> None:
        await self.execute(f"CREATE ROLE {self.role} LOGIN PASSWORD '{self.password}'")

    async def create(self, migrations: str | None) -> str:
        """A new database's name. Each set of migrations runs once a session; further databases are copies."""
        if migrations is not None and migrations not in self.templates:
            template = await self._create_from("template1")
            await upgrade(migrations, self.database_url(template))
            self.templates[migrations] = template
        return await self._create_from("template1" if migrations is None else self.templates[migrations])

    async def execute(self, statement: str) -> None:
        """As superuser; again where a database is in use: a backend may outlive its client for a while."""
        connection = await self.connect()
        try:
            for _ in range(20):  # the server itself waits for five seconds each time
                with suppress(asyncpg.ObjectInUseError):
                    await connection.execute(statement)
                    return
            await connection.execute(statement)
        finally:
            await connection.close()

    async def drop(self, name: str) -> None:
        await self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @contextmanager
    def in_use(self) -> Iterator["PostgresServer"]:
        """With its role made; role and templates go at the end."""
        asyncio.run(self.create_role())
        yield self
        asyncio.run(self.clear())

    async def clear(self) -> None:
        for template in self.templates.values():
            await self.drop(template)
        await self.execute(f"DROP ROLE {self.role}")

    async def _create_from(self, template: str) -> str:
        self.made += 1
        name = f"{self.role}_{self.made}"
        await self.execute(f"CREATE DATABASE {name} OWNER {self.role} TEMPLATE {template} STRATEGY FILE_COPY")
        return name


KAFKAS = frozenset({"kafka_address", "second_kafka", "secured"})
"""Fixtures that are a broker; it may be a parameter, "kafka", as well."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """aiokafka loses a connection, open, whose opening or whose end over TLS is broken off: no fault of ours."""
    params = getattr(item, "callspec", None)
    if KAFKAS & {*getattr(item, "fixturenames", ())} or (params is not None and "kafka" in params.params.values()):
        for words in ("unclosed", "loop is closed"):
            item.add_marker(pytest.mark.filterwarnings(f"ignore:{words}:ResourceWarning"))


@pytest.fixture(scope="session")
def _frozen_heap() -> None:
    gc.collect()
    gc.freeze()  # all that was imported: it need not be walked after each test


@pytest.fixture(autouse=True)
def _own_leaks(_frozen_heap: None) -> Iterator[None]:
    """What a test left open is its own error, not that of a later test in which the collector happens to run."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's PostgreSQL, for tests that need more of it than a database."""
    with _server() as url, PostgresServer(url=url).in_use() as server:
        yield server


@pytest.fixture
async def make_database(postgres_server: PostgresServer) -> AsyncIterator[MakeDatabase]:
    """Makes databases of this test alone, empty or with a service's migrations done; they go when it ends."""
    names: list[str] = []

    async def make(migrations: str | None = None) -> str:
        names.append(await postgres_server.create(migrations))
        return postgres_server.database_url(names[-1])

    yield make
    for name in names:
        await postgres_server.drop(name)


@pytest.fixture
def data_folder() -> Iterator[Path]:
    """An empty folder that PostgreSQL can also use when root runs the tests (pytest's own are closed to others)."""
    folder = Path(tempfile.mkdtemp(prefix="attache-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what could not be run and why, once a reason."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] += 1
    if reasons:
        terminalreporter.section("could not be run on this machine", sep="-")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:5} {reason}")


@contextmanager
def _server() -> Iterator[str]:
    if url := os.environ.get("ATTACHE_TEST_POSTGRES"):
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="attache-test-postgres-") as name:
        Path(name).chmod(0o711)
        with EmbeddedPostgres(Path(name), databases=(), settings=FAST) as wheel:
            yield wheel.superuser_url

"""What every test may ask for: databases, and an account of what this machine could not run.

One PostgreSQL serves the whole session: the server that ATTACHE_TEST_POSTGRES names (a superuser's URL), else a
container where Docker answers, else the wheel in a folder of its own. Kafka's part is `tests/kafka_fixture.py`.
"""

import asyncio
import os
import secrets
import shutil
import subprocess
import tempfile
import zoneinfo
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import hypothesis
import pytest

from services.embedded import EmbeddedPostgres
from shared.migrations import upgrade

if TYPE_CHECKING:
    from testcontainers.community.postgres import PostgresContainer

zoneinfo.reset_tzpath(())  # the pinned tzdata, as in every process of the application

hypothesis.settings.register_profile("attache", deadline=None)  # a busy machine is not a failure
hypothesis.settings.load_profile("attache")

pytest_plugins = ["tests.kafka_fixture", "tests.feeds_fixture", "tests.demo_fixture"]

MakeDatabase = Callable[..., Awaitable[str]]
"""`await make_database(migrations="services/schedule/migrations")` answers SQLAlchemy's address of a new database."""

FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "300"}
"""Nothing of the tests' server has to outlive a crash of the machine."""


TESTCONTAINERS = {
    "TESTCONTAINERS_RYUK_DISABLED": "true",  # its reaper is one more image to fetch
    "TESTCONTAINERS_CONNECTION_MODE": "docker_host",  # else a virtual machine is taken for a container
    "TESTCONTAINERS_HOST_OVERRIDE": "127.0.0.1",
}


@dataclass
class PostgresServer:
    """The session's server: a superuser's address, and the role, no superuser, that owns the tests' databases."""

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
        await self._execute(f"CREATE ROLE {self.role} LOGIN PASSWORD '{self.password}'")

    async def create(self, migrations: str | None) -> str:
        """A new database's name. Each set of migrations runs once a session; further databases are copies."""
        if migrations is not None and migrations not in self.templates:
            template = await self._create_from("template1")
            await upgrade(migrations, self.database_url(template))
            self.templates[migrations] = template
        return await self._create_from("template1" if migrations is None else self.templates[migrations])

    async def drop(self, name: str) -> None:
        await self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def clear(self) -> None:
        for template in self.templates.values():
            await self.drop(template)
        await self._execute(f"DROP ROLE {self.role}")

    async def _create_from(self, template: str) -> str:
        self.made += 1
        name = f"{self.role}_{self.made}"
        await self._execute(f"CREATE DATABASE {name} OWNER {self.role} TEMPLATE {template}")
        return name

    async def _execute(self, statement: str) -> None:
        connection = await self.connect()
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The session's PostgreSQL, for tests that need more of it than a database."""
    with _server() as server:
        asyncio.run(server.create_role())
        yield server
        asyncio.run(server.clear())


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
def _server() -> Iterator[PostgresServer]:
    if url := os.environ.get("ATTACHE_TEST_POSTGRES"):
        yield PostgresServer(url=url)
    elif container := _container():
        try:
            yield PostgresServer(url=container.get_connection_url())
        finally:
            container.stop()
    else:
        with tempfile.TemporaryDirectory(prefix="attache-test-postgres-") as name:
            Path(name).chmod(0o711)
            with EmbeddedPostgres(Path(name), databases=(), settings=FAST) as wheel:
                yield PostgresServer(url=wheel.superuser_url)


def _container() -> "PostgresContainer | None":
    """A PostgreSQL container, or None where no Docker answers or it cannot get the image."""
    if shutil.which("docker") is None:
        return None
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        return None
    for name, value in TESTCONTAINERS.items():
        os.environ.setdefault(name, value)
    from testcontainers.community.postgres import PostgresContainer  # reads the environment when it is imported

    container = PostgresContainer("postgres:18", driver=None)
    try:
        return container.start()
    except Exception as error:  # noqa: BLE001 (of three libraries, and the wheel does as well)
        print(f"no PostgreSQL container, the wheel is used: {error}")
        return None

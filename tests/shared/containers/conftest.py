"""The same PostgreSQL and Kafka images as Compose has, for the tests of this folder, where Docker answers."""

from collections.abc import Iterator

import pytest

from tests.conftest import FAST, PostgresServer
from tests.containers import NoContainer, docker_answers, kafka_container, postgres_container
from tests.kafka_fixture import unavailable


@pytest.fixture(scope="session", autouse=True)
def kafka_in_container() -> Iterator[str]:
    """A broker's address. Without Docker this folder is left out; where it answers, the images have to be there."""
    if not docker_answers():
        pytest.skip("no Docker engine answers here")
    try:
        with kafka_container() as address:
            yield address
    except NoContainer as none:
        unavailable(str(none))


@pytest.fixture(scope="session")
def kafka_address(kafka_in_container: str) -> str:
    """In place of the session's."""
    return kafka_in_container


@pytest.fixture(scope="session")
def postgres_server(kafka_in_container: str) -> Iterator[PostgresServer]:
    """In place of the session's."""
    settings = [f"{name}={value}" for name, value in FAST.items()]
    try:
        with postgres_container(settings) as url, PostgresServer(url=url).in_use() as server:
            yield server
    except NoContainer as none:
        unavailable(str(none))

"""PostgreSQL and Apache Kafka in containers for the tests, by testcontainers, where Docker answers.

Raises `NoContainer` with one readable line where there is no Docker, or an image cannot be had.
"""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deploy.kafka_node import free_port

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

_SERVICES = yaml.safe_load((Path(__file__).parent.parent / "docker-compose.yml").read_text(encoding="utf-8"))[
    "services"
]
POSTGRES: str = _SERVICES["postgres"]["image"]
KAFKA: str = _SERVICES["kafka"]["image"]
"""The same images as Compose has."""

TESTCONTAINERS = {
    "TESTCONTAINERS_RYUK_DISABLED": "true",  # its reaper is one more image to fetch
    "TESTCONTAINERS_CONNECTION_MODE": "docker_host",  # else a virtual machine is taken for a container
    "TESTCONTAINERS_HOST_OVERRIDE": "127.0.0.1",
}


class NoContainer(Exception):
    """Why a container cannot be had here: one readable line."""


@contextmanager
def postgres_container(settings: Sequence[str] = ()) -> Iterator[str]:
    """A PostgreSQL; its superuser's address, for asyncpg. `settings` are `name=value`."""
    _prepare()
    from testcontainers.community.postgres import PostgresContainer  # reads the environment when it is imported

    flags = [word for setting in settings for word in ("-c", setting)]
    container = PostgresContainer(POSTGRES, driver=None).with_command(["postgres", *flags])
    with _started(container, POSTGRES):
        yield container.get_connection_url()


@contextmanager
def kafka_container() -> Iterator[str]:
    """A single-node Kafka; its `host:port`."""
    _prepare()
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    port = free_port()  # found before: it has to be advertised
    container = DockerContainer(KAFKA).with_envs(**_settings(port))
    container.ports.update({9092: ("127.0.0.1", port)})  # type: ignore[dict-item]  # with_bind_ports takes no host address
    container.waiting_for(
        LogMessageWaitStrategy("Kafka Server started").with_startup_timeout(180).with_poll_interval(0.2)
    )
    with _started(container, KAFKA):
        yield f"127.0.0.1:{port}"


@cache
def docker_answers() -> bool:
    """Whether there is a Docker engine that this user may talk to."""
    try:
        return subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@contextmanager
def _started(container: "DockerContainer", image: str) -> Iterator[None]:
    try:
        container.start()
    except Exception as error:  # of three libraries, and a container that did not get ready is still there
        _remove(container)
        raise NoContainer(
            f"no container of {image}: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error
    try:
        yield
    finally:
        _remove(container)


def _remove(container: Any) -> None:
    if container.get_wrapped_container() is not None:
        container.stop()


def _prepare() -> None:
    if not docker_answers():
        raise NoContainer("no Docker answers on this machine")
    for name, value in TESTCONTAINERS.items():
        os.environ.setdefault(name, value)


def _settings(port: int) -> dict[str, str]:
    return {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS": "8",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_BROKER_SESSION_TIMEOUT_MS": "3000",
        "KAFKA_BROKER_HEARTBEAT_INTERVAL_MS": "500",
        "KAFKA_LOG_CLEANER_DEDUPE_BUFFER_SIZE": "8388608",
        "KAFKA_LOG_DIRS": "/tmp/kraft",  # noqa: S108  (inside the container, and gone with it)
        "KAFKA_HEAP_OPTS": "-Xms64m -Xmx256m",
    }

"""A real Apache Kafka for the tests: a given address, else a container where Docker answers, else Java.

Where none of them works the tests that need it are skipped with the reason; under CI=true they fail.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.kafka_node import JARS, KafkaNode, NodeUnable, check_java, fetch_jars, free_port

IMAGE = "apache/kafka:4.3.1"


@pytest.fixture(scope="session")
def kafka_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The `host:port` of a broker that the whole session shares: take topics of your own."""
    if given := os.environ.get("ATTACHE_TEST_KAFKA"):
        yield given
    elif container := _container():
        try:
            yield f"127.0.0.1:{container.get_exposed_port(9092)}"
        finally:
            container.stop()
    else:
        with _node(tmp_path_factory.mktemp("kafka")) as node:
            yield node.address


@pytest.fixture(scope="session")
def second_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaNode]:
    """Another node, from jars in any case: `breakable_kafka` is how a test takes it."""
    with _node(tmp_path_factory.mktemp("second-kafka")) as node:
        yield node


@pytest.fixture
def breakable_kafka(second_kafka: KafkaNode) -> KafkaNode:
    """A running node of this test alone, to be stopped and killed."""
    if not second_kafka.alive():
        _start(second_kafka)
    return second_kafka


@contextmanager
def _node(folder: Path) -> Iterator[KafkaNode]:
    node = KafkaNode(folder, free_port())
    _start(node)
    try:
        yield node
    finally:
        node.stop()


def _start(node: KafkaNode) -> None:
    try:
        check_java()
        fetch_jars(JARS)
    except NodeUnable as unable:
        unavailable(f"no Kafka: {unable}")
    node.start()
    node.wait_ready()


def unavailable(reason: str) -> None:
    """Skip; fail where CI promises that it can be run."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _container() -> Any:
    """A started Kafka container, or None where no Docker answers or it cannot get the image."""
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    ):
        return None
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")  # its reaper is one more image to fetch
    os.environ.setdefault(
        "TESTCONTAINERS_CONNECTION_MODE", "docker_host"
    )  # else a virtual machine is taken for a container
    os.environ.setdefault("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")
    from testcontainers.core.container import DockerContainer  # reads the environment when it is imported
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    port = free_port()  # found before: it has to be advertised
    container = DockerContainer(IMAGE).with_envs(**_settings(port))
    container.ports.update({9092: ("127.0.0.1", port)})  # type: ignore[dict-item]  # with_bind_ports takes no host address
    ready = LogMessageWaitStrategy("Kafka Server started").with_startup_timeout(60).with_poll_interval(0.2)
    try:
        return container.waiting_for(ready).start()
    except Exception as error:  # noqa: BLE001 (of three libraries, and the jars do as well)
        print(f"no Kafka container, the jars are used: {error}")
        return None


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

"""A real Apache Kafka for the tests: a given address, else Java, else a container where Docker answers.

Where none of them works the tests that need it are skipped with the reason; under CI=true they fail.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.kafka_node import JARS, KafkaNode, NodeUnable, check_java, fetch_jars, free_port, until_answers
from tests.containers import NoContainer, kafka_container

PATIENCE = 180.0
"""Seconds until a broker answers; an idle machine needs five."""


@pytest.fixture(scope="session")
def kafka_address() -> Iterator[str]:
    """The `host:port` of a broker that the whole session shares, and all its workers: take topics of your own."""
    if given := os.environ.get("ATTACHE_TEST_KAFKA"):
        until_answers(given, PATIENCE)
        yield given
        return
    try:
        with shared_kafka() as address:
            until_answers(address, PATIENCE)
            yield address
    except NodeUnable as unable:
        unavailable(f"no Kafka: {unable}")


@contextmanager
def shared_kafka() -> Iterator[str]:
    """A broker's address at which it will soon answer; it ends with the block. Raises `NodeUnable`."""
    with tempfile.TemporaryDirectory(prefix="attache-test-kafka-") as name:
        node = KafkaNode(Path(name), free_port())
        try:
            node.start()
        except NodeUnable as unable:
            try:
                with kafka_container() as address:
                    yield address
                    return
            except NoContainer as none:
                raise NodeUnable(f"{unable}; {none}") from none
        try:
            yield node.address
        finally:
            node.stop()


@pytest.fixture(scope="session")
def second_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaNode]:
    """Another node, from jars in any case: `breakable_kafka` is how a test takes it."""
    node = KafkaNode(tmp_path_factory.mktemp("second-kafka"), free_port())
    _start(node)
    try:
        yield node
    finally:
        node.stop()


@pytest.fixture
def breakable_kafka(second_kafka: KafkaNode) -> KafkaNode:
    """A running node of this test alone, to be stopped and killed."""
    if not second_kafka.alive():
        _start(second_kafka)
    return second_kafka


def _start(node: KafkaNode) -> None:
    try:
        check_java()
        fetch_jars(JARS)
    except NodeUnable as unable:
        unavailable(f"no Kafka: {unable}")
    node.start()
    node.wait_ready(PATIENCE)


def unavailable(reason: str) -> None:
    """Skip; fail where CI promises that it can be run."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)

"""The topics of Kafka: made where they lack, and compared with what we want of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic  # type: ignore[import-untyped]
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType  # type: ignore[import-untyped]

from shared.bus import BusAway, Topic
from shared.bus_kafka_clients import CLOSE_SECONDS, FAILED, begun, bounded, said

TOPIC_EXISTS = 36
TOPIC_UNKNOWN = 3
SET_ON_TOPIC = 1


@contextlib.asynccontextmanager
async def administrator(options: Mapping[str, Any], patience: float) -> AsyncIterator[Any]:
    """A client for topics, for at most `patience` seconds. Raises `BusAway`, also for what is done with it."""
    admin = AIOKafkaAdminClient(**options, request_timeout_ms=round(patience * 1000))
    try:
        async with asyncio.timeout(patience):
            await begun(admin, options)
            yield admin
    except FAILED as error:
        raise BusAway(said(error)) from error
    finally:
        await bounded(admin.close(), CLOSE_SECONDS)


async def make_topics(admin: Any, topics: Sequence[Topic]) -> None:
    """Those that lack, each with its leaders then. Raises `BusAway` for one that the broker does not make."""
    described = {found["topic"]: found for found in await admin.describe_topics([topic.name for topic in topics])}
    lacking = [topic for topic in topics if described[topic.name]["error_code"] == TOPIC_UNKNOWN]
    if not lacking:
        return
    answer = await admin.create_topics(
        [
            NewTopic(topic.name, topic.partitions, topic.replication, topic_configs=settings_of(topic))
            for topic in lacking
        ]
    )
    for name, code, detail in answer.topic_errors:
        if code not in (0, TOPIC_EXISTS):  # another service may have been quicker
            raise BusAway(f"Kafka: topic {name} was not made: {detail or f'error {code}'}")
    while not await _known(admin, topics):
        await asyncio.sleep(0.05)


async def differences(admin: Any, topics: Sequence[Topic]) -> list[str]:
    """How topics that are there differ from what is wanted, a line each."""
    return [text for topic in topics for text in await _differences(admin, topic)]


async def shortcomings(admin: Any, topics: Sequence[Topic]) -> list[str]:
    """Each difference, those that lack and copies that are behind included."""
    described = await admin.describe_topics([topic.name for topic in topics])
    lacking = {found["topic"] for found in described if found["error_code"] == TOPIC_UNKNOWN}
    different = await differences(admin, [topic for topic in topics if topic.name not in lacking])
    short = [text for found in described for text in _short_of_copies(found)]
    return [*(f"{name}: is not there" for name in sorted(lacking)), *different, *short]


def settings_of(topic: Topic) -> dict[str, str]:
    """What is set on a topic of ours, by Kafka's names."""
    return {
        "cleanup.policy": "delete",
        "min.insync.replicas": str(topic.min_isr),
        "retention.ms": str(topic.retention_ms),
        "retention.bytes": str(topic.retention_bytes),
    }


async def _known(admin: Any, topics: Sequence[Topic]) -> bool:
    described = await admin.describe_topics([topic.name for topic in topics])
    return not any(
        found["error_code"] or any(part["leader"] < 0 for part in found["partitions"]) for found in described
    )


async def _differences(admin: Any, topic: Topic) -> list[str]:
    [found] = await admin.describe_topics([topic.name])
    have = {
        "partitions": str(len(found["partitions"])),
        "replication": str(min(len(part["replicas"]) for part in found["partitions"])),
    }
    want = {"partitions": str(topic.partitions), "replication": str(topic.replication), **settings_of(topic)}
    [answer] = await admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, topic.name, dict.fromkeys(settings_of(topic)))]
    )
    origins = {}
    for _, _, _, _, entries in answer.resources:
        for name, value, _, source, *_ in entries:
            have[name] = value
            origins[name] = "" if source == SET_ON_TOPIC else " (the broker's default)"
    return [
        f"{topic.name}: {name} is {have.get(name)}{origins.get(name, '')}, not {wanted}"
        for name, wanted in want.items()
        if have.get(name) != wanted
    ]


def _short_of_copies(found: Mapping[str, Any]) -> list[str]:
    """The partitions that nobody leads, or of which a copy is behind."""
    return [
        f"{found['topic']}: partition {part['partition']} has {len(part['isr'])} of {len(part['replicas'])} copies"
        for part in found["partitions"]
        if part["leader"] < 0 or len(part["isr"]) < len(part["replicas"])
    ]

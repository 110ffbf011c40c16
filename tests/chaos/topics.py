"""The topics as they stand on the broker, read without any code of ours, and what a stranger can write to them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]

PARTITIONS = 8


class Told(NamedTuple):
    """One record of a topic."""

    key: str
    sequence: int
    id: str


@dataclass(kw_only=True)
class Poison:
    """What was put on topics that is not in any log: message ids, and keys that no producer knows."""

    ids: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    garbage: int = 0

    async def garble(self, bootstrap: str, topic: str) -> None:
        """Bytes that are no message at all."""
        self.garbage += 1
        await _send(bootstrap, topic, b"\xff\x00", b"\xfe{", {})

    async def refused(self, bootstrap: str, topic: str, key: str, sequence: int) -> None:
        """A well-formed message, the next of its key, whose body no handler takes."""
        message = str(uuid4())
        self.ids.add(message)
        envelope = {
            "specversion": "1.0",
            "id": message,
            "type": "attache.MeetingScheduled.v1",
            "source": "/attache/schedule",
            "subject": f"meeting/{uuid4()}",
            "time": "2031-01-01T00:00:00Z",
            "recordedtime": "2031-01-01T00:00:00Z",
            "partitionkey": key,
            "sequence": f"{sequence:020d}",
            "correlationid": str(uuid4()),
            "epoch": "1",
        }
        await _send(bootstrap, topic, key.encode(), json.dumps({"trip": key}).encode(), envelope)


async def read(bootstrap: str, topics: Sequence[str]) -> dict[str, list[Told]]:
    """Every message of each topic, partition by partition from the beginning; garbage is passed over.

    A topic that the broker does not know (any more) holds nothing. Raises `KafkaError`.
    """
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        there = await consumer.topics()
        partitions = [TopicPartition(topic, one) for topic in topics if topic in there for one in range(PARTITIONS)]
        if not partitions:
            return {topic: [] for topic in topics}
        consumer.assign(partitions)
        ends: Mapping[TopicPartition, int] = await consumer.end_offsets(partitions)
        told: dict[str, list[Told]] = {topic: [] for topic in topics}
        while [one for one in partitions if await consumer.position(one) < ends[one]]:
            for partition, records in (await consumer.getmany(timeout_ms=200)).items():
                told[partition.topic] += [
                    one for record in records if record.offset < ends[partition] and (one := _told(record)) is not None
                ]
        return told
    finally:
        await consumer.stop()


def _told(record: object) -> Told | None:
    headers = dict(record.headers)  # type: ignore[attr-defined]  # aiokafka is untyped
    if "ce_id" not in headers:
        return None
    key: bytes = record.key  # type: ignore[attr-defined]
    return Told(key.decode(), int(headers["ce_sequence"]), headers["ce_id"].decode())


async def _send(bootstrap: str, topic: str, key: bytes, body: bytes, envelope: Mapping[str, str]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all")
    await producer.start()
    try:
        headers = [(f"ce_{name}", value.encode()) for name, value in envelope.items()]
        await producer.send_and_wait(topic, value=body, key=key, headers=headers)
    finally:
        await producer.stop()

"""The topics on the bus against those of the code. Nothing is made and nothing altered."""

from collections.abc import Sequence

from services.doctor.databases import connected
from services.doctor.findings import Finding, fail, ok
from shared.bus import BusAway, Topic
from shared.bus_kafka import KafkaBus
from shared.kafka_security import KafkaSecurity

DO = "python -m services topics makes what lacks; alter what differs on the broker, or set TOPIC_... to what it is"


async def on_kafka(bootstrap: str, wanted: Sequence[Topic], security: KafkaSecurity | None = None) -> list[Finding]:
    """A line for each difference."""
    bus = KafkaBus(bootstrap, client_id="attache-doctor", security=security)
    try:
        different = await bus.differences(wanted)
    except BusAway as error:
        return [fail("topics", f"the broker does not answer: {error}", "see whether it is up, and KAFKA_BOOTSTRAP")]
    return _told(different, f"{len(wanted)} topics are as they have to be (Kafka does not tell its version)")


async def on_local_bus(url: str, wanted: Sequence[Topic]) -> list[Finding]:
    """A line for each difference."""
    async with connected(url) as database:
        have = dict(await database.fetch("SELECT name, partitions FROM topics"))
    different = [
        f"{topic.name}: is not there"
        if topic.name not in have
        else f"{topic.name}: partitions is {have[topic.name]}, not {topic.partitions}"
        for topic in wanted
        if have.get(topic.name) != topic.partitions
    ]
    return _told(different, f"{len(wanted)} topics are as they have to be (local bus)")


def _told(different: Sequence[str], well: str) -> list[Finding]:
    return [fail("topics", one, DO) for one in different] or [ok("topics", well)]

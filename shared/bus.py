"""The bus: the small port behind which Kafka and the local bus stand.

A record goes to a topic under a key; records of one key keep their order; a group of consumers shares a topic's
partitions. Nothing else of a broker is used. `shared.bus_kafka` and `shared.bus_local` are the two adapters and
`tests/shared/test_bus.py` is the suite that both must pass.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Partition(NamedTuple):
    """One partition of a topic."""

    topic: str
    number: int


class Place(NamedTuple):
    """Where an acknowledged record stands."""

    topic: str
    number: int
    offset: int


@dataclass(frozen=True, slots=True)
class Record:
    """A record on its way. `headers` are CloudEvents attributes with the prefix `ce_`, and `content-type`."""

    topic: str
    key: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """A record as it was read: nothing about it is trusted yet."""

    topic: str
    number: int
    offset: int
    key: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    body: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """What a topic must be. Topics are code: a start with other settings on the broker is refused (`TopicDrift`)."""

    name: str
    partitions: int = 8
    replication: int = 1
    min_isr: int = 1
    """How many copies a record must have before it is acknowledged."""
    retention_ms: int = -1
    retention_bytes: int = -1


class BusAway(Exception):
    """The broker does not answer, or not as it should. Transient: try again later with a new producer."""


def tail_of(first: int, end: int, behind: int | None, limit: int) -> list[tuple[int, int]]:
    """The spans of offsets (the end left out) that `Producer.tail` reads of a partition which begins and ends there."""
    last = max(first, end - limit)
    if behind is None:
        return [(last, end)] if last < end else []
    start = max(first, behind + 1)
    if start >= last - limit:
        return [(start, end)] if start < end else []
    return [(start, start + limit), (last, end)]


class SendStopped(BusAway):
    """A batch was not acknowledged whole. `acked` are the places of its first records, without a gap."""

    def __init__(self, detail: str, acked: Sequence[Place]) -> None:
        super().__init__(detail)
        self.acked = tuple(acked)


class TopicDrift(Exception):
    """A topic on the broker differs from the code; the text names each difference."""


class Producer(Protocol):
    """Writes records. After any `BusAway` it is to be closed and replaced; `close` never hangs."""

    async def send(self, records: Sequence[Record]) -> list[Place]:
        """Send all, in order per key, and wait for each acknowledgement. Raises `SendStopped`."""

    async def id_at(self, place: Place) -> str | None:
        """The `ce_id` of the record at a place, None where there is none (any more). Raises `BusAway`."""

    async def tail(self, topic: str, behind: Mapping[int, int], limit: int) -> list[Delivery]:
        """What stands on a topic behind these offsets, by partition: of each the first and the last `limit`.

        Of a partition that is not named the last `limit`; a topic that is not there is empty. Raises `BusAway`.
        """

    async def close(self) -> None:
        """Give up what is pending and let go of every connection, within a few seconds."""


class Subscription(Protocol):
    """A member of a group. Offsets are kept by the caller, not by the bus. One task at a time calls `fetch`."""

    async def fetch(self, limit: int, wait: float) -> Mapping[Partition, Sequence[Delivery]]:
        """What has come for the assigned partitions: up to `limit` records, waiting about `wait` seconds at most.

        While the broker is away it returns nothing and does not raise; `BusAway` means that this subscription is
        spent and a new one is needed. What `on_assigned` raises comes out of here, and the next call asks it again.
        """

    def assigned(self) -> frozenset[Partition]:
        """The partitions that are this member's now: those that `on_assigned` has answered for."""

    async def ends(self) -> Mapping[Partition, int]:
        """For each assigned partition the offset that the next record will get. Raises `BusAway`."""

    def seek(self, partition: Partition, offset: int) -> None:
        """Read on from this offset (after a transaction that failed). An offset that is gone means the beginning."""

    async def report(self, partition: Partition, next_offset: int) -> None:
        """Tell the broker how far we are, as a lag signal alone; failures are swallowed."""

    async def close(self) -> None:
        """Leave the group and let go of every connection, within a few seconds. `on_revoked` is not called."""


Assigned = Callable[[frozenset[Partition]], Awaitable[Mapping[Partition, int]]]
"""Called inside `fetch` with newly assigned partitions before anything of them is read; answers where each is to be
read from (a partition that is not in the answer: from the beginning)."""

Revoked = Callable[[frozenset[Partition]], Awaitable[None]]
"""Called beside `fetch`, from another task, before partitions go to another member; a short while is given to end
what is under way. Who overruns it, or has lost the broker, may be one of two owners: a conditional offset fences."""


class Bus(Protocol):
    """One of the two adapters."""

    async def ensure_topics(self, topics: Sequence[Topic]) -> None:
        """Make the topics that lack; raises `TopicDrift` where one differs, `BusAway`."""

    async def producer(self) -> Producer:
        """A new producer, connected. Raises `BusAway`."""

    async def subscribe(
        self, group: str, topics: Sequence[str], *, on_assigned: Assigned, on_revoked: Revoked
    ) -> Subscription:
        """Join a group. Raises `BusAway`."""

    async def close(self) -> None:
        """Let go of everything that the adapter itself holds."""

"""A service as Prometheus sees it: one finding of `shared.readiness`, and what the process has counted, as text.

Everything is named `attache_*` and labelled with the `service`; the replica is Prometheus's own label `instance`. What
the database alone can tell is left out while it does not answer, and never told as 0: `attache_ready` is 0 then.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_args

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from shared import VERSION
from shared.consumer import ConsumerState
from shared.database import pool_use
from shared.parking import GAP, NOT_APPLIED
from shared.readiness import PARTS, Finding, Readiness, Standing
from shared.taking import Outcome
from shared.tally import Requests, Seconds
from shared.time_zones import tz_release

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)

Samples = Mapping[Any, float]
"""Values by a tuple of those labels that come after `service`, however many those are."""


class Families:
    """Makes the metrics of one service: each gets the label `service` first."""

    def __init__(self, service: str) -> None:
        self._service = service

    def gauge(self, name: str, said: str, samples: float | Samples, *labels: str) -> Metric:
        """What goes up and down."""
        family = GaugeMetricFamily(f"attache_{name}", said, labels=["service", *labels])
        return self._filled(family, samples)

    def counter(self, name: str, said: str, samples: float | Samples, *labels: str) -> Metric:
        """What only grows while the process lives; `_total` is put behind its name."""
        family = CounterMetricFamily(f"attache_{name}", said, labels=["service", *labels])
        return self._filled(family, samples)

    def histogram(self, name: str, said: str, samples: Mapping[Any, Seconds], *labels: str) -> Metric:
        """How long something took, in seconds."""
        family = HistogramMetricFamily(f"attache_{name}", said, labels=["service", *labels])
        for values, seconds in samples.items():
            family.add_metric([self._service, *values], seconds.buckets(), seconds.total)
        return family

    def _filled(self, family: GaugeMetricFamily | CounterMetricFamily, samples: float | Samples) -> Metric:
        for values, value in (samples if isinstance(samples, Mapping) else {(): samples}).items():
            family.add_metric([self._service, *values], value)
        return family


More = Callable[[Families], Iterable[Metric]]
"""What one service alone has to tell."""


async def exposition(readiness: Readiness, requests: Requests, more: Iterable[More] = ()) -> bytes:
    """The answer of `/metrics`."""
    registry = CollectorRegistry()
    for own in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
        registry.register(own)
    registry.register(_Collector(readiness, await readiness.find(), requests, more))
    return generate_latest(registry)


class _Collector:
    def __init__(self, readiness: Readiness, finding: Finding, requests: Requests, more: Iterable[More]) -> None:
        self._readiness, self._finding, self._requests, self._more = readiness, finding, requests, more

    def describe(self) -> Iterable[Metric]:
        """prometheus_client asks for names when it registers; without this it would collect twice."""
        return []

    def collect(self) -> Iterator[Metric]:
        """What prometheus_client asks a collector for."""
        families, readiness, finding = Families(self._readiness.name), self._readiness, self._finding
        yield from _service(families, readiness, finding)
        yield from _process(families, readiness)
        if finding.standing is not None:
            yield from _store(families, finding.standing, [topic.name for topic in readiness.consumer.topics])
        yield from _requests(families, self._requests)
        for one in self._more:
            yield from one(families)


def _service(of: Families, readiness: Readiness, finding: Finding) -> Iterator[Metric]:
    build = {(VERSION, platform.python_version(), tz_release()): 1.0}
    yield of.gauge("build_info", "The program that runs", build, "version", "python", "tzdata")
    yield of.gauge("ready", "1 while the service does its work: what /readyz says", int(finding.ready))
    parts = {(part,): float(part in finding.reasons) for part in PARTS}
    yield of.gauge("stands_still", "1 for what keeps the service from being ready", parts, "part")
    if finding.unheard is not None:
        said = "Messages that the producers have told and this service has not applied, without those of parked keys"
        yield of.gauge("consumer_lag_messages", said, finding.unheard)
    pools = {name: pool_use(engine) for name, engine in readiness.pools.items()}
    in_use, limit = ({(name,): float(pool[at]) for name, pool in pools.items()} for at in (0, 1))
    yield of.gauge("database_connections_in_use", "Connections of a pool that are in use", in_use, "pool")
    yield of.gauge("database_connections_limit", "Connections that a pool can have at most", limit, "pool")


def _process(of: Families, readiness: Readiness) -> Iterator[Metric]:
    relay, consumer = readiness.relay.state, readiness.consumer
    yield of.gauge("relay_leads", "1 in the one process whose relay publishes", int(relay.leads))
    yield of.counter("relay_records_sent", "Records that the bus has acknowledged", relay.sent)
    yield of.counter("relay_restarts", "How often the relay failed and began anew", relay.restarts)
    yield from _consumer(of, consumer.state)
    partitions = sum(topic.partitions for topic in consumer.topics)
    yield of.gauge("consumer_partitions", "Partitions that all replicas together have to read", partitions)
    lags = {(topic,): max(0.0, seconds) for topic, seconds in consumer.lag.seconds().items()}
    said = "How old the oldest message on the bus may be that was not taken yet, by what this replica holds"
    yield of.gauge("consumer_lag_seconds", said, lags, "topic")
    yield of.counter("healer_messages", "Messages fetched from a producer's own log", readiness.healer.keys.healed)
    rebuilt = readiness.healer.rebuilding.rebuilt
    yield of.counter("healer_keys_rebuilt", "Keys built anew from their producer's log", rebuilt)
    rewound = readiness.healer.rewound
    keys, lost = ({(topic,): float(n) for topic, n in one.items()} for one in (rewound.keys, rewound.lost))
    said = "Keys built anew, since their producer's log had less of them than was applied here"
    yield of.counter("healer_keys_rewound", said, keys, "topic")
    said = "Keys with messages applied here of which their producer's log has nothing at all"
    yield of.gauge("healer_lost_keys", said, lost, "topic")


def _consumer(of: Families, state: ConsumerState) -> Iterator[Metric]:
    outcomes = {(outcome,): float(state.counts.get(outcome, 0)) for outcome in OUTCOMES}
    yield of.counter("consumer_messages", "Messages taken, by what became of them", outcomes, "outcome")
    yield of.counter("consumer_restarts", "How often the consumer failed and began anew", state.restarts)
    yield of.gauge("consumer_assigned_partitions", "Partitions that this replica reads", len(state.assigned))


def _store(of: Families, standing: Standing, topics: Iterable[str]) -> Iterator[Metric]:
    yield of.gauge("epoch", "Which history is told: it rises when the database was put back", standing.epoch)
    behind = standing.clock_behind or 0.0
    yield of.gauge("clock_behind_seconds", "By how much this machine's clock is before the newest event", behind)
    yield of.gauge("database_size_bytes", "What the database takes on its disk", standing.size)
    yield of.gauge("relay_position", "The position in the log up to which everything is published", standing.position)
    yield of.gauge("relay_unpublished_events", "Events that wait to be published", standing.unpublished)
    yield of.gauge("relay_oldest_unpublished_seconds", "The age of the oldest of these, 0 without any", standing.age)
    said = "Partitions with much to catch up with; nothing is rendered meanwhile"
    yield of.gauge("consumer_catching_up_partitions", said, standing.catching_up)
    parked = {(topic,): 0.0 for topic in topics} | {(topic,): float(n) for topic, n in standing.parked.items()}
    yield of.gauge("parked_messages", "Messages put aside, with those behind them", parked, "topic")
    keys = {(topic, reason): 0.0 for (topic,) in parked for reason in (GAP, NOT_APPLIED)}
    keys |= {one: float(n) for one, n in standing.waiting_keys.items()}
    yield of.gauge("parked_keys", "Keys (trips) that do not go on, by what they wait for", keys, "topic", "waits_for")


def _requests(of: Families, requests: Requests) -> Iterator[Metric]:
    answered = {(method, route, str(status)): float(n) for (method, route, status), n in requests.answered.items()}
    yield of.counter("http_requests", "Requests, those of feeds left out", answered, "method", "route", "status")
    yield of.histogram("http_request_duration_seconds", "How long they took", requests.took, "method", "route")
    commands = {one: float(n) for one, n in requests.commands.items()}
    yield of.counter("commands", "Commands; the outcome is done, or the refusal", commands, "command", "outcome")
    took = {(name,): seconds for name, seconds in requests.commands_took.items()}
    yield of.histogram("command_duration_seconds", "How long commands took, refused ones too", took, "command")

"""Readiness: red for what stands still, and a sentence that says what it is."""

import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from shared.bus import Partition
from shared.database import make_engine, pool_use
from shared.readiness import PRODUCERS_SECONDS, STALLED_SECONDS, STORE_SECONDS, WATCH_SECONDS

if TYPE_CHECKING:
    from tests.shared.conftest import Publishing

Until = Callable[..., Awaitable[None]]


@pytest.fixture
def bus_name() -> str:
    """One bus is enough: what is judged is this service's own state."""
    return "local"


async def test_a_service_without_a_free_connection_says_so(
    publishing: "Publishing", until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = publishing.service()
    async with service.running():
        await until(lambda: _reasons(publishing, set()))
        async with AsyncExitStack() as held:
            _, limit = pool_use(publishing.engine)
            for _ in range(limit):  # also what the service had just then
                await held.enter_async_context(publishing.engine.connect())
            with monkeypatch.context() as soon:
                soon.setattr("shared.readiness.STORE_SECONDS", 1.0)
                answer = await publishing.ask("readyz")
                metrics = (await publishing.ask("metrics", publishing.operator)).text
            assert answer.status_code == 503
            said = answer.json()["reasons"]["pool"]
            assert said == f"the database's connections are all in use: {limit} of {limit} (commands)"
            of = f'service="{publishing.name}"'
            assert f'attache_stands_still{{part="pool",{of}}} 1.0' in metrics
            assert f'attache_database_connections_in_use{{pool="commands",{of}}} {limit}.0' in metrics
            assert "attache_relay_position" not in metrics  # not known is not 0
        await until(lambda: _reasons(publishing, set()))


async def test_a_service_whose_database_does_not_answer_says_so(publishing: "Publishing", until: Until) -> None:
    service = publishing.service()
    async with service.running():
        await until(lambda: _reasons(publishing, set()))
        engine = service.readiness.engine
        service.readiness.engine = make_engine("postgresql+asyncpg://nobody@127.0.0.1:9/none", name="nobody")
        answer = await publishing.ask("readyz")
        service.readiness.engine = engine
    assert answer.status_code == 503
    assert answer.json()["reasons"] == {"store": "the database does not answer (ConnectionRefusedError)"}
    assert answer.json()["store"] == "ConnectionRefusedError"


def test_what_stands_still_is_said_within_10_s_with_the_times_that_are_shipped() -> None:
    assert STALLED_SECONDS + WATCH_SECONDS < 10
    assert STORE_SECONDS + PRODUCERS_SECONDS < 10


async def test_a_consumer_that_is_too_far_behind_says_on_which_topic(publishing: "Publishing", until: Until) -> None:
    service = publishing.service()
    async with service.running():
        await until(lambda: _reasons(publishing, set()))
        service.readiness.lag = -1.0  # whatever it is, it is too much
        await until(lambda: _reasons(publishing, {"lag"}))
        said = (await publishing.ask("readyz")).json()["reasons"]["lag"]
        assert said.startswith("the consumer is ")
        assert said.endswith(f" s behind on {publishing.cleared}")


async def test_a_consumer_that_stands_still_says_for_how_long(publishing: "Publishing", until: Until) -> None:
    service = publishing.service()
    assert (await service.readiness.find()).reasons == {
        "consumer": "the consumer has not come to any partition's end or message yet"
    }
    async with service.running():
        await until(lambda: _reasons(publishing, set()))
        service.readiness.stalled = 0.0
        since = service.consumer.state.healthy_at
        said = (await publishing.ask("readyz")).json()["reasons"]["consumer"]
        told = re.fullmatch(r"a partition has stood still for (\d+) s, with 4 partitions assigned", said)
        assert told is not None, said
        assert int(told[1]) <= round(time.monotonic() - since)


async def test_what_stands_still_is_known_before_anybody_asks(publishing: "Publishing", until: Until) -> None:
    service = publishing.service()
    async with service.running():
        await until(lambda: _reasons(publishing, set()))
        await publishing.note("a", "first")
        await until(lambda: _position(service, 1))
    # nobody publishes now, and only the watch looks
    await publishing.note("a", "second")
    service.readiness.stalled = 0.0
    found = await service.readiness.find()
    assert found.reasons["relay"].startswith("the relay has stood at position 1 for ")
    assert ": 1 events wait, the oldest for " in found.reasons["relay"]


async def test_parked_keys_and_messages_are_told_by_topic(publishing: "Publishing", until: Until) -> None:
    service = publishing.service()
    async with publishing.engine.begin() as connection:
        for key, waits_for in (("a", "gap"), ("b", "gap"), ("c", "not-applied"), ("d", None)):
            await connection.execute(
                text("INSERT INTO consumer_marks (topic, key, sequence, waits_for) VALUES (:topic, :key, 1, :waits)"),
                {"topic": publishing.cleared, "key": key, "waits": waits_for},
            )
        for sequence in (2, 3, 4):
            await connection.execute(
                text(
                    "INSERT INTO parked_messages (topic, key, sequence, headers, slug, error, attempts) "
                    "VALUES (:topic, 'c', :sequence, '[]', 'not-applied', 'no', 1)"
                ),
                {"topic": publishing.cleared, "sequence": sequence},
            )
    publishing.app.include_router(service.router())
    metrics = (await publishing.ask("metrics", publishing.operator)).text
    of = f'service="{publishing.name}",topic="{publishing.cleared}"'
    assert f"attache_parked_messages{{{of}}} 3.0" in metrics
    assert f'attache_parked_keys{{{of},waits_for="gap"}} 2.0' in metrics
    assert f'attache_parked_keys{{{of},waits_for="not-applied"}} 1.0' in metrics
    assert (await publishing.ask("readyz")).json()["parked"] == 3


async def test_the_consumers_own_lag_is_told_while_it_reads(publishing: "Publishing", until: Until) -> None:
    service = publishing.service()
    await publishing.note("a", "first")
    async with publishing.engine.begin() as connection:
        await connection.execute(text("UPDATE events SET recorded_at = recorded_at - interval '1 hour'"))
    await publishing.send()
    assert service.consumer.lag.seconds() == {}
    async with service.running():
        await until(lambda: _took(service, 1))
        lag = service.consumer.lag
        await until(lambda: _below(lag, publishing.cleared, 60))
        partition = next(one for one in lag._recorded if one.topic == publishing.cleared)
        assert isinstance(partition, Partition)
    assert service.consumer.lag.seconds() == {}  # what is not read here is not told here


async def _reasons(publishing: "Publishing", expected: set[str]) -> bool:
    answer = await publishing.ask("readyz")
    assert answer.status_code == (200 if not answer.json()["reasons"] else 503)
    return set(answer.json()["reasons"]) == expected


async def _position(service: Any, position: int) -> bool:
    cursor: tuple[int, float] = service.readiness._cursor
    return cursor[0] == position


async def _took(service: Any, count: int) -> bool:
    taken: int = sum(service.consumer.state.counts.values())
    return taken >= count


async def _below(lag: Any, topic: str, seconds: float) -> bool:
    known: float = lag.seconds().get(topic, seconds)
    return known < seconds

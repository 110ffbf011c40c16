"""Redrive: keys are tried from their first parked message on, in order, once, beside whoever else works on them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.healer import Healer, HealerTimes
from shared.messages import Message
from shared.redrive import Parked, Redrive, Selection, Tried, parked

if TYPE_CHECKING:
    from tests.shared.conftest import Listening, Publishing

Running = Callable[..., AbstractAsyncContextManager[None]]
Until = Callable[..., Awaitable[None]]

NEVER = HealerTimes(retry=3600, compare=3600, missing=0.1)
"""A healer that does nothing by itself."""
EVERYTHING = ("consumer_marks", "consumer_offsets", "consumer_epochs", "parked_messages", "dropped_messages", "heard")


async def test_each_key_is_tried_from_its_first_parked_message_until_one_cannot_be_taken(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    healer = await _park(publishing, listening, running, until, {"a": 5, "b": 5, "c": 2}, refused={"a 2", "b 2"})
    listening.refused = {"b 4"}
    tried = await _redrive(listening, healer, Selection())
    assert [
        (one.was.key, one.was.messages, one.left and (one.left.messages, one.left.slug)) for one in _by_key(tried)
    ] == [
        ("a", 4, None),
        ("b", 4, (2, "not-applied")),
    ]
    assert await listening.heard("a") == [(number, f"a {number}") for number in range(1, 6)]
    assert await listening.heard("b") == [(1, "b 1"), (2, "b 2"), (3, "b 3")]
    assert await listening.rows("SELECT sequence, slug, attempts FROM parked_messages ORDER BY sequence") == [
        (4, "not-applied", 1),
        (5, "key-waits", 0),
    ]
    [(_, error)] = await listening.rows("SELECT key, error FROM parked_messages WHERE sequence = 4")
    assert error == "ValueError: cannot take b 4"


async def test_the_attempts_of_a_message_that_is_refused_again_are_counted(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    healer = await _park(publishing, listening, running, until, {"a": 3}, refused={"a 2"})
    for attempts in (2, 3, 4):
        [one] = await _redrive(listening, healer, Selection())
        assert one.left is not None
        assert (one.left.slug, one.left.attempts, one.left.messages) == ("not-applied", attempts, 2)
    assert await listening.heard("a") == [(1, "a 1")]


@pytest.mark.parametrize("bus_name", ["local"])
async def test_a_message_that_ends_the_process_is_counted_before_it_is_run(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await _park(publishing, listening, running, until, {"a": 6}, refused={"a 2"})
    listening.refused = set()

    async def ends(connection: AsyncConnection, message: Message) -> None:
        await listening.hear(connection, message)
        if message.body["what"] == "a 4":
            raise asyncio.CancelledError  # what a process that is killed in a handler leaves: nothing

    healer = listening.healer(listening.consumer(publishing, apply={"Noted.v1": ends}), publishing, NEVER)
    for _ in range(4):
        with pytest.raises(asyncio.CancelledError):
            await _redrive(listening, healer, Selection())
    assert await listening.heard("a") == [(number, f"a {number}") for number in range(1, 4)]
    rows = await listening.rows("SELECT sequence, attempts FROM parked_messages ORDER BY sequence")
    # the first time all of them were begun by their first one
    assert rows == [(4, 4), (5, 0), (6, 0)]
    whole = listening.healer(listening.consumer(publishing), publishing, NEVER)
    [one] = await _redrive(listening, whole, Selection(key="a"))
    assert one.left is None
    assert await listening.heard("a") == [(number, f"a {number}") for number in range(1, 7)]


@pytest.mark.parametrize("bus_name", ["local"])
async def test_key_topic_type_and_time_choose_keys_and_not_messages(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    healer = await _park(publishing, listening, running, until, {"a": 3, "b": 4, "c": 2}, refused={"a 1", "b 2", "c 1"})
    topic, then = publishing.cleared, datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
    await _change(
        listening,
        "UPDATE parked_messages SET parked_at = '2026-03-04T05:06:00Z' WHERE key = 'b' AND sequence = 3",
        "UPDATE parked_messages SET headers = replace(headers::text, 'attache.Noted.v1', 'attache.Sung.v2')::jsonb "
        "WHERE key = 'b' AND sequence = 4 OR key = 'c' AND sequence = 2",
    )
    listening.refused = set()
    choices = {
        "abc": Selection(until=then + timedelta(days=20000), type="Noted", topic=topic),
        "b": Selection(since=then, until=then + timedelta(seconds=1)),
        "bc": Selection(type="Sung"),
        "": Selection(type="Sung", until=then),
        "c": Selection(key="c", topic=topic),
    }
    for keys, selection in choices.items():
        found = {one.key for one in await parked(listening.engine, selection)}
        assert found == set(keys), selection
    assert await parked(listening.engine, Selection(topic="attache.other")) == []
    [one] = await _redrive(listening, healer, choices["b"])
    assert (one.was.key, one.left) == ("b", None)
    assert await listening.heard("b") == [(number, f"b {number}") for number in range(1, 5)]
    assert (await listening.heard("a"), await listening.heard("c")) == ([], [])


@pytest.mark.parametrize("bus_name", ["local"])
async def test_looking_says_what_stands_in_each_keys_way_and_changes_nothing(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await _park(publishing, listening, running, until, {"a": 3, "b": 4}, refused={"a 2", "b 4"})
    ids = {(event.key, event.cleared_sequence): str(event.id) for event in await publishing.log()}
    before = await _everything(listening)
    found = await parked(listening.engine, Selection())
    assert await _everything(listening) == before
    since = dict(await listening.rows("SELECT key, min(parked_at) FROM parked_messages GROUP BY key"))
    common = {"topic": publishing.cleared, "unread": False, "type": "Noted", "slug": "not-applied", "announced": True}
    assert sorted(found, key=lambda one: one.key) == [
        Parked(key="a", messages=2, since=since["a"], name=ids["a", 2], attempts=1, **common),  # type: ignore[arg-type]
        Parked(key="b", messages=1, since=since["b"], name=ids["b", 4], attempts=1, **common),  # type: ignore[arg-type]
    ]


async def test_two_redrives_beside_a_service_that_runs_do_nothing_twice_and_keep_the_order(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    keys = {f"key {number}": 6 for number in range(12)}
    await _park(publishing, listening, running, until, keys, refused={f"{key} 2" for key in keys})
    listening.refused = set()
    listening.pause = 0.01
    consumers = [listening.consumer(publishing) for _ in range(3)]
    live = listening.healer(consumers[0], publishing, HealerTimes(retry=0.02, compare=0.05, missing=0.02))
    redrives = [listening.healer(consumer, publishing, NEVER) for consumer in consumers[1:]]
    for key in keys:
        await publishing.note(key, *(f"{key} {number}" for number in (7, 8, 9)))
    async with running(consumers[0].run(), live.run()):
        await asyncio.gather(publishing.send(), *(_redrive(listening, one, Selection()) for one in redrives))
        await until(lambda: _is(listening, "SELECT count(*) FROM heard", 12 * 9))
    for key in keys:
        assert await listening.heard(key) == [(number, f"{key} {number}") for number in range(1, 10)]
    assert await listening.parked() == []


@pytest.mark.parametrize("bus_name", ["local"])
async def test_what_is_not_announced_yet_is_left_for_its_announcement(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    healer = await _park(publishing, listening, running, until, {"a": 2}, refused={"a 1"})
    await _change(listening, "UPDATE parked_messages SET announced_at = NULL")
    listening.refused = set()
    before = await _everything(listening)
    [one] = await _redrive(listening, healer, Selection())
    assert (one.why, one.left) == (
        "it is not announced on the dead-letter topic yet: the service's relay does that",
        one.was,
    )
    assert await _everything(listening) == before


@pytest.mark.parametrize("bus_name", ["local"])
async def test_a_producer_that_is_away_is_said_and_asked_once(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await _park(publishing, listening, running, until, {"a": 2, "b": 2}, refused={"a 1", "b 1"})
    listening.refused = set()
    asked: list[httpx.Request] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(503)

    consumer = listening.consumer(publishing)
    healer = listening.healer(consumer, publishing, NEVER)
    log = healer._logs[publishing.cleared]
    object.__setattr__(log, "client", httpx.AsyncClient(transport=httpx.MockTransport(refuse)))
    tried = await _redrive(listening, healer, Selection())
    assert [one.why for one in tried] == ["its producer's message log does not answer: 503"] * 2
    assert len(asked) == 1
    whole = listening.healer(listening.consumer(publishing), publishing, NEVER)
    assert [one.left for one in await _redrive(listening, whole, Selection())] == [None, None]


@pytest.mark.parametrize("bus_name", ["local"])
async def test_what_can_be_read_by_now_goes_when_its_key_is_past_it_and_the_rest_stays(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await _park(publishing, listening, running, until, {"a": 3}, refused=set())
    [*_, last] = [publishing.to_records(event, 1)[0] for event in await publishing.log()]
    for number, body in enumerate((last.body, b"no JSON")):
        await _insert_unread(listening, publishing.cleared, "a", number, last.headers, body)
    healer = listening.healer(listening.consumer(publishing), publishing, NEVER)
    [one] = await _redrive(listening, healer, Selection())
    assert one.was.unread
    assert one.left is not None
    assert (one.was.messages, one.left.messages, one.left.name) == (2, 1, f"{publishing.cleared}/0/901")
    assert await listening.rows("SELECT body, attempts FROM parked_messages") == [(b"no JSON", 2)]
    assert await listening.heard("a") == [(1, "a 1"), (2, "a 2"), (3, "a 3")]


async def _park(
    publishing: "Publishing",
    listening: "Listening",
    running: Running,
    until: Until,
    keys: dict[str, int],
    refused: set[str],
) -> Healer:
    """Messages `key 1`, `key 2`, ... of each key, taken but for what is refused, and announced. A healer that rests."""
    for key, count in keys.items():
        await publishing.note(key, *(f"{key} {number}" for number in range(1, count + 1)))
    listening.refused = refused
    consumer = listening.consumer(publishing)
    await publishing.send()
    async with running(consumer.run()):
        total = sum(keys.values())
        await until(lambda: _is_true(sum(consumer.state.counts.values()) == total))
    await _change(listening, "UPDATE parked_messages SET announced_at = now() WHERE slug = 'not-applied'")
    return listening.healer(consumer, publishing, NEVER)


async def _redrive(listening: "Listening", healer: Healer, selection: Selection) -> list[Tried]:
    chosen = await parked(listening.engine, selection)
    return [one async for one in Redrive(listening.engine, healer.keys).each(chosen)]


def _by_key(tried: Sequence[Tried]) -> list[Tried]:
    return sorted(tried, key=lambda one: one.was.key)


async def _insert_unread(
    listening: "Listening", topic: str, key: str, number: int, headers: Sequence[tuple[str, str]], body: bytes
) -> None:
    async with listening.watching.begin() as connection:
        await connection.execute(
            text(
                'INSERT INTO parked_messages (topic, number, "offset", key, headers, body, slug, error, attempts, '
                "announced_at) SELECT :topic, 0, :offset, :key, json_agg(ARRAY[name, value])::jsonb, :body, "
                "'undecodable', 'why', 1, now() FROM unnest(CAST(:names AS text[]), CAST(:values AS text[])) "
                "AS header(name, value)"
            ),
            {
                "topic": topic,
                "offset": 900 + number,
                "key": key,
                "names": [name for name, _ in headers],
                "values": [value for _, value in headers],
                "body": body,
            },
        )


async def _change(listening: "Listening", *statements: str) -> None:
    async with listening.watching.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def _everything(listening: "Listening") -> list[list[tuple[object, ...]]]:
    return [await listening.rows(f"SELECT *, xmin::text FROM {table} ORDER BY 1, 2") for table in EVERYTHING]


async def _is(listening: "Listening", query: str, value: object) -> bool:
    return bool((await listening.rows(query))[0][0] == value)


async def _is_true(true: bool) -> bool:
    return true

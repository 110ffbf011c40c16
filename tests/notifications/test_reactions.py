"""Folding: however messages are cut into runs, the picture is what they give one by one."""

import dataclasses
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.notifications import reactions
from shared.database import make_engine
from shared.messages import Message
from tests.conftest import MakeDatabase
from tests.feeds_fixture import MIGRATIONS, Messages, whole_meeting

TRACES = (None, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
THINGS = "SELECT kind, id, trip, sequence, document::text FROM things ORDER BY kind, id"


@pytest.fixture
async def engine(make_database: MakeDatabase) -> AsyncIterator[AsyncEngine]:
    made = make_engine(await make_database(MIGRATIONS), name="test")
    yield made
    await made.dispose()


@pytest.mark.parametrize("seed", range(5))
async def test_runs_of_any_length_give_what_single_messages_give(engine: AsyncEngine, seed: int) -> None:
    randomly = random.Random(seed)
    told = _told(engine, randomly)
    singly = await _folded(engine, [[message] for message in told], told)
    assert singly[0][-1]
    assert await _folded(engine, [told], told) == singly
    assert await _folded(engine, list(_cut(told, randomly)), told) == singly


@pytest.mark.parametrize("odd", ["a\0b", "\ud800", float("nan"), float("inf")], ids=ascii)
async def test_what_a_row_cannot_hold_is_refused_also_where_a_later_message_would_hide_it(
    engine: AsyncEngine, odd: object
) -> None:
    messages, meeting = Messages(engine=engine), uuid4()
    whole = whole_meeting(uuid4(), "Talks", "2031-05-06T10:00:00")
    told = [
        messages.message("MeetingScheduled", "meeting", meeting, {**whole, "undeclared": odd}),
        messages.message("MeetingRevised", "meeting", meeting, {"undeclared": "NaN", "was": {}}),
    ]
    for run in (told[:1], told):
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await _fold(engine, run)
    held = [messages.message("MeetingScheduled", "meeting", meeting, whole), told[1]]
    await _fold(engine, held)


async def test_trips_are_marked_in_the_order_of_their_messages(engine: AsyncEngine) -> None:
    tellers = [Messages(engine=engine, traceparent=TRACES[number % 2]) for number in range(20)]
    whole = whole_meeting(uuid4(), "Talks", "2031-05-06T10:00:00")
    told = [each.message("MeetingScheduled", "meeting", uuid4(), whole) for each in (*tellers, *reversed(tellers))]
    await _fold(engine, told)
    async with engine.connect() as connection:
        marks = (await connection.execute(text("SELECT trip, traceparent FROM marks ORDER BY id"))).all()
    assert [tuple(row) for row in marks] == [(each.trip, each.traceparent) for each in tellers]


@pytest.mark.parametrize("spelled", ["{%s}", "urn:uuid:%s", "-%s", "id %s"])
async def test_an_id_that_the_database_does_not_know_as_one_is_refused(engine: AsyncEngine, spelled: str) -> None:
    messages, meeting = Messages(engine=engine), uuid4()
    whole = whole_meeting(uuid4(), "Talks", "2031-05-06T10:00:00")
    told = messages.message("MeetingScheduled", "meeting", meeting, whole)
    with pytest.raises(ValueError, match="is no id"):
        await _fold(engine, [dataclasses.replace(told, subject=f"meeting/{spelled % meeting}")])
    same = [dataclasses.replace(told, subject=f"meeting/{one}") for one in (str(meeting).upper(), meeting.hex)]
    await _fold(engine, [told, *same])
    async with engine.connect() as connection:
        assert list(await connection.scalars(text("SELECT id FROM things"))) == [meeting]


async def _fold(engine: AsyncEngine, run: Sequence[Message]) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("SELECT 1"))
        await reactions.fold(connection, run)


def _told(engine: AsyncEngine, randomly: random.Random) -> list[Message]:
    """Two trips' meetings, each with a life of its own, in one order of all."""
    lives = []
    for number in range(6):
        messages = Messages(engine=engine, trip=uuid4(), traceparent=TRACES[number % 2])
        meeting = uuid4()
        start, later = {"start": "2031-05-06T10:00:00"}, {"start": "2031-05-06T11:00:00"}
        changes: list[tuple[str, dict[str, Any]]] = [
            ("MeetingScheduled", whole_meeting(uuid4(), f"Talks {number}", "2031-05-06T10:00:00")),
            ("MeetingRescheduled", {**later, "was": start}),
            ("MeetingRevised", {"title": "Talks", "was": {"title": f"Talks {number}"}}),
            ("MeetingRescheduled", {**start, "was": later}),
            (
                "MeetingCancelled",
                {"status": "cancelled", "reason": "fog", "was": {"status": "confirmed", "reason": None}},
            ),
        ]
        lives.append([messages.message(name, "meeting", meeting, body) for name, body in changes])
    order = [number for number, life in enumerate(lives) for _ in life]
    randomly.shuffle(order)
    left = [iter(life) for life in lives]
    return [next(left[number]) for number in order]


def _cut(told: Sequence[Message], randomly: random.Random) -> Iterable[Sequence[Message]]:
    begin = 0
    while begin < len(told):
        end = begin + randomly.randint(1, 7)
        yield told[begin:end]
        begin = end


async def _folded(
    engine: AsyncEngine, runs: Sequence[Sequence[Message]], told: Sequence[Message]
) -> tuple[list[Any], set[Any]]:
    """The things, and which trips are marked with which traces. One thing has a floor under its SEQUENCE."""
    first = UUID(told[0].subject.split("/")[1])
    async with engine.begin() as connection:
        await connection.execute(text("TRUNCATE things, marks, sequence_floors"))
        await connection.execute(text("INSERT INTO sequence_floors VALUES ('meeting', :id, 7)"), {"id": first})
    for run in runs:
        await _fold(engine, run)
    async with engine.connect() as connection:
        things = [tuple(row) for row in await connection.execute(text(THINGS))]
        marks = {tuple(row) for row in await connection.execute(text("SELECT trip, traceparent FROM marks"))}
    assert {row[1]: row[3] for row in things}[first] == 7 + 3
    return things, marks

"""What a restored producer does to feeds: the old bodies stand until the new whole is there, and no SEQUENCE falls."""

import gzip
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text

from services.notifications import projections, reactions
from services.notifications.main import Instance
from services.notifications.renderer import Renderer
from services.notifications.upkeep import stamp_anew
from shared import contracts
from shared.consumer import Consumer
from shared.database import make_engine
from shared.message_log import MessageLog
from shared.messages import Message
from shared.rebuilding import Rebuilding
from shared.wiring import versioned
from tests.feeds_fixture import DOMAIN, MIGRATIONS, Messages, SilentBus, whole_meeting

MakeDatabase = Callable[..., Awaitable[str]]

TOPIC, ROSTERS = "attache.schedule.cleared", "attache.participants.cleared"


@dataclass(kw_only=True)
class Feed:
    """One trip whose feed is rendered by hand, and the messages that made it, in order."""

    messages: "Recorded"
    renderer: Renderer

    async def body(self) -> tuple[int, bytes]:
        """The newest body's version and bytes, after what is marked was rendered."""
        async with self.messages.engine.begin() as connection:
            await connection.execute(text("UPDATE renderings SET second = 0"))  # as if a second had gone by
        await self.renderer.round()
        async with self.messages.engine.connect() as connection:
            query = "SELECT version, compressed FROM bodies ORDER BY version DESC LIMIT 1"
            version, compressed = (await connection.execute(text(query))).one()
        return version, gzip.decompress(compressed)

    async def rebuilt(self, schedule: Sequence[Message], epoch: int = 1) -> None:
        """The operator's `rebuild`, and what a service that runs makes of it, given what the schedule's log holds."""
        async with self.messages.engine.begin() as connection:
            await projections.rebuild(connection)
        consumer = Consumer(
            group="attache.notifications",
            engine=self.messages.engine,
            bus=SilentBus(),
            topics=[],
            apply={versioned(type_.__name__): reactions.fold for type_ in contracts.SCHEDULE + contracts.PARTICIPANTS},
        )
        told = {TOPIC: (schedule, epoch), ROSTERS: (self.messages.rosters, 1)}
        async with httpx.AsyncClient(transport=httpx.MockTransport(partial(_answer, told))) as client:
            logs = {topic: MessageLog(client=client, service="s", base="http://log", token="t") for topic in told}
            anew = {TOPIC: reactions.anew_of(reactions.SCHEDULE), ROSTERS: reactions.anew_of(reactions.PARTICIPANTS)}
            rebuilding = Rebuilding(consumer.engine, consumer.taking, logs, anew)
            while stale := await rebuilding.stale():
                for topic, key in stale:
                    await rebuilding.rebuild(topic, key)

    async def anew(self, *told: Message) -> None:
        """As a rebuild does: one transaction."""
        async with self.messages.engine.begin() as connection:
            await connection.execute(text("SELECT 1"))
            async with reactions.anew_of(reactions.SCHEDULE)(connection, str(self.messages.trip)):
                for message in told:
                    await reactions.fold(connection, [message])

    async def sequences(self) -> dict[UUID, int]:
        async with self.messages.engine.connect() as connection:
            rows = await connection.execute(text("SELECT id, sequence FROM things WHERE kind = 'meeting'"))
            return {row.id: row.sequence for row in rows}


@dataclass(kw_only=True)
class Recorded(Messages):
    """Keeps the schedule's messages, and the others."""

    told: list[Message] = field(default_factory=list)
    rosters: list[Message] = field(default_factory=list)

    def message(self, name: str, kind: str, thing: UUID, body: Mapping[str, Any]) -> Message:
        message = super().message(name, kind, thing, body)
        (self.told if kind in reactions.SCHEDULE else self.rosters).append(message)
        return message


@pytest.fixture
async def feed(make_database: MakeDatabase, patience: None) -> AsyncIterator[Feed]:
    engine = make_engine(await make_database(MIGRATIONS), name="test")
    messages = Recorded(engine=engine)
    await messages.plan()
    ours = await messages.register("Ours", "own")
    async with engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO audiences VALUES (gen_random_uuid(), :trip, :ours, 'full', -1)"),
            {"trip": messages.trip, "ours": ours},
        )
    yield Feed(messages=messages, renderer=Renderer(engine=engine, domain=lambda: DOMAIN, rendered=lambda: None))
    await engine.dispose()


async def test_a_history_that_ends_the_same_changes_no_byte_and_makes_no_body(feed: Feed) -> None:
    stop = await feed.messages.add_stop("Tokyo", "Asia/Tokyo", "2031-05-06")
    meeting = await feed.messages.schedule(stop, "Talks", "2031-05-06T10:00:00")
    await feed.messages.reschedule(meeting, "2031-05-06T11:00:00", "2031-05-06T10:00:00")
    before = await feed.body()
    await feed.anew(*feed.messages.told)
    assert await feed.body() == before
    whole = feed.messages.message("MeetingScheduled", "meeting", meeting, await _document(feed, meeting))
    await feed.anew(*feed.messages.told[:2], whole)  # told in fewer messages, so that its fold counts less
    assert await feed.sequences() == {meeting: 1}
    assert await feed.body() == before


async def test_what_was_changed_after_the_point_goes_back_with_a_higher_sequence_and_what_is_new_goes(
    feed: Feed,
) -> None:
    stop = await feed.messages.add_stop("Tokyo", "Asia/Tokyo", "2031-05-06")
    moved = await feed.messages.schedule(stop, "Moved", "2031-05-06T10:00:00")
    kept = await feed.messages.schedule(stop, "Kept", "2031-05-06T14:00:00")
    backup = list(feed.messages.told)
    _, first = await feed.body()
    for hour in (11, 12):
        was = f"2031-05-06T{hour - 1}:00:00"
        await feed.messages.reschedule(moved, f"2031-05-06T{hour}:00:00", was)
    ghost = await feed.messages.schedule(stop, "Ghost", "2031-05-06T16:00:00")
    version, body = await feed.body()
    assert _shown(body) == {moved: 2, kept: 0, ghost: 0}
    await feed.anew(*backup)
    assert (await feed.body())[0] == version + 1
    _, body = await feed.body()
    assert _shown(body) == {moved: 3, kept: 0}
    assert _without_stamps(body) == _without_stamps(first)
    await feed.messages.reschedule(moved, "2031-05-06T09:00:00", "2031-05-06T10:00:00")
    assert _shown((await feed.body())[1]) == {moved: 4, kept: 0}


async def test_no_sequence_falls_when_the_picture_is_rebuilt_or_a_thing_comes_back(feed: Feed) -> None:
    stop = await feed.messages.add_stop("Tokyo", "Asia/Tokyo", "2031-05-06")
    stop_told = list(feed.messages.told)
    meeting = await feed.messages.schedule(stop, "Talks", "2031-05-06T10:00:00")
    scheduled = list(feed.messages.told)
    for hour in (11, 12, 13):
        await feed.messages.reschedule(meeting, f"2031-05-06T{hour}:00:00", f"2031-05-06T{hour - 1}:00:00")
    later = list(feed.messages.told)
    await feed.anew(*scheduled)
    assert await feed.sequences() == {meeting: 4}
    await feed.rebuilt(scheduled)
    assert await feed.sequences() == {meeting: 4}
    await feed.anew(*stop_told)
    assert await feed.sequences() == {}
    await feed.anew(*scheduled)
    assert await feed.sequences() == {meeting: 5}
    await feed.anew(*stop_told)
    for message in scheduled[len(stop_told) :]:  # by the bus this time
        async with feed.messages.engine.begin() as connection:
            await connection.execute(text("SELECT 1"))
            await reactions.fold(connection, [message])
    assert await feed.sequences() == {meeting: 6}
    await feed.anew(*later)
    assert await feed.sequences() == {meeting: 9}


async def test_a_rebuild_of_the_same_history_changes_no_byte_and_makes_no_body(feed: Feed) -> None:
    stop = await feed.messages.add_stop("Tokyo", "Asia/Tokyo", "2031-05-06")
    moved = await feed.messages.schedule(stop, "Moved", "2031-05-06T10:00:00")
    kept = await feed.messages.schedule(stop, "Kept", "2031-05-06T14:00:00")
    await feed.messages.reschedule(moved, "2031-05-06T11:00:00", "2031-05-06T10:00:00")
    before = await feed.body()
    for _ in range(2):
        await feed.rebuilt(feed.messages.told)
        assert await feed.body() == before
    assert await feed.sequences() == {moved: 1, kept: 0}
    # also when it was in the middle of being told, and after a SEQUENCE was raised once
    await feed.anew(*feed.messages.told[:-1])
    version, raised = await feed.body()
    assert _shown(raised) == {moved: 2, kept: 0}
    await feed.rebuilt(feed.messages.told[:-1])
    assert await feed.body() == (version, raised)


@pytest.mark.parametrize("epoch", [1, 7])
async def test_a_rebuild_after_a_restore_that_was_not_heard_of_lowers_no_sequence_and_gives_none_again(
    feed: Feed, epoch: int
) -> None:
    """At 7 somebody told the producer that it was restored, at 1 nobody did; this service has heard of neither."""
    stop = await feed.messages.add_stop("Tokyo", "Asia/Tokyo", "2031-05-06")
    moved = await feed.messages.schedule(stop, "Moved", "2031-05-06T10:00:00")
    kept = await feed.messages.schedule(stop, "Kept", "2031-05-06T14:00:00")
    backup = list(feed.messages.told)
    for hour in (11, 12, 13):
        await feed.messages.reschedule(moved, f"2031-05-06T{hour}:00:00", f"2031-05-06T{hour - 1}:00:00")
    ghost = await feed.messages.schedule(stop, "Ghost", "2031-05-06T16:00:00")
    await feed.messages.reschedule(ghost, "2031-05-06T17:00:00", "2031-05-06T16:00:00")
    version, body = await feed.body()
    assert _shown(body) == {moved: 3, kept: 0, ghost: 1}
    await feed.rebuilt(backup, epoch)
    after, body = await feed.body()
    assert (after, _shown(body)) == (version + 1, {moved: 4, kept: 0})
    otherwise = feed.messages.message("MeetingRescheduled", "meeting", moved, _moved_to("2031-05-06T18:00:00"))
    await feed.rebuilt([*backup, otherwise], epoch)  # folded it would be 1, which was the SEQUENCE of eleven o'clock
    assert _shown((await feed.body())[1]) == {moved: 5, kept: 0}
    again = whole_meeting(stop, "Not the ghost", "2031-05-06T16:00:00")
    await feed.rebuilt([*backup, feed.messages.message("MeetingScheduled", "meeting", ghost, again)], epoch)
    assert _shown((await feed.body())[1]) == {moved: 6, kept: 0, ghost: 2}


async def test_a_rebuild_mends_the_picture_also_where_a_mark_is_lost(feed: Feed) -> None:
    stop = await feed.messages.add_stop("Tokyo", "Asia/Tokyo", "2031-05-06")
    meeting = await feed.messages.schedule(stop, "Talks", "2031-05-06T10:00:00")
    _, before = await feed.body()
    stray = uuid4()
    async with feed.messages.engine.begin() as connection:
        await connection.execute(text('UPDATE things SET document = document || \'{"title": "Damaged"}\''))
        await connection.execute(
            text("INSERT INTO things SELECT kind, :stray, trip, sequence, document FROM things WHERE kind = 'meeting'"),
            {"stray": stray},
        )
        await connection.execute(text("DELETE FROM consumer_marks"))
        await connection.execute(text("INSERT INTO marks (trip) VALUES (:trip)"), {"trip": feed.messages.trip})
    assert _shown((await feed.body())[1]) == {meeting: 0, stray: 0}
    await feed.rebuilt(feed.messages.told)
    _, after = await feed.body()
    assert _shown(after) == {meeting: 1}
    assert _without_stamps(after) == _without_stamps(before)


async def test_a_picture_that_is_to_be_rebuilt_stands_until_the_new_one_does(feed: Feed) -> None:
    stop = await feed.messages.add_stop("Tokyo", "Asia/Tokyo", "2031-05-06")
    meeting = await feed.messages.schedule(stop, "Talks", "2031-05-06T10:00:00")
    before = await feed.body()
    async with feed.messages.engine.begin() as connection:
        await projections.rebuild(connection)
    await feed.messages.retitle(meeting, "Other talks", "Talks")
    assert await feed.body() == before
    assert await feed.sequences() == {meeting: 0}
    await feed.rebuilt(feed.messages.told)
    assert b"Other talks" in (await feed.body())[1]


async def test_every_sequence_goes_above_all_that_was_seen_when_this_services_own_epoch_rises(feed: Feed) -> None:
    stop = await feed.messages.add_stop("Tokyo", "Asia/Tokyo", "2031-05-06")
    moved = await feed.messages.schedule(stop, "Moved", "2031-05-06T10:00:00")
    kept = await feed.messages.schedule(stop, "Kept", "2031-05-06T14:00:00")
    await feed.messages.reschedule(moved, "2031-05-06T11:00:00", "2031-05-06T10:00:00")
    engine = feed.messages.engine
    await Instance().settle(engine, DOMAIN, "this program")
    version, before = await feed.body()
    await stamp_anew(engine)
    assert await feed.body() == (version, before)
    async with engine.begin() as connection:  # as a relay does that finds ghosts of this service's own
        await connection.execute(text("UPDATE relay_cursor SET epoch = 186000000"))
    await stamp_anew(engine)
    after = await feed.body()
    assert (after[0], _shown(after[1])) == (version + 1, {moved: 186000000, kept: 185999999})
    assert _without_stamps(after[1]) == _without_stamps(before)
    for again in (
        stamp_anew(engine),
        Instance().settle(engine, DOMAIN, "this program"),
        feed.rebuilt(feed.messages.told),
    ):
        await again
        assert await feed.body() == after
    await feed.anew(*feed.messages.told[:-1])  # and a producer's restore on top of that
    assert _shown((await feed.body())[1]) == {moved: 186000001, kept: 185999999}
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE relay_cursor SET epoch = 186000100"))
    await Instance().settle(engine, DOMAIN, "this program")  # by a start, as after the command
    assert _shown((await feed.body())[1]) == {moved: 186000101, kept: 186000099}


async def test_a_trip_that_is_gone_leaves_the_feed_and_other_trips_and_rosters_stay(feed: Feed) -> None:
    stop = await feed.messages.add_stop("Tokyo", "Asia/Tokyo", "2031-05-06")
    await feed.messages.schedule(stop, "Ghost", "2031-05-06T10:00:00")
    other = Recorded(engine=feed.messages.engine)
    await other.plan()
    await feed.body()
    await feed.anew()
    assert _shown((await feed.body())[1]) == {}
    async with feed.messages.engine.connect() as connection:
        rows = await connection.execute(text("SELECT kind, trip FROM things ORDER BY kind"))
        assert [tuple(row) for row in rows] == [("delegation", feed.messages.trip), ("trip", other.trip)]


async def test_nothing_of_a_trip_is_rendered_while_it_is_still_to_be_built_anew(feed: Feed) -> None:
    stop = await feed.messages.add_stop("Tokyo", "Asia/Tokyo", "2031-05-06")
    await feed.messages.schedule(stop, "Ghost", "2031-05-06T10:00:00")
    before = await feed.body()
    await _stale(feed)
    await feed.messages.schedule(stop, "Another", "2031-05-06T12:00:00")
    assert await feed.body() == before
    async with feed.messages.engine.begin() as connection:
        await connection.execute(text("UPDATE consumer_marks SET epoch = 7"))
    assert (await feed.body())[0] == before[0] + 1


async def _stale(feed: Feed) -> None:
    """The schedule is at a higher epoch, and the trip is still to be built anew."""
    values = {"topic": TOPIC, "key": str(feed.messages.trip)}
    async with feed.messages.engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO consumer_marks (topic, key, sequence) VALUES (:topic, :key, 3)"), values
        )
        await connection.execute(text("INSERT INTO consumer_epochs VALUES (:topic, 7)"), values)


def _answer(told: Mapping[str, tuple[Sequence[Message], int]], request: httpx.Request) -> httpx.Response:
    """As a message log answers: every message behind a number, of whatever number they were made with."""
    messages, epoch = told[request.url.params["topic"]]
    behind = int(request.url.params["after"])
    items = [_item(message, number, epoch) for number, message in enumerate(messages, 1) if number > behind]
    return httpx.Response(200, json={"items": items, "next": None, "epoch": epoch})


def _item(message: Message, number: int, epoch: int) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": message.id,
        "type": f"attache.{message.type}.v{message.version}",
        "source": message.source,
        "subject": message.subject,
        "time": message.time.isoformat(),
        "recordedtime": message.recorded_at.isoformat(),
        "partitionkey": message.key,
        "sequence": str(number),
        "epoch": str(epoch),
        "data": message.body,
    }


def _moved_to(start: str) -> dict[str, Any]:
    whole = whole_meeting(uuid4(), "Any", start)
    times = {name: whole[name] for name in ("start", "starts_at", "ends_at")}
    return {**times, "was": times}


async def _document(feed: Feed, meeting: UUID) -> dict[str, object]:
    async with feed.messages.engine.connect() as connection:
        found = await connection.scalar(text("SELECT document::text FROM things WHERE id = :id"), {"id": meeting})
    document: dict[str, object] = json.loads(found or "")
    return document


def _shown(body: bytes) -> dict[UUID, int]:
    """SEQUENCE by meeting."""
    blocks = [block for block in body.split(b"BEGIN:VEVENT") if b"CATEGORIES:bilateral" in block]
    unfolded = [block.replace(b"\r\n ", b"") for block in blocks]
    return {
        UUID(re.findall(rb"UID:([0-9a-f-]{36})", block)[0].decode()): int(re.findall(rb"SEQUENCE:(\d+)", block)[0])
        for block in unfolded
    }


def _without_stamps(body: bytes) -> bytes:
    return re.sub(rb"(DTSTAMP|LAST-MODIFIED|SEQUENCE):.*?\r\n", b"", body)

"""A restore that meets something else: a page that is being read, a rebuild, a relay that runs, a log that forgot."""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from shared.cli import HIGHEST_EPOCH
from shared.consumer import Consumer
from shared.healer import Healer
from shared.message_log import MessageLog, Page
from shared.rebuilding import EpochBehind
from shared.restored import restored
from tests.shared.test_epochs import NEVER, Backup

if TYPE_CHECKING:
    from tests.shared.conftest import Listening, Publishing

Running = Callable[..., AbstractAsyncContextManager[None]]
Until = Callable[..., Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Slow(MessageLog):
    """A log of which each page comes after something else."""

    first: Callable[[str], Awaitable[None]]

    async def after(self, topic: str, key: str, sequence: int) -> Page:
        page = await super().after(topic, key, sequence)
        await self.first(key)
        return page


async def test_what_was_read_before_a_restore_is_not_told_as_of_the_epoch_after_it(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first")
    backup = await Backup.of(publishing)
    await publishing.note("a", "ghost")
    consumer = listening.consumer(publishing)
    rebuilding = listening.healer(consumer, publishing, NEVER).rebuilding
    await publishing.send()
    async with running(consumer.run()):
        await until(lambda: _heard(listening, "a", "first", "ghost"))
    of_key = publishing.store.of_key
    restores = [backup.restore]

    async def interrupted(*given: Any, **named: Any) -> Any:
        events = await of_key(*given, **named)
        while restores:
            await restores.pop()()
            await _set_epoch(publishing, 7)
            await publishing.note("a", "true")
        return events

    await rebuilding.learn(publishing.cleared, 7)
    publishing.store.of_key = interrupted  # type: ignore[method-assign]
    with contextlib.suppress(EpochBehind):
        await rebuilding.rebuild(publishing.cleared, "a")
    await rebuilding.rebuild(publishing.cleared, "a")
    assert not restores
    assert await _heard(listening, "a", "first", "true")


async def test_a_page_of_an_earlier_epoch_leaves_a_key_that_was_built_anew_since_as_it_is(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "1", "2", "3")
    publishing.lost = {"2"}
    consumer = listening.consumer(publishing)
    other = listening.healer(consumer, publishing, NEVER).rebuilding

    async def built_anew(key: str) -> None:
        await _set_epoch(publishing, 7)
        await other.learn(publishing.cleared, 7)
        await other.rebuild(publishing.cleared, key)

    healer = _healer(listening, consumer, publishing, built_anew)
    await publishing.send()
    async with running(consumer.run()):
        await until(lambda: _marks(listening, (1, 1, "gap")))
    page = await healer._logs[publishing.cleared].after(publishing.cleared, "a", 1)
    assert page.epoch == 1
    assert not await healer.keys._apply(publishing.cleared, "a", page)
    # what was deferred while it was built anew is still to be asked for
    assert await _marks(listening, (7, 3, "gap"))


async def test_a_page_that_begins_before_the_mark_applies_nothing_twice(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    """The consumer can get on between a healer's question and its transaction."""
    await publishing.note("a", "1", "2", "3")
    consumer = listening.consumer(publishing)
    healer = listening.healer(consumer, publishing, NEVER)
    await publishing.send()
    async with running(consumer.run()):
        await until(lambda: _marks(listening, (1, 3, None)))
    page = await publishing.message_log().after(publishing.cleared, "a", 0)
    assert not await healer.keys._apply(publishing.cleared, "a", page)
    assert await listening.heard("a") == [(1, "1"), (2, "2"), (3, "3")]


async def test_a_gap_is_healed_while_another_key_is_still_built_anew(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("slow", "1")
    consumer = listening.consumer(publishing)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def held_up(key: str) -> None:
        if key == "slow":
            begun.set()
            await go_on.wait()

    healer = _healer(listening, consumer, publishing, held_up)
    await publishing.send()
    async with running(consumer.run()):
        await until(lambda: _heard(listening, "slow", "1"))
        await _set_epoch(publishing, 7)
        async with running(healer.run()):
            await begun.wait()
            await publishing.note("quick", "1", "2", "3")
            records = [publishing.to_records(event, 7)[0] for event in await publishing.log()][1:]
            await publishing.send_records([records[0], records[2]])
            await until(lambda: _heard(listening, "quick", "1", "2", "3"))
            assert healer.rebuilding.rebuilt == 0
            go_on.set()
            await until(lambda: _marks(listening, (7, 3, None), (7, 1, None)))


async def test_a_log_that_tells_a_lower_epoch_than_it_did_is_said(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    await publishing.note("a", "first")
    await _set_epoch(publishing, 7)
    consumer = listening.consumer(publishing)
    healer = listening.healer(consumer, publishing)
    async with running(consumer.run(), healer.run(), publishing.relay().run()):
        await until(lambda: _marks(listening, (7, 1, None)))
    await _set_epoch(publishing, 1)  # put back to before an earlier restore, and the bus is another one
    await publishing.note("a", "second")
    with pytest.raises(EpochBehind, match="say restored"):  # no key is stale: they are all of the epoch that is known
        await healer._compare_heads()
    with pytest.raises(EpochBehind, match="say restored"):
        await healer.learn()


async def test_a_restore_under_a_relay_that_runs_is_noticed_too(
    publishing: "Publishing", running: Running, until: Until
) -> None:
    await publishing.note("a", "first")
    backup = await Backup.of(publishing)
    await publishing.note("a", "ghost", "another")
    async with running(publishing.relay().run()):
        await until(lambda: _published(publishing))
        await backup.restore()
        await publishing.note("a", "true")  # at a position that the relay has behind it
        await until(lambda: _published(publishing))
    assert await _epoch(publishing) > 1


async def test_the_highest_epoch_that_can_be_said_leaves_room(publishing: "Publishing") -> None:
    raised, _ = await restored(publishing.name, publishing.engine, publishing.bus, HIGHEST_EPOCH - 1)
    await publishing.engine.dispose()
    again, _ = await restored(publishing.name, publishing.engine, publishing.bus, 0)
    assert raised.new == HIGHEST_EPOCH < again.new


def _healer(
    listening: "Listening", consumer: Consumer, publishing: "Publishing", first: Callable[[str], Awaitable[None]]
) -> Healer:
    log = publishing.message_log()
    fields = {one.name: getattr(log, one.name) for one in dataclasses.fields(MessageLog)}
    logs = {publishing.cleared: Slow(**fields, first=first)}
    return Healer(consumer, logs, {publishing.cleared: listening.anew}, NEVER)


async def _heard(listening: "Listening", key: str, *whats: str) -> bool:
    return [what for _, what in await listening.heard(key)] == list(whats)


async def _marks(listening: "Listening", *marks: tuple[int, int, str | None]) -> bool:
    return await listening.rows("SELECT epoch, sequence, waits_for FROM consumer_marks ORDER BY key") == list(marks)


async def _set_epoch(publishing: "Publishing", epoch: int) -> None:
    async with publishing.engine.begin() as connection:
        await connection.execute(text("UPDATE relay_cursor SET position = 0, epoch = :epoch"), {"epoch": epoch})


async def _epoch(publishing: "Publishing") -> int:
    async with publishing.engine.connect() as connection:
        return int(await connection.scalar(text("SELECT epoch FROM relay_cursor")) or 0)


async def _published(publishing: "Publishing") -> bool:
    return await publishing.cursor() == (await publishing.log())[-1].position

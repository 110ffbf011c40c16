"""A producer that was put back in silence, and whose ghosts the bus never had: its log has less than was applied."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from tests.shared.test_epochs import Backup, say_restored, settled, tells

if TYPE_CHECKING:
    from tests.shared.conftest import Listening, Publishing

Running = Callable[..., AbstractAsyncContextManager[None]]
Until = Callable[..., Awaitable[None]]


async def test_a_key_of_which_the_log_has_less_than_was_applied_is_built_anew_from_it(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    consumer = listening.consumer(publishing)
    healer = listening.healer(consumer, publishing)
    for key in "ab":
        await publishing.note(key, "first")
    async with running(consumer.run(), healer.run()):
        async with running(publishing.relay().run()):
            await until(lambda: tells(listening, a=["first"], b=["first"]))
        backup = await Backup.of(publishing)
        await publishing.note("a", "ghost 2", "ghost 3")  # no relay runs: they are told over HTTP alone
        await until(lambda: tells(listening, a=["first", "ghost 2", "ghost 3"]))
        await backup.restore()
        await until(lambda: tells(listening, a=["first"]))
        async with running(publishing.relay().run()):
            await publishing.note("a", "true 2")
            await until(lambda: tells(listening, a=["first", "true 2"], b=["first"]))
            await until(lambda: settled(listening))
    assert healer.rewound.keys == {publishing.cleared: 1}
    assert healer.rewound.lost == {publishing.cleared: 0}
    marks = await listening.rows("SELECT key, epoch, sequence FROM consumer_marks ORDER BY key")
    assert marks == [("a", 1, 2), ("b", 1, 1)]


async def test_keys_of_which_the_log_has_nothing_hold_up_none_that_can_be_built_anew(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.rewound.ASKED", 1)
    consumer = listening.consumer(publishing)
    healer = listening.healer(consumer, publishing)
    await publishing.note("b", "first")
    backup = await Backup.of(publishing)
    await publishing.note("b", "ghost")
    await publishing.note("a", "ghost")
    async with running(consumer.run(), healer.run()):
        await until(lambda: tells(listening, a=["ghost"], b=["first", "ghost"]))
        await backup.restore()
        await until(lambda: tells(listening, a=["ghost"], b=["first"]))


async def test_a_key_of_which_the_log_has_nothing_is_kept_and_told_of_until_somebody_says_restored(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    consumer = listening.consumer(publishing)
    healer = listening.healer(consumer, publishing)
    await publishing.note("a", "first")
    backup = await Backup.of(publishing)
    await publishing.note("b", "ghost")

    async def lost(count: int) -> bool:
        return healer.rewound.lost == {publishing.cleared: count}

    async with running(consumer.run(), healer.run()):
        await until(lambda: tells(listening, a=["first"], b=["ghost"]))
        await backup.restore()
        await until(lambda: lost(1))
        async with publishing.engine.begin() as connection:  # an empty database, or another one: all is lost there
            await connection.execute(text("DELETE FROM heads"))
            await connection.execute(text("DELETE FROM events"))
        await until(lambda: lost(2))
        assert await tells(listening, a=["first"], b=["ghost"])
        await backup.restore()
        await until(lambda: lost(1))
        assert await tells(listening, a=["first"], b=["ghost"])
        await say_restored(publishing)
        await until(lambda: tells(listening, a=["first"], b=[]))
        await until(lambda: lost(0))
    assert healer.rewound.keys == {publishing.cleared: 0}


async def test_what_was_applied_since_the_heads_were_told_is_no_sign_of_anything(
    publishing: "Publishing", listening: "Listening", running: Running, until: Until
) -> None:
    consumer = listening.consumer(publishing)
    healer = listening.healer(consumer, publishing)
    await publishing.note("a", "first", "second")
    await publishing.note("b", "only")
    await publishing.send()
    async with running(consumer.run()):
        await until(lambda: tells(listening, a=["first", "second"], b=["only"]))
    await healer.rewound.compare(publishing.cleared, 1, {"a": 1})
    assert healer.rewound.keys == healer.rewound.lost == {publishing.cleared: 0}
    assert await listening.rows("SELECT min(epoch) FROM consumer_marks") == [(1,)]

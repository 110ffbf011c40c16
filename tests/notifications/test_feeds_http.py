"""`/feeds/<secret>.ics` over HTTP: what clients are answered, whatever happens, and what nobody is told."""

import asyncio
import gzip
import io
import logging
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import icalendar
import pytest
import structlog
from asyncpg import UndefinedTableError
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from services.notifications.feed_answers import answers, asked, client_family, takes_gzip
from services.notifications.feeds import UNKNOWN_SECONDS, Fetched, Fetches
from services.notifications.shelf import POLL_SECONDS, SWEEP_SECONDS
from services.notifications.upkeep import drop_old_bodies
from shared.database import make_engine, pool_use
from shared.http import NO_TELEMETRY
from shared.logs import set_up
from tests.feeds_fixture import MIGRATIONS, Clock, MakeNotifications, Messages, Notifications, SilentBus, Stoppable

MakeDatabase = Callable[..., Awaitable[str]]

SECOND = timedelta(seconds=1)
TICK = timedelta(microseconds=1)
DAYS_30 = timedelta(days=30)
ALARMS = ("PT5M", "PT10M")


@dataclass(kw_only=True)
class World:
    """A trip with one stop and one meeting, and a link of its host delegation."""

    notifications: Notifications
    messages: Messages
    database_url: str
    host: UUID
    meeting: UUID
    link: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.link["url"])

    async def get(self, url: str | None = None, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.notifications.anyone.get(url or self.url, headers=named)

    async def rotate(self, **body: Any) -> dict[str, Any]:
        answer = await self.notifications.planner.post(f"/notifications/feed-links/{self.link['id']}/rotate", json=body)
        assert answer.status_code == 200, answer.text
        rotated: dict[str, Any] = answer.json()
        return rotated

    async def revoke(self) -> dict[str, Any]:
        path = f"/notifications/feed-links/{self.link['id']}/revoke"
        answer = await self.notifications.planner.post(path, json={"reason": "phone lost"})
        assert answer.status_code == 200, answer.text
        revoked: dict[str, Any] = answer.json()
        return revoked


@dataclass
class Wire:
    """A way to the database that can be cut: connections then break, and new ones are refused."""

    host: str
    port: int
    own_port: int
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    server: asyncio.Server | None = None

    async def join(self) -> None:
        self.server = await asyncio.start_server(self._carry, "127.0.0.1", self.own_port)

    async def cut(self) -> None:
        if self.server is not None:
            self.server.close()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self.host, self.port)
        both = asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))
        task = asyncio.create_task(_until_done(both, writer, there[1]))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def _until_done(both: "asyncio.Future[Any]", *writers: asyncio.StreamWriter) -> None:
    try:
        with suppress(OSError):
            await both
    finally:
        for writer in writers:
            writer.transport.abort()


@pytest.fixture
async def world(make_database: MakeDatabase, make_notifications: MakeNotifications) -> World:
    return await _world(await make_database(MIGRATIONS), make_notifications)


async def _world(database_url: str, make_notifications: MakeNotifications, **given: Any) -> World:
    notifications = await make_notifications(database_url, **given)
    messages = Messages(engine=notifications.engine)
    await messages.plan()
    host = await messages.register("Hosts in Tokyo", "host")
    stop = await messages.add_stop("Tokyo", "Asia/Tokyo", "2031-05-06", host)
    meeting = await messages.schedule(stop, "Talks", "2031-05-06T10:00:00", [host])
    link = await notifications.issue(messages.trip, host)
    return World(
        notifications=notifications,
        messages=messages,
        database_url=database_url,
        host=host,
        meeting=meeting,
        link=link,
    )


# 200 and 304


async def test_feed_is_answered_with_all_of_its_headers_and_the_same_bytes_twice(world: World) -> None:
    first, second = await world.get(), await world.get()
    assert _events(first.content) == ["Talks", "Tokyo"]
    assert (second.status_code, second.content, dict(second.headers)) == (200, first.content, dict(first.headers))
    assert dict(first.headers) == {
        "etag": f'"{sha256(first.content).hexdigest()[:32]}"',
        "last-modified": first.headers["last-modified"],
        "content-type": "text/calendar; charset=utf-8",
        "content-disposition": 'inline; filename="programme.ics"',
        "cache-control": "private, no-cache",
        "vary": "Accept-Encoding",
        "x-robots-tag": "noindex",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "content-length": str(len(first.content)),
    }
    age = datetime.now(UTC) - parsedate_to_datetime(first.headers["last-modified"])
    assert timedelta(0) <= age < timedelta(minutes=20)  # and so it is in UTC


async def test_unchanged_feed_is_a_304_without_a_body_that_repeats_both_validators(world: World) -> None:
    whole = await world.get()
    again = await world.get(if_none_match=whole.headers["etag"])
    length = ("content-type", "content-disposition", "content-length")
    repeated = {name: value for name, value in whole.headers.items() if name not in length}
    assert (again.status_code, again.content, dict(again.headers)) == (304, b"", repeated)


async def test_gzip_is_the_same_feed_under_a_tag_of_its_own_and_either_tag_gets_the_304(world: World) -> None:
    plain = await world.get()
    async with world.notifications.anyone.stream("GET", world.url, headers={"accept-encoding": "br, gzip"}) as zipped:
        raw = b"".join([part async for part in zipped.aiter_raw()])
    tag, tag_gzip = plain.headers["etag"], zipped.headers["etag"]
    assert (zipped.headers["content-encoding"], gzip.decompress(raw)) == ("gzip", plain.content)
    assert (tag_gzip, int(zipped.headers["content-length"])) == (f'{tag[:-1]}-gz"', len(raw))
    assert "content-encoding" not in plain.headers
    answered = [
        (again.status_code, again.headers["etag"])
        for sent in (tag, tag_gzip, f"W/{tag}", f'"other", {tag}', "*")
        for encoding in ("identity", "gzip")
        for again in [await world.get(if_none_match=sent, accept_encoding=encoding)]
    ]
    assert answered == [(304, tag), (304, tag_gzip)] * 5


async def test_head_is_a_get_without_the_body(world: World) -> None:
    whole = await world.get()
    head = await world.notifications.anyone.head(world.url)
    unchanged = await world.notifications.anyone.head(world.url, headers={"if-none-match": whole.headers["etag"]})
    assert (head.status_code, head.content, dict(head.headers)) == (200, b"", dict(whole.headers))
    assert (unchanged.status_code, unchanged.content) == (304, b"")


@pytest.mark.parametrize("address", ["live", "unknown", "/robots.txt"])
async def test_head_sends_no_body_whatever_stands_before_the_app(world: World, address: str) -> None:
    """Servers and clients leave it out too, and then nobody sees what the app has sent."""
    path = {"live": urlsplit(world.url).path, "unknown": f"/feeds/{'x' * 32}.ics"}.get(address, address)
    sent: list[bytes] = []

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))

    scope = {"type": "http", "method": "HEAD", "path": path, "headers": [], "query_string": b""}
    await world.notifications.app(scope, _nothing_more, send)
    assert sent == [b"", b""]


async def test_date_is_asked_for_only_where_no_tag_is(world: World) -> None:
    since = (await world.get()).headers["last-modified"]
    earlier = format_datetime(parsedate_to_datetime(since) - SECOND, usegmt=True)
    later = format_datetime(parsedate_to_datetime(since) + timedelta(days=1), usegmt=True)
    statuses = [
        (await world.get(if_modified_since=since)).status_code,
        (await world.get(if_modified_since=later)).status_code,
        (await world.get(if_modified_since=earlier)).status_code,
        (await world.get(if_modified_since="yesterday")).status_code,
        (await world.get(if_modified_since=since, if_none_match='"other"')).status_code,
    ]
    assert statuses == [304, 304, 200, 200, 200]


async def test_a_feed_is_stamped_anew_when_the_relay_of_a_running_service_raises_its_epoch(world: World) -> None:
    await world.notifications.get_until(world.url, lambda body: b"\r\nSEQUENCE:0\r\n" in body)
    async with world.notifications.engine.begin() as connection:
        await connection.execute(text("UPDATE relay_cursor SET epoch = 186000000"))
    await world.notifications.get_until(world.url, lambda body: b"\r\nSEQUENCE:185999999\r\n" in body)


async def test_tag_and_date_change_when_the_bytes_do_and_only_then(world: World) -> None:
    first = await world.get()
    await world.messages.tell("TripAnnounced", "trip", world.messages.trip, _announced())  # in no feed's bytes
    await _rendered(world)
    same = await world.get()
    await world.messages.retitle(world.meeting, "Longer talks", "Talks")
    body = await world.notifications.get_until(world.url, lambda body: b"Longer talks" in body)
    changed = await world.get(if_none_match=first.headers["etag"])
    assert (same.content, dict(same.headers)) == (first.content, dict(first.headers))
    assert (changed.status_code, changed.content) == (200, body)
    assert changed.headers["etag"] == f'"{sha256(body).hexdigest()[:32]}"' != first.headers["etag"]
    assert _date(changed) > _date(first)


@pytest.mark.parametrize(
    ("accepted", "taken"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("x-gzip", True),
        ("*", True),
        ("identity;q=0.5, gzip;q=1.0", True),
        ("", False),
        ("identity", False),
        ("br, deflate", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("*, gzip;q=0", False),
        ("gzip;q=0, *", False),
        ("*;q=0", False),
        ("identity, gzip;q=0.5", False),
        ("gzip;q=much", False),
        ("gzipped", False),
        (",;, ;q=1,gzip", True),
    ],
)
def test_gzip_is_given_to_who_asks_for_it(accepted: str, taken: bool) -> None:
    assert takes_gzip(accepted.encode()) is taken


def test_no_header_field_whatever_stands_in_it_fails_a_request() -> None:
    made = answers("ab12", datetime(2031, 5, 6, tzinfo=UTC), 10, 5)
    names = (b"accept-encoding", b"if-none-match", b"if-modified-since", b"user-agent")
    samples = [
        b"", b'"', b"W/", b'W/"', b"*", b"\xff\xfe\x00", b";q=", b"gzip;q=.....", b"gzip;q=1e5", b"," * 70_000,
        b"Mon, 99 Foo 99999 99:99:99 GMT", b"Mon, 01 Jan 0001 00:00:00 +2359", b"Fri, 31 Dec 9999 23:59:60 -9999",
        b"Mon, 01 Jan 2024 00:00:00 +99999999", b"0", b"\xd9\xa1 Jan 2024 00:00:00 GMT", b"1 Jan 1 0:0:0 1 1 1",
    ]  # fmt: skip
    for name in names:
        for sample in samples:
            request = asked([(name, sample), (name, sample)])
            assert request.has(made) is (sample == b"*" and name == b"if-none-match")
            client_family(request.agent)


# Addresses that are none


NO_FEEDS = (
    "/feeds/",
    "/feeds/.ics",
    "/feeds/short.ics",
    "/feeds/{secret}",
    "/feeds/{secret}.ICS",
    "/feeds/{secret}.ics/",
    "/feeds/{secret}.ics%0A",
    "/feeds/%2F{secret}.ics",
    "/feeds//{secret}.ics",
    "/feeds/{secret}x.ics",
    "/feeds/{other}.ics",
    "/feeds/{long}.ics",
    "/feeds/%F0%9F%97%93%F0%9F%97%93%F0%9F%97%93%F0%9F%97%93.ics",
)


NO_SUCH_FEED = {
    "type": "about:blank",
    "title": "Not Found",
    "status": 404,
    "detail": "There is no such feed.",
    "slug": "not-found",
}


async def test_address_that_is_none_is_a_404_like_every_other(world: World) -> None:
    shelf = world.notifications.app.state.shelf
    for path in NO_FEEDS:
        looks = shelf._begun
        named = path.format(secret=_secret(world.url), other=secrets.token_urlsafe(24), long="a" * 30_000)
        answer = await world.get(f"http://feeds.example{named}")
        assert (path, answer.status_code, answer.json()) == (path, 404, NO_SUCH_FEED)
        assert shelf._begun > looks  # one more look is taken for each, so none takes less time than another


async def test_folders_beside_the_feeds_are_no_feeds(world: World) -> None:
    paths = [
        f"//feeds/{_secret(world.url)}.ics",
        f"/Feeds/{_secret(world.url)}.ics",
        f"/notifications{_path(world.url)}",
    ]
    answers_ = [await world.notifications.anyone.get(f"http://feeds.example{path}") for path in paths]
    assert [answer.status_code for answer in answers_] == [404, 404, 404]


async def test_query_of_an_address_changes_nothing(world: World) -> None:
    plain, with_query = await world.get(), await world.get(f"{world.url}?nocache=1&a=%2F")
    assert (with_query.status_code, with_query.content) == (200, plain.content)


async def test_feeds_are_read_and_nothing_else(world: World) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PROPFIND", "REPORT"):
        answer = await world.notifications.anyone.request(method, world.url, content=b"x")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["slug"] == "method-not-allowed"


async def test_robots_are_let_in_to_the_feeds_alone(world: World) -> None:
    answer = await world.notifications.anyone.get("/robots.txt")
    head = await world.notifications.anyone.head("/robots.txt")
    assert (answer.status_code, answer.text) == (200, "User-agent: *\nAllow: /feeds/\nDisallow: /\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert (head.status_code, head.content, head.headers) == (200, b"", answer.headers)


# The end of a link


async def test_revoked_link_is_an_empty_calendar_for_thirty_days_and_then_gone(
    make_database: MakeDatabase, make_notifications: MakeNotifications
) -> None:
    clock = Clock()
    world = await _world(await make_database(MIGRATIONS), make_notifications, clock=clock)
    live = await world.get()
    revoked_at = datetime.fromisoformat((await world.revoke())["revoked_at"])
    ended = await world.get(if_none_match=live.headers["etag"], if_modified_since=live.headers["last-modified"])
    assert (ended.status_code, _events(ended.content)) == (200, [])
    assert "Cancelled" not in ended.text
    assert (await world.get(if_none_match=ended.headers["etag"])).status_code == 304
    # whoever asks by the date alone may hold the last body, which can be as young as the end of the link
    assert (await world.get(if_modified_since=ended.headers["last-modified"])).status_code == 200
    clock.fixed = revoked_at + DAYS_30 - TICK
    assert (await world.get()).status_code == 200
    clock.fixed = revoked_at + DAYS_30
    gone = await world.get(if_none_match=ended.headers["etag"])
    assert (gone.status_code, gone.json()["slug"], gone.json()["detail"]) == (410, "not-found", "This feed has ended.")
    assert (await world.notifications.anyone.post(world.url)).status_code == 405


async def test_link_ends_at_its_own_instants_to_the_microsecond(
    make_database: MakeDatabase, make_notifications: MakeNotifications
) -> None:
    clock = Clock()
    world = await _world(await make_database(MIGRATIONS), make_notifications, clock=clock)
    expires_at = datetime.fromisoformat(world.link["expires_at"])
    assert expires_at == datetime(2031, 5, 9, 23, tzinfo=UTC) + timedelta(days=14)  # midnight in Lisbon, 14 days on
    statuses = []
    for instant in (expires_at - TICK, expires_at, expires_at + DAYS_30 - TICK, expires_at + DAYS_30):
        clock.fixed = instant
        answer = await world.get()
        statuses.append((answer.status_code, b"Talks" in answer.content))
    assert statuses == [(200, True), (200, False), (200, False), (410, False)]
    clock.fixed = expires_at - TICK  # a clock that is put right makes it live again
    assert b"Talks" in (await world.get()).content


async def test_rotated_address_goes_on_for_its_grace_and_then_is_as_revoked(
    make_database: MakeDatabase, make_notifications: MakeNotifications
) -> None:
    clock = Clock()
    world = await _world(await make_database(MIGRATIONS), make_notifications, clock=clock)
    asked_at = datetime.now(UTC)
    second = (await world.rotate(grace="PT1H"))["url"]
    answered_at = datetime.now(UTC)
    live = (await world.get(second)).content
    assert _events(live) == ["Talks", "Tokyo"]
    assert (await world.get()).content == live  # not a redirect, which would hand the new address on
    clock.fixed = asked_at + timedelta(hours=1) - TICK
    before = _events((await world.get()).content)
    clock.fixed = answered_at + timedelta(hours=1)
    after = _events((await world.get()).content)
    assert (before, after) == (["Talks", "Tokyo"], [])
    clock.fixed += DAYS_30
    assert [(await world.get(url)).status_code for url in (world.url, second)] == [410, 200]


async def test_rotation_without_grace_ends_every_earlier_address_also_one_in_its_grace(world: World) -> None:
    second = (await world.rotate(grace="P7D"))["url"]
    third = (await world.rotate())["url"]
    held = [_events((await world.get(url)).content) for url in (world.url, second, third)]
    assert held == [[], [], ["Talks", "Tokyo"]]


async def test_revocation_ends_every_address_also_one_in_its_grace(world: World) -> None:
    second = (await world.rotate(grace="P1D"))["url"]
    await world.revoke()
    assert [_events((await world.get(url)).content) for url in (world.url, second)] == [[], []]


async def test_revocation_holds_on_every_replica_a_moment_later(
    world: World, make_notifications: MakeNotifications
) -> None:
    other = await make_notifications(world.database_url)
    assert b"Talks" in (await other.anyone.get(world.url)).content
    await world.revoke()
    await other.get_until(world.url, lambda body: b"Talks" not in body)
    assert POLL_SECONDS < 1  # a moment is no longer than that


async def test_revocation_holds_a_moment_later_also_where_no_connection_is_left_for_commands(
    world: World, make_notifications: MakeNotifications
) -> None:
    other = await make_notifications(world.database_url)
    assert b"Talks" in (await other.anyone.get(world.url)).content
    engine = other.app.state.service.engine
    async with AsyncExitStack() as held:
        in_use, most = pool_use(engine)
        for _ in range(most - in_use):
            await held.enter_async_context(engine.connect())
        with suppress(TimeoutError):  # and what others had a moment ago
            while True:
                async with asyncio.timeout(0.5):
                    await held.enter_async_context(engine.connect())
        await world.revoke()
        await other.get_until(world.url, lambda body: b"Talks" not in body)


# Whatever happens


@pytest.fixture
async def wire(make_database: MakeDatabase) -> AsyncIterator[tuple[Wire, str]]:
    """The wire, and the address of a database behind it."""
    there = make_url(await make_database(MIGRATIONS))
    with socket.socket() as held:  # it does not listen, and nobody else gets its port while the wire is cut
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        wire = Wire(str(there.host), int(there.port or 5432), held.getsockname()[1])
        await wire.join()
        url = there.set(host="127.0.0.1", port=wire.own_port).render_as_string(hide_password=False)
        yield wire, url
        await wire.cut()


async def test_feeds_go_on_while_the_database_is_away_and_on_when_it_is_back(
    wire: tuple[Wire, str], make_notifications: MakeNotifications, monkeypatch: pytest.MonkeyPatch
) -> None:
    cable, url = wire
    world = await _world(url, make_notifications)
    monkeypatch.setattr("services.notifications.feeds.UNKNOWN_SECONDS", UNKNOWN_SECONDS)
    revoked = await world.notifications.issue(world.messages.trip, world.host, label="Lost phone")
    path = f"/notifications/feed-links/{revoked['id']}/revoke"
    assert (await world.notifications.planner.post(path, json={"reason": "lost"})).status_code == 200
    live = await world.get()
    assert live.status_code == 200
    await cable.cut()
    strangers = [
        asyncio.create_task(world.get(f"http://feeds.example/feeds/{secrets.token_urlsafe(24)}.ics")) for _ in range(50)
    ]
    began = time.monotonic()
    asked_for = [await world.get() for _ in range(100)]
    unchanged = [await world.get(if_none_match=live.headers["etag"]) for _ in range(100)]
    assert time.monotonic() - began < 100  # not held up by those who wait for one more look, a second each
    assert {(answer.status_code, answer.content) for answer in asked_for} == {(200, live.content)}
    assert {answer.status_code for answer in unchanged} == {304}
    assert _events((await world.get(revoked["url"])).content) == []
    # one of them may have been issued elsewhere a moment before: nobody can say now that there is no such feed
    unsure = await asyncio.gather(*strangers)
    assert {(one.status_code, one.json()["slug"], one.headers["retry-after"]) for one in unsure} == {
        (503, "store-away", "5")
    }
    assert (await world.notifications.planner.post(path, json={"reason": "lost"})).status_code == 503
    await cable.join()
    there = Messages(engine=world.notifications.engine, trip=world.messages.trip)
    await _once_back(lambda: there.retitle(world.meeting, "Talks at last", "Talks"))
    await world.notifications.get_until(world.url, lambda body: b"Talks at last" in body)


async def test_killed_connections_are_not_seen_by_who_reads(world: World) -> None:
    live = await world.get()
    async with world.notifications.engine.connect() as connection:
        await connection.execute(
            text(
                # our own alone: an autovacuum worker may be here, and who is no superuser may not end it
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()"
            )
        )
    again = [await world.get() for _ in range(20)]
    assert {(answer.status_code, answer.content) for answer in again} == {(200, live.content)}
    await _once_back(lambda: world.messages.retitle(world.meeting, "Talks resumed", "Talks"))
    await world.notifications.get_until(world.url, lambda body: b"Talks resumed" in body)


async def test_a_crowd_gets_nothing_but_the_feed(world: World) -> None:
    live = await world.get()
    crowd = await asyncio.gather(*[world.get(accept_encoding="gzip" if n % 2 else "identity") for n in range(1000)])
    assert {(answer.status_code, answer.content) for answer in crowd} == {(200, live.content)}


async def test_strangers_do_not_keep_the_database_busy(world: World) -> None:
    shelf = world.notifications.app.state.shelf
    before, began = shelf._begun, time.monotonic()

    async def ask() -> None:
        while time.monotonic() - began < 1.0:
            answer = await world.get(f"http://feeds.example/feeds/{secrets.token_urlsafe(24)}.ics")
            assert answer.status_code == 404

    await asyncio.gather(*[ask() for _ in range(10)])
    assert shelf._begun - before <= (time.monotonic() - began) / 0.02 + 2


async def test_start_reads_every_link_and_of_bodies_the_newest_that_a_link_opens(
    world: World, make_notifications: MakeNotifications
) -> None:
    """More links than a page, past ones among them, and a history that is none of a start's business."""
    async with world.notifications.engine.begin() as connection:
        await connection.execute(text(_MANY_LINKS), {"link": world.link["id"]})
        await connection.execute(text(_LONG_PAST))
        await connection.execute(text(_MANY_BODIES))
    other = await make_notifications(world.database_url)
    shelf = other.app.state.shelf
    assert (len(shelf), len(shelf._bodies)) == (451, 451 - 150)
    assert {body.version for audience, body in shelf._bodies.items()} == {1, 4}
    assert (await other.anyone.get(world.url)).content == (await world.get()).content


async def test_plain_bodies_are_kept_up_to_a_bound_those_that_were_asked_for_last(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = world.notifications.app.state.shelf
    links = [world.link, *[await world.notifications.issue(world.messages.trip, world.host, alarm=a) for a in ALARMS]]
    sizes = [len((await world.get(link["url"])).content) for link in links]
    audiences = [shelf.card(_hash(link["url"])).audience for link in links]
    assert (len(shelf._plain), shelf._plain_bytes) == (3, sum(sizes))
    monkeypatch.setattr("services.notifications.shelf.PLAIN_BYTES_KEPT", max(sizes))
    shelf._plain.popitem()
    shelf._plain_bytes -= sizes[-1]
    await world.get(links[-1]["url"])
    assert ([audience for audience, _ in shelf._plain], shelf._plain_bytes) == ([audiences[-1]], sizes[-1])


async def test_body_that_no_link_opens_any_more_is_let_go_of_and_the_others_stay(
    make_database: MakeDatabase, make_notifications: MakeNotifications
) -> None:
    clock = Clock()
    world = await _world(await make_database(MIGRATIONS), make_notifications, clock=clock)
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    past = await world.notifications.issue(world.messages.trip, world.host, alarm="PT5M", expires_at=tomorrow)
    shelf = world.notifications.app.state.shelf
    live, let_go = [shelf.card(_hash(url)).audience for url in (world.url, past["url"])]
    assert shelf._bodies.keys() == {live, let_go}
    clock.ahead = timedelta(days=1) + DAYS_30
    shelf._swept_at -= SWEEP_SECONDS
    until = time.monotonic() + 60
    while let_go in shelf._bodies:
        assert time.monotonic() < until
        await shelf.look_again(1)
    assert shelf._bodies.keys() == {live}
    assert _events((await world.get()).content) == ["Talks", "Tokyo"]


_MANY_LINKS = """
INSERT INTO feed_links SELECT id, trip, gen_random_uuid(), expires_at, 1, thing,
    secrets || jsonb_build_object('id', id, 'secret_hash', encode(sha256(id::text::bytea), 'hex'))
FROM (SELECT gen_random_uuid() AS id, trip, expires_at, thing, secrets
    FROM feed_links, generate_series(1, 450) WHERE feed_links.id = :link) AS many
"""
_LONG_PAST = """
UPDATE feed_links SET secrets = jsonb_set(secrets, '{expires_at}', '"2020-01-01T00:00:00Z"')
WHERE id IN (SELECT id FROM feed_links WHERE audience NOT IN (SELECT audience FROM bodies) LIMIT 150)
"""
_MANY_BODIES = """
INSERT INTO bodies (audience, version, since, etag, compressed)
SELECT links.audience, number, now(), links.audience::text || number, bodies.compressed
FROM feed_links AS links, generate_series(1, 4) AS number, bodies
WHERE links.audience NOT IN (SELECT audience FROM bodies)
"""


# Who fetched what


async def test_each_answer_is_counted_once_under_its_status(
    make_database: MakeDatabase, make_notifications: MakeNotifications, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    world = await _world(await make_database(MIGRATIONS), make_notifications, clock=clock)
    shelf = world.notifications.app.state.shelf
    nobodys = f"/feeds/{'x' * 32}.ics"

    async def told() -> dict[str, int]:
        metrics = (await world.notifications.planner.get("/notifications/metrics")).text
        counts = re.findall(r'^attache_feed_answers_total\{.*status="(\d+)"\} (\d+)\.0$', metrics, re.MULTILINE)
        [unrendered] = re.findall(r"^attache_feed_unrendered_answers_total\{.*\} (\d+)\.0$", metrics, re.MULTILINE)
        return {**{status: int(count) for status, count in counts}, "unrendered": int(unrendered)}

    async def grown(asked: Awaitable[Any], **expected: int) -> Any:
        before = await told()
        answer = await asked
        after = await told()
        assert {name: count - before[name] for name, count in after.items() if count != before[name]} == expected
        return answer

    tag = (await grown(world.get(), **{"200": 1})).headers["etag"]
    await grown(world.get(accept_encoding="gzip"), **{"200": 1})
    await grown(world.notifications.anyone.head(world.url), **{"200": 1})
    await grown(world.get(if_none_match=tag), **{"304": 1})
    await grown(world.notifications.anyone.post(world.url), **{"405": 1})
    await grown(world.get(nobodys), **{"404": 1})
    with monkeypatch.context() as patched:
        patched.setattr(shelf, "look_again", _answering(False))
        await grown(world.get(nobodys), **{"503": 1})
    with monkeypatch.context() as patched:
        patched.setattr(shelf, "body", lambda _: None)
        patched.setattr(shelf, "body_within", _answering(None))
        assert _events((await grown(world.get(), **{"200": 1, "unrendered": 1})).content) == []
    with monkeypatch.context() as patched:
        patched.setattr(shelf, "body", lambda _: "no body")
        with pytest.raises(AttributeError):
            await world.get()
    assert (await told())["500"] == 1
    revoked_at = datetime.fromisoformat((await world.revoke())["revoked_at"])
    tag = (await grown(world.get(), **{"200": 1})).headers["etag"]
    await grown(world.get(if_none_match=tag), **{"304": 1})
    clock.ahead = revoked_at + DAYS_30 - datetime.now(UTC)
    await grown(world.get(), **{"410": 1})


async def test_fetches_are_written_down_when_the_service_stops(
    world: World, running_notifications: Stoppable, make_notifications: MakeNotifications
) -> None:
    tag = (await world.get(user_agent="curl/8.0")).headers["etag"]
    before = datetime.now(UTC)
    await world.get(user_agent="Mozilla/5.0 Thunderbird/128.0", if_none_match=tag)
    await world.get("http://feeds.example/feeds/nobody-knows-this-one.ics")
    await running_notifications.stop(world.notifications)
    after = await make_notifications(world.database_url)
    await after.anyone.get(world.url, headers={"user-agent": "Google-Calendar-Importer"})
    await running_notifications.stop(after)
    last = await make_notifications(world.database_url)
    shown = (await last.staff.get(f"/notifications/feed-links/{world.link['id']}")).json()["fetched"]
    assert datetime.fromisoformat(shown.pop("at")) > before
    assert shown == {"client": "google", "version": 1, "count": 3}


def test_fetches_that_could_not_be_written_down_are_counted_with_later_ones() -> None:
    fetches, link, other = Fetches(), uuid4(), uuid4()
    early, late = datetime(2031, 5, 6, 10, tzinfo=UTC), datetime(2031, 5, 6, 11, tzinfo=UTC)
    for _ in range(2):
        fetches.note(link, "curl", 1, early)
    fetches.note(other, "apple", 1, early)
    taken = fetches.take()
    fetches.note(link, "google", 2, late)
    fetches.give_back(taken)
    assert fetches.take() == {
        link: Fetched(at=late, client="google", version=2, count=3),
        other: Fetched(at=early, client="apple", version=1, count=1),
    }
    assert fetches.take() == {}


async def test_service_that_cannot_write_fetches_down_leaves_no_connection_behind(
    make_database: MakeDatabase,
    make_notifications: MakeNotifications,
    running_notifications: Stoppable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.notifications.upkeep.WRITE_SECONDS", 3600)  # at its end alone
    world = await _world(await make_database(MIGRATIONS), make_notifications)
    await world.get()
    async with world.notifications.engine.begin() as connection:
        await connection.execute(text("DROP TABLE fetches"))
    with pytest.raises(UndefinedTableError):
        await running_notifications.stop(world.notifications)
    engine = make_engine(world.database_url, name="test")
    until = time.monotonic() + 60
    async with engine.connect() as connection:
        while left := (await connection.scalars(text(_CONNECTIONS))).all():
            assert time.monotonic() < until, left
            await connection.rollback()  # what is seen of others stands still within a transaction
    await engine.dispose()


_CONNECTIONS = """
SELECT application_name FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


async def test_old_bodies_are_dropped_once_they_ended_long_enough_ago_and_the_newest_stays(world: World) -> None:
    engine = world.notifications.engine
    async with engine.begin() as connection:
        for version, days in ((1, 90), (2, 60), (3, 45)):
            await connection.execute(text(_OLD_BODY), {"audience": world.host, "version": version, "days": days})
    left = []
    for kept in (70, 50, 1):
        await drop_old_bodies(engine, kept)
        async with engine.connect() as connection:
            rows = await connection.execute(text(_VERSIONS), {"audience": world.host})
            left.append(rows.scalars().all())
    assert left == [[1, 2, 3], [2, 3], [3]]


_OLD_BODY = "INSERT INTO bodies VALUES (:audience, :version, DEFAULT, now() - make_interval(days => :days), 'tag', '')"
_VERSIONS = "SELECT version FROM bodies WHERE audience = :audience ORDER BY version"


@pytest.mark.parametrize(
    ("agent", "family"),
    [
        ("Google-Calendar-Importer", "google"),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Thunderbird/128.3.1", "thunderbird"),
        ("ICSx5/2.2 (okhttp/4.12)", "icsx5"),
        ("macOS/14.4 (23E214) dataaccessd/1.0", "apple"),
        ("iOS/17.4 (21E219) dataaccessd/1.0", "apple"),
        ("Microsoft.Exchange/15.20", "outlook"),
        ("something of one's own", "other"),
        ("", "other"),
    ],
)
def test_client_is_known_by_its_family_alone(agent: str, family: str) -> None:
    assert client_family(agent.encode()) == family


# What nobody is told


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """All that is logged, down to debug."""
    lines = io.StringIO()
    root = logging.getLogger()
    level, handlers, configured = root.level, root.handlers[:], structlog.get_config()
    set_up("notifications", log_format="json", level="debug", stream=lines)
    yield lines
    root.setLevel(level)
    root.handlers[:] = handlers
    structlog.configure(**configured)


async def test_secret_stands_in_the_answer_that_gives_it_and_nowhere_else(
    logged: io.StringIO, make_database: MakeDatabase, make_notifications: MakeNotifications
) -> None:
    bus = SilentBus()
    world = await _world(await make_database(MIGRATIONS), make_notifications, bus=bus)
    planner = world.notifications.planner
    key = {"Idempotency-Key": "rotate-once"}
    path = f"/notifications/feed-links/{world.link['id']}/rotate"
    rotated = await planner.post(path, json={}, headers=key)
    replayed = await planner.post(path, json={}, headers=key)
    revoked = await planner.post(path.replace("rotate", "revoke"), json={"reason": "over"})
    found = {_secret(world.url), _secret(rotated.json()["url"])}
    assert len(found) == 2
    for secret in found:
        for address in (
            f"/feeds/{secret}.ics",
            f"//feeds/{secret}.ics",
            f"/feeds/{secret}.ics/x",
            f"/other/{secret}.ics",
        ):
            await world.notifications.anyone.get(f"http://feeds.example{address}?{secret}.ics")
            await world.notifications.anyone.post(f"http://feeds.example{address}")
    told = [
        replayed.text,
        revoked.text,
        (await planner.get(f"/notifications/feed-links/{world.link['id']}")).text,
        (await planner.get(f"/notifications/trips/{world.messages.trip}/feed-links")).text,
        (await planner.get("/notifications/metrics")).text,
        (await planner.get("/notifications/readyz")).text,
        await _until_told(bus, 6),
        await _everything_stored(world),
        await _until_logged(logged, '"trip.rendered"'),
    ]
    assert replayed.json() == {**rotated.json(), "url": None}
    assert [secret for secret in found for said in told if secret in said] == []
    hashes = {sha256(secret.encode()).hexdigest() for secret in found}
    # a hash opens nothing, but it is none of others' business: it stands in this service's own tables alone
    assert [digest for digest in hashes for said in (*told[:7], told[8]) if digest in said] == []
    assert all(digest in told[7] for digest in hashes)


def test_the_frameworks_own_traces_are_off() -> None:
    assert NO_TELEMETRY == {"tracing": False, "metrics": False, "logs": False, "operation_spans": False}


async def test_the_app_records_no_trace(world: World) -> None:
    assert not any(world.notifications.app._telemetry[name] for name in NO_TELEMETRY)  # type: ignore[literal-required]


def _events(body: bytes) -> list[str]:
    return sorted(str(event["SUMMARY"]) for event in icalendar.Calendar.from_ical(body).walk("VEVENT"))


def _hash(url: str) -> str:
    return sha256(_secret(url).encode()).hexdigest()


def _secret(url: str) -> str:
    return _path(url).removeprefix("/feeds/").removesuffix(".ics")


def _path(url: str) -> str:
    return urlsplit(url).path


def _date(answer: httpx.Response) -> datetime:
    return parsedate_to_datetime(answer.headers["last-modified"])


def _announced() -> dict[str, Any]:
    return {"status": "announced", "was": {"status": "planned"}}


async def _rendered(world: World) -> None:
    """Until no trip has a mark, and the shelf has looked."""
    until = time.monotonic() + 60
    async with world.notifications.engine.connect() as connection:
        while await connection.scalar(text("SELECT EXISTS (SELECT FROM marks)")):
            assert time.monotonic() < until
            await connection.rollback()
            await asyncio.sleep(0.02)
    assert await world.notifications.app.state.shelf.look_again(60)


async def _once_back(act: Callable[[], Awaitable[None]]) -> None:
    """The first connections of a pool are dead when the database comes back."""
    until = time.monotonic() + 60
    while True:
        try:
            await act()
            return
        except (DBAPIError, OSError):
            assert time.monotonic() < until
            await asyncio.sleep(0.05)


async def _until_told(bus: SilentBus, count: int) -> str:
    """All records as text; each of the three facts goes to two topics."""
    until = time.monotonic() + 60
    while len(bus.records) < count:
        assert time.monotonic() < until, bus.records
        await asyncio.sleep(0.02)
    return repr(bus.records)


async def _until_logged(lines: io.StringIO, wanted: str) -> str:
    """All that was logged; a line may come a moment after what it tells of is there for everybody."""
    until = time.monotonic() + 60
    while wanted not in lines.getvalue():
        assert time.monotonic() < until, lines.getvalue()
        await asyncio.sleep(0.02)
    return lines.getvalue()


async def _everything_stored(world: World) -> str:
    """Every row of every table as text."""
    rows = []
    async with world.notifications.engine.connect() as connection:
        names = await connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))
        for name in names.all():
            found = await connection.scalars(text(f'SELECT t::text FROM "{name}" AS t'))
            rows += [f"{name}: {row}" for row in found]
    assert any(row.startswith("idempotency: ") for row in rows)
    assert any(row.startswith("events: ") for row in rows)
    return "\n".join(rows)


async def _nothing_more() -> Any:
    return {"type": "http.disconnect"}


def _answering(answer: object) -> Callable[..., Awaitable[object]]:
    async def answered(*_: object) -> object:
        return answer

    return answered

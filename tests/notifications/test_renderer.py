"""Marks to bodies: the same state gives the same bytes, LAST-MODIFIED only rises, and nothing is lost or done twice."""

import asyncio
import gzip
import json
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from structlog.testing import capture_logs

from services.notifications import rendering
from services.notifications.entry import Entry
from services.notifications.feed import Draft, draft
from services.notifications.main import Instance
from services.notifications.programme import Audience, Level
from services.notifications.renderer import CatchingUp, Renderer
from services.notifications.rendering import AudienceCache, Caches, Revision, TripCache, compressed, render, renderer_id
from services.notifications.shelf import Shelf
from shared.database import make_engine
from tests.feeds_fixture import DOMAIN, MIGRATIONS, Messages, whole_meeting

MakeDatabase = Callable[..., Awaitable[str]]
Body = tuple[int, datetime, str, bytes]
"""version, since, etag, bytes"""

BLOCK = re.compile(rb"BEGIN:VEVENT\r\n.*?END:VEVENT\r\n", re.DOTALL)
STAMPS = re.compile(rb"DTSTAMP:(\d{8}T\d{6}Z)\r\nLAST-MODIFIED:(\d{8}T\d{6}Z)\r\n")
UIDS = re.compile(rb"UID:([0-9a-f-]{36})@planning\.\r?\n? ?example\r\n")
LATER = timedelta(seconds=1)
NOON = datetime(2021, 5, 1, 12, tzinfo=UTC)


# The pure part, over random histories


@dataclass
class History:
    """A trip as rows, changed at random; `render` gives the body, with what is left from the last time or without."""

    randomly: random.Random
    reader: Audience
    rows: dict[tuple[str, UUID], tuple[int, dict[str, Any]]]
    revisions: dict[UUID, Revision] = field(default_factory=dict)
    cache: TripCache = field(default_factory=TripCache)

    @classmethod
    def begin(cls, randomly: random.Random) -> "History":
        own, host, stop = (UUID(int=randomly.getrandbits(128), version=4) for _ in range(3))
        rows: dict[tuple[str, UUID], tuple[int, dict[str, Any]]] = {
            ("trip", uuid4()): (0, {"title": "Tour"}),
            ("delegation", own): (0, {"name": "Ours", "kind": "own"}),
            ("delegation", host): (0, {"name": "Hosts", "kind": "host"}),
            ("stop", stop): (0, _stop_document(host)),
        }
        for number in range(4):
            document = whole_meeting(stop, f"Talks {number}", f"2021-05-06T1{number}:00:00", [own, host])
            rows["meeting", UUID(int=randomly.getrandbits(128), version=4)] = (0, document)
        return cls(randomly, Audience(delegation=host, level="delegation", alarm=None), rows)

    def act(self, act: str) -> None:
        kind, thing = self.randomly.choice([key for key in self.rows if key[0] == "meeting"])
        count, document = self.rows[kind, thing]
        match act:
            case "retitle":
                document = {**document, "title": f"Talks {self.randomly.randrange(3)}"}
            case "move":
                start = f"{self.randomly.choice((2021, 2021, 2025))}-05-06T{self.randomly.randrange(9, 19):02}:00:00"
                zone = self.randomly.choice(("Asia/Tokyo", "Asia/Tokyo", "Asia/Amman", "Moon/Tranquility"))
                times = whole_meeting(uuid4(), "", start, zone=zone)
                names = ("start", "starts_at", "ends_at", "zone")
                count, document = count + 1, {**document, **{name: times[name] for name in names}}
            case "invite":
                host, invited = self.reader.delegation, document["delegations"]
                without = [each for each in invited if each != host]
                document = {**document, "delegations": without if host in invited else [*invited, host]}
            case "cancel":
                status = "confirmed" if document["status"] == "cancelled" else "cancelled"
                count, document = count + 1, {**document, "status": status}
            case "rename":
                kind, thing = "delegation", self.reader.delegation
                count, document = 0, {**self.rows[kind, thing][1], "name": f"Hosts {self.randomly.randrange(3)}"}
            case "roster":
                kind, thing = "member", UUID(int=self.randomly.randrange(3))
                status = self.randomly.choice(("on-roster", "withdrawn"))
                delegation = str(self.reader.delegation)
                count, document = 0, {"delegation": delegation, "function": "staff", "status": status}
            case "kind":
                kind, thing = "delegation", self.reader.delegation
                count, document = 0, {**self.rows[kind, thing][1], "kind": self.randomly.choice(("host", "own"))}
            case "level":
                level: Level = self.randomly.choice(("full", "delegation"))
                self.reader = Audience(delegation=self.reader.delegation, level=level, alarm=self.reader.alarm)
        self.rows[kind, thing] = (count, document)

    def render(self, now: datetime) -> bytes:
        rows = [
            (kind, thing, count, json.dumps(document, default=str))
            for (kind, thing), (count, document) in self.rows.items()
        ]
        arguments = {"domain": DOMAIN, "now": now, "revisions": self.revisions}
        fresh = render(TripCache().picture(rows), self.reader, cache=AudienceCache(), **arguments)  # type: ignore[arg-type]
        picture = self.cache.picture(rows)
        self.cache.keep([UUID(int=0)])
        done = render(picture, self.reader, cache=self.cache.audiences[UUID(int=0)], **arguments)  # type: ignore[arg-type]
        assert done == fresh  # caches save time and nothing else
        self.revisions |= done.revised
        return done.body


ACTS = ("retitle", "move", "invite", "cancel", "rename", "roster", "kind", "level", "nothing")


@given(
    seed=st.integers(0, 2**32),
    steps=st.lists(st.tuples(st.sampled_from(ACTS), st.sampled_from((0, 1, 1, 2, 60, -5))), max_size=40),
)
@settings(max_examples=60)
def test_last_modified_rises_when_an_items_bytes_change_and_only_then(seed: int, steps: list[tuple[str, int]]) -> None:
    history = History.begin(random.Random(seed))
    now = datetime(2031, 4, 1, 12, tzinfo=UTC)
    last: dict[bytes, tuple[bytes, datetime]] = {}
    before = b""
    for act, seconds in (("nothing", 0), *steps):
        now += timedelta(seconds=seconds)
        history.act(act)
        body = history.render(now)
        for uid, (block, modified) in _items(body).items():
            known, stamp = last.get(uid, (b"", datetime.min.replace(tzinfo=UTC)))
            expected = stamp if known == block else max(now.replace(microsecond=0), stamp + LATER) if known else now
            assert modified == expected, (act, block)
            last[uid] = (block, modified)
        assert (history.render(now + timedelta(hours=1)) == body) is True  # later, but the same state
        before = body
    assert before


def test_history_reaches_what_it_is_meant_to_try() -> None:
    """Items that leave and return, zones that become UTC, levels: else the property above would prove nothing."""
    history = History.begin(random.Random(11))
    seen = set()
    now = datetime(2031, 4, 1, 12, tzinfo=UTC)
    for number in range(400):
        history.act(ACTS[number % len(ACTS)])
        now += LATER
        body = history.render(now)
        items = _items(body)
        seen |= {f"{len(items)} items", f"{body.count(b'BEGIN:VTIMEZONE')} zones"}
        seen |= {name for name in ("DTSTART:20", "Notes: ", "Cancelled: ", "- staff") if name.encode() in body}
    assert seen >= {"DTSTART:20", "Notes: ", "Cancelled: ", "- staff", "1 zones", "2 zones", "3 items", "5 items"}


def test_one_changed_meeting_changes_no_line_of_another_item() -> None:
    history = History.begin(random.Random(5))
    now = datetime(2031, 4, 1, 12, tzinfo=UTC)
    before = history.render(now)
    (key, (count, document)), *_ = [item for item in history.rows.items() if item[0][0] == "meeting"]
    history.rows[key] = (count + 1, {**document, **_hours_later(document)})
    after = history.render(now + timedelta(minutes=5))
    changed = str(key[1]).encode()
    others_before = {block for block in BLOCK.findall(before) if changed not in block}
    others_after = {block for block in BLOCK.findall(after) if changed not in block}
    assert (len(others_after), others_after) == (4, others_before)
    assert BLOCK.sub(b"", after) == BLOCK.sub(b"", before)


def test_caches_hold_no_more_than_there_is_room_for() -> None:
    caches = Caches(room=10)
    for number in range(30):
        trip = UUID(int=number)
        held = caches.take(trip)
        held.picture([("trip", UUID(int=1000 + item), 0, '{"title": "Tour"}') for item in range(4)])
        caches.put(trip, held)
        assert len(caches) <= 10
    assert [len(caches.take(UUID(int=number))) for number in (27, 28, 29)] == [0, 4, 4]
    large = TripCache()
    large.picture([("trip", UUID(int=item), 0, '{"title": "Tour"}') for item in range(11)])
    caches.put(UUID(int=99), large)
    assert (len(caches), len(caches.take(UUID(int=99)))) == (0, 0)


# With marks, in a database


@dataclass(kw_only=True)
class Trip:
    """A trip with two stops and three meetings, and the feeds of its own and of one host delegation."""

    messages: Messages
    own: UUID
    host: UUID
    stop: UUID
    meetings: list[UUID]
    audiences: list[UUID]

    @property
    def engine(self) -> AsyncEngine:
        return self.messages.engine


@pytest.fixture
async def database_url(make_database: MakeDatabase) -> str:
    return await make_database(MIGRATIONS)


@pytest.fixture
async def trip(database_url: str, patience: None) -> Any:
    engine = make_engine(database_url, name="test")
    yield await _trip(engine)
    await engine.dispose()


async def _trip(engine: AsyncEngine) -> Trip:
    messages = Messages(engine=engine)
    await messages.plan()
    own = await messages.register("Ours", "own")
    host = await messages.register("Hosts", "host")
    stop = await messages.add_stop("Tokyo", "Asia/Tokyo", "2031-05-06", host)
    await messages.add_stop("Dublin", "Europe/Dublin", "2031-05-08")
    starts = [f"2031-05-06T{hour}:00:00" for hour in (10, 12, 14)]
    meetings = [await messages.schedule(stop, f"Talks {start[11:13]}", start, [own, host]) for start in starts]
    audiences = [await _audience(messages, own, "full"), await _audience(messages, host, "delegation")]
    return Trip(messages=messages, own=own, host=host, stop=stop, meetings=meetings, audiences=audiences)


async def _audience(messages: Messages, delegation: UUID, level: str) -> UUID:
    async with messages.engine.begin() as connection:
        values = {"id": uuid4(), "trip": messages.trip, "delegation": delegation, "level": level}
        await connection.execute(text("INSERT INTO audiences VALUES (:id, :trip, :delegation, :level, -1)"), values)
        await connection.execute(text("INSERT INTO marks (trip) VALUES (:trip)"), values)
    made: UUID = values["id"]  # type: ignore[assignment]
    return made


def _renderer(
    engine: AsyncEngine, rendered: Callable[[], None] = lambda: None, kind: type[Renderer] = Renderer
) -> Renderer:
    return kind(engine=engine, domain=lambda: DOMAIN, rendered=rendered)


async def test_fifty_edits_are_one_new_body_at_once_after_a_quiet_second_and_else_once_a_second(trip: Trip) -> None:
    renderer = _renderer(trip.engine)
    own, meeting = trip.audiences[0], trip.meetings[0]
    second, edits = None, 98
    while second != (await _now(trip.engine)).replace(microsecond=0):  # until the machine is quick enough to try it
        edits = max(2, edits // 2)  # a slow machine does as many as fit into a second
        await _until_rendered(trip, renderer)
        known = await _bodies(trip, own)
        await _early_in_the_next_second(trip.engine)
        await trip.messages.retitle(meeting, f"Talks of {await _now(trip.engine)}", "Talks")
        await renderer.round()  # at once
        before = await _bodies(trip, own)
        assert len(before) == len(known) + 1
        second = before[-1][1].replace(microsecond=0)
        await asyncio.gather(*[trip.messages.retitle(meeting, f"Talks {number}", "Talks") for number in range(edits)])
        await trip.messages.retitle(meeting, "Talks at last", "Talks")
        pause = await renderer.round()
        held = await _bodies(trip, own)
    assert held == before  # not in the same second
    assert 0 < pause <= 1.0
    await _until_rendered(trip, renderer)
    *older, (version, since, _, body) = await _bodies(trip, own)
    assert (older, version) == (before, before[-1][0] + 1)
    assert b"Talks at last" in body
    assert since.replace(microsecond=0) == _modified(body)[str(meeting).encode()] > second
    await asyncio.sleep(1.0)  # a quiet second
    await trip.messages.retitle(meeting, "Talks at once", "Talks at last")
    await renderer.round()
    assert len(await _bodies(trip, own)) == len(older) + 2


async def test_nothing_is_rendered_while_a_consumer_is_behind(trip: Trip) -> None:
    renderer = _renderer(trip.engine)
    await _execute(trip.engine, "INSERT INTO consumer_offsets VALUES ('attache.schedule.cleared', 3, 17, true)")
    await renderer.round()
    assert await _bodies(trip, trip.audiences[0]) == []
    # it may fall behind, or be rebuilt, after the marks were looked at
    with pytest.raises(CatchingUp):
        await renderer._trip(trip.messages.trip)
    assert await _bodies(trip, trip.audiences[0]) == []
    assert await renderer.waiting() == 1
    await _execute(trip.engine, "UPDATE consumer_offsets SET behind = false")
    await renderer.round()
    assert (len(await _bodies(trip, trip.audiences[0])), await renderer.waiting()) == (1, 0)


def test_one_changed_meeting_of_many_is_the_one_block_that_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    history = History.begin(random.Random(1))
    history.rows |= {("meeting", uuid4()): one for (kind, _), one in list(history.rows.items()) if kind == "meeting"}
    written: list[UUID] = []

    def counting(each: Entry, **given: Any) -> Draft:
        written.append(each.id)
        return draft(each, **given)

    def rendered() -> list[UUID]:
        written.clear()
        rows = [(*thing, count, json.dumps(document, default=str)) for thing, (count, document) in history.rows.items()]
        picture = history.cache.picture(rows)
        history.cache.keep([UUID(int=0)])
        cache = history.cache.audiences[UUID(int=0)]
        done = render(picture, history.reader, domain=DOMAIN, now=NOON, revisions=history.revisions, cache=cache)
        history.revisions |= done.revised
        return list(written)

    monkeypatch.setattr(rendering, "draft", counting)
    assert len(rendered()) == 9  # the stop, and twice the four meetings
    assert rendered() == []
    changed = next(thing for kind, thing in history.rows if kind == "meeting")
    count, document = history.rows["meeting", changed]
    history.rows["meeting", changed] = (count, {**document, "title": "Talks go on"})
    assert rendered() == [changed]


async def test_trip_that_is_to_be_built_anew_holds_up_no_other(trip: Trip) -> None:
    stale = "INSERT INTO consumer_marks (topic, key, sequence) VALUES ('attache.schedule.cleared', '{}', 3)"
    await _execute(trip.engine, stale.format(trip.messages.trip))
    await _execute(trip.engine, "INSERT INTO consumer_epochs VALUES ('attache.schedule.cleared', 7)")
    other = await _trip(trip.engine)
    renderer = _renderer(trip.engine)
    await renderer.round()
    counts = [len(await _bodies(each, each.audiences[0])) for each in (trip, other)]
    assert (counts, await renderer.waiting()) == ([0, 1], 1)


async def test_trip_that_is_being_rendered_is_left_to_who_does_it(trip: Trip) -> None:
    other = _renderer(trip.engine)
    await _execute(trip.engine, f"INSERT INTO renderings VALUES ('{trip.messages.trip}', 0)")  # it was rendered before
    meanwhile: list[int] = []

    class Interrupted(Renderer):
        async def _audiences(self, *given: Any) -> Any:
            await trip.messages.retitle(trip.meetings[0], "Told meanwhile", "Talks 10")  # a mark of its own
            await other._trip(trip.messages.trip)
            meanwhile.append(len(await _bodies(trip, trip.audiences[0])))
            return await super()._audiences(*given)

    await _renderer(trip.engine, kind=Interrupted)._trip(trip.messages.trip)
    assert meanwhile == [0]
    assert set(other._resting) == {trip.messages.trip}
    await _until_rendered(trip, other)
    assert b"Told meanwhile" in (await _bodies(trip, trip.audiences[0]))[-1][3]


def test_compressed_body_tells_no_time() -> None:
    assert compressed(b"BEGIN:VCALENDAR")[4:8] == bytes(4)  # RFC 1952, 2.3: MTIME


async def test_mark_that_comes_while_its_trip_is_rendered_is_not_lost(trip: Trip) -> None:
    """Its change is not in that body, whose picture was read before; so the mark is another rendering's."""

    class Interrupted(Renderer):
        async def _audiences(self, *given: Any) -> Any:
            done = await super()._audiences(*given)
            await trip.messages.retitle(trip.meetings[0], "Told meanwhile", "Talks 10")
            return done

    renderer = _renderer(trip.engine, kind=Interrupted)
    await renderer._trip(trip.messages.trip)
    assert b"Told meanwhile" not in (await _bodies(trip, trip.audiences[0]))[-1][3]
    assert await renderer.waiting() == 1
    await _until_rendered(trip, _renderer(trip.engine))
    assert b"Told meanwhile" in (await _bodies(trip, trip.audiences[0]))[-1][3]


async def test_change_that_comes_before_its_picture_is_read_is_in_the_body(trip: Trip) -> None:
    class Interrupted(Renderer):
        async def _begin(self, *given: Any) -> Any:
            begun = await super()._begin(*given)
            await trip.messages.retitle(trip.meetings[0], "Told meanwhile", "Talks 10")
            return begun

    renderer = _renderer(trip.engine, kind=Interrupted)
    await renderer._trip(trip.messages.trip)
    assert b"Told meanwhile" in (await _bodies(trip, trip.audiences[0]))[-1][3]
    assert await renderer.waiting() == 0


async def test_one_audience_that_fails_stops_neither_the_others_nor_other_trips(trip: Trip) -> None:
    odd = await _audience(trip.messages, trip.own, "unheard-of")
    broken = await _trip(trip.engine)
    await _execute(trip.engine, f"UPDATE things SET document = '{{\"arrives\": 5}}' WHERE id = '{broken.stop}'")
    # what cannot be read at all
    wrong = '{"place": "X", "zone": "Y", "arrives": "soon", "departs": "", "arrives_at": "", "departs_at": ""}'
    await _execute(trip.engine, f"UPDATE things SET document = '{wrong}' WHERE id = '{broken.stop}'")
    last = await _trip(trip.engine)
    renderer = _renderer(trip.engine)
    await renderer.round()
    assert [len(await _bodies(trip, one)) for one in (*trip.audiences, odd)] == [1, 1, 0]
    assert [len(await _bodies(broken, one)) for one in broken.audiences] == [0, 0]
    assert [len(await _bodies(last, one)) for one in last.audiences] == [1, 1]
    assert await renderer.waiting() == 2  # their marks stand
    rests = dict(renderer._resting)
    assert set(rests) == {trip.messages.trip, broken.messages.trip}
    rests = {one: replace(rest, until=rest.until + 60) for one, rest in rests.items()}
    renderer._resting = dict(rests)
    await renderer.round()
    assert renderer._resting == rests  # and they are left alone for a while, until there is a newer mark
    await trip.messages.retitle(trip.meetings[0], "Talks go on", "Talks 10")
    await _until(lambda: _holds(trip, trip.audiences[1], b"Talks go on"), renderer)
    await _execute(trip.engine, "UPDATE audiences SET level = 'delegation' WHERE level = 'unheard-of'")
    await _execute(trip.engine, f"INSERT INTO marks (trip) VALUES ('{trip.messages.trip}')")
    await _until(lambda: _holds(trip, odd, b"Talks go on"), renderer)


async def test_new_body_names_the_traces_of_the_changes_that_it_shows_and_keeps_them_out_of_the_feed(
    trip: Trip,
) -> None:
    renderer = _renderer(trip.engine)
    await _until_rendered(trip, renderer)
    first, second = "4bf92f3577b34da6a3ce929d0e0e4736", "0af7651916cd43dd8448eb211c80319c"
    for trace, meeting in ((first, 0), (second, 1), (first, 2)):
        trip.messages.traceparent = f"00-{trace}-00f067aa0ba902b7-01"
        await trip.messages.retitle(trip.meetings[meeting], f"Talks traced {meeting}", "Talks")
    with capture_logs() as lines:
        await _until_rendered(trip, renderer)
    told = {"trip": str(trip.messages.trip), "log_level": "info", "trace_ids": [first, second]}
    assert [line for line in lines if line["event"] != "trip.rendered"] == [
        {**told, "event": "body.stored", "audience": str(audience), "version": 2} for audience in sorted(trip.audiences)
    ]
    assert [line for line in lines if line["event"] == "trip.rendered"] == [
        {**told, "event": "trip.rendered", "bodies": 2, "failed": 0}
    ]
    for audience in trip.audiences:
        body = (await _bodies(trip, audience))[-1][3].replace(b"\r\n ", b"")
        assert b"Talks traced 2" in body
        assert first.encode() not in body
        assert second.encode() not in body


async def test_traces_of_a_rendering_that_failed_are_named_when_it_succeeds(trip: Trip) -> None:
    await _until_rendered(trip, _renderer(trip.engine))
    odd = await _audience(trip.messages, trip.own, "unheard-of")
    traces = [uuid4().hex, uuid4().hex]
    for trace in traces:
        trip.messages.traceparent = f"00-{trace}-00f067aa0ba902b7-01"
        await trip.messages.retitle(trip.meetings[0], f"Talks {trace}", "Talks")
    with capture_logs() as lines:
        await _until(lambda: _holds(trip, trip.audiences[0], traces[1].encode()[:20]), _renderer(trip.engine))
        await _execute(trip.engine, "UPDATE audiences SET level = 'delegation' WHERE level = 'unheard-of'")
        await _until(lambda: _holds(trip, odd, b"Talks"), _renderer(trip.engine))
    stored = [line for line in lines if line["event"] == "body.stored" and line["audience"] == str(odd)]
    assert [line["trace_ids"] for line in stored] == [traces]


async def test_clock_that_is_put_back_stops_no_feed_and_lets_no_stamp_fall(trip: Trip) -> None:
    renderer = _renderer(trip.engine)
    await renderer.round()
    await _execute(trip.engine, "UPDATE renderings SET second = second + 3600")
    await _execute(trip.engine, "UPDATE revisions SET last_modified = last_modified + interval '1 hour'")
    await _execute(trip.engine, "UPDATE bodies SET since = since + interval '1 hour'")
    (_, since, _, body), *_ = await _bodies(trip, trip.audiences[0])
    stamps = {
        row[0]: row[1] for row in await _rows(trip.engine, "SELECT item, max(last_modified) FROM revisions GROUP BY 1")
    }
    await trip.messages.retitle(trip.meetings[0], "Talks after all", "Talks 10")
    await renderer.round()
    _, (_, later, _, changed) = await _bodies(trip, trip.audiences[0])
    moved = trip.meetings[0]
    assert _modified(changed) == {str(i).encode(): at + LATER * (i == moved) for i, at in stamps.items()}
    assert LATER <= later - since.replace(microsecond=0) < 2 * LATER
    assert b"Talks after all" in changed
    assert body != changed


async def test_item_that_leaves_and_returns_keeps_its_revision_or_gets_a_later_one(trip: Trip) -> None:
    renderer = _renderer(trip.engine)
    host, meeting, uid = trip.audiences[1], trip.meetings[1], str(trip.meetings[1]).encode()

    async def invite(was: Sequence[UUID], now: Sequence[UUID], name: str) -> bytes:
        body = {"delegation": trip.host, "delegations": list(now), "was": {"delegations": list(was)}}
        await trip.messages.tell(name, "meeting", meeting, body)
        await _until_rendered(trip, renderer)
        return (await _bodies(trip, host))[-1][3]

    await renderer.round()
    first = (await _bodies(trip, host))[-1][3]
    gone = await invite([trip.own, trip.host], [trip.own], "DelegationUninvited")
    back = await invite([trip.own], [trip.own, trip.host], "DelegationInvited")
    assert uid not in _modified(gone)
    assert back == first
    await invite([trip.own, trip.host], [trip.own], "DelegationUninvited")
    await trip.messages.retitle(meeting, "Talks renewed", "Talks 12")
    changed = await invite([trip.own], [trip.own, trip.host], "DelegationInvited")
    assert _modified(changed)[uid] > _modified(first)[uid]


async def test_roster_and_program_and_tz_data_count_as_changes(trip: Trip) -> None:
    renderer = _renderer(trip.engine)
    await renderer.round()
    before = [(await _bodies(trip, audience))[-1][3] for audience in trip.audiences]
    await trip.messages.add_member(trip.host, "Ada Newcomb", "+81 3 5550 0123")
    await _until_rendered(trip, renderer)
    after = [(await _bodies(trip, audience))[-1][3] for audience in trip.audiences]
    for old, new in zip(before, after, strict=True):
        risen = {uid for uid, at in _modified(new).items() if at > _modified(old)[uid]}
        assert risen == {str(meeting).encode() for meeting in trip.meetings}
    after = [body.replace(b"\r\n ", b"") for body in after]
    assert (b"5550 0123" in after[0], b"5550 0123" in after[1], b"Ada Newcomb" in after[1]) == (True, False, True)
    # another program, or other tz data, renders everything anew when it starts, and the same one nothing
    instance = Instance()
    waiting = []
    for made_by in (renderer_id(), renderer_id(), "another", renderer_id()):
        await instance.settle(trip.engine, DOMAIN, made_by)
        waiting.append(await renderer.waiting())
        await _execute(trip.engine, "DELETE FROM marks")
    assert waiting == [0, 0, 1, 1]


async def test_zone_that_nobody_knows_is_told_in_utc_with_the_wall_time_in_the_text(trip: Trip) -> None:
    renderer = _renderer(trip.engine)
    await renderer.round()
    before = (await _bodies(trip, trip.audiences[1]))[-1][3]
    zone = {"zone": "Moon/Tranquility", "starts_at": "2031-05-06T07:10:00Z", "ends_at": "2031-05-06T07:55:00Z"}
    odd = await trip.messages.schedule(trip.stop, "Talks far off", "2031-05-06T16:20:00", [trip.host], **zone)
    await _until_rendered(trip, renderer)
    after = (await _bodies(trip, trip.audiences[1]))[-1][3]
    (block,) = [block for block in BLOCK.findall(after) if str(odd).encode() in block]
    assert b"DTSTART:20310506T071000Z\r\nDTEND:20310506T075500Z\r\n" in block
    assert b"16:20\xe2\x80\x9317:05 Moon/Tranquility (UTC+09:10)" in block.replace(b"\r\n ", b"")
    assert set(BLOCK.findall(after)) - {block} == set(BLOCK.findall(before))


async def test_domain_is_fixed_at_the_first_start(trip: Trip) -> None:
    first, second = Instance(), Instance()
    await first.settle(trip.engine, "first.example", renderer_id())
    await second.settle(trip.engine, "second.example", renderer_id())
    assert (first.domain, second.domain) == ("first.example", "first.example")


async def test_renderers_at_once_lose_nothing_and_do_nothing_twice(trip: Trip, database_url: str) -> None:
    """Two processes' renderers and three writers; each body that was there was served as it is kept."""
    engines = [make_engine(database_url, name=f"replica-{number}") for number in range(2)]
    shelves = [Shelf(engine) for engine in engines]
    renderers = [_renderer(engine, shelf.wake) for engine, shelf in zip(engines, shelves, strict=True)]
    for shelf in shelves:
        for audience in trip.audiences:  # links are another matter
            shelf._expiries[audience] = {uuid4(): datetime.now(UTC) + timedelta(days=1)}
    work = [each.run() for each in renderers] + [each.run() for each in shelves]
    running = [asyncio.create_task(each) for each in work]
    served: dict[UUID, dict[str, bytes]] = {audience: {} for audience in trip.audiences}
    watching = asyncio.create_task(_watch(shelves, served))

    try:
        await asyncio.gather(*[_write(trip, renderers, number) for number in range(3)])
        await _until(lambda: _nothing_marked(trip.engine), None)
        newest = {audience: (await _bodies(trip, audience))[-1][2] for audience in trip.audiences}
        await _until(lambda: _are_served(newest, served), None)
    finally:
        for task in (*running, watching):
            task.cancel()
        await asyncio.gather(*running, watching, return_exceptions=True)
    for audience in trip.audiences:
        bodies = await _bodies(trip, audience)
        assert [version for version, *_ in bodies] == list(range(1, len(bodies) + 1))
        assert len({etag for _, _, etag, _ in bodies}) == len(bodies) >= 3
        seconds = [since.replace(microsecond=0) for _, since, _, _ in bodies]
        assert seconds == sorted(set(seconds))
        for (_, since, _, older), (_, _, _, newer) in pairwise(bodies):
            was, now = _modified(older), _modified(newer)
            assert all(was[uid] <= now[uid] for uid in was)
            assert since.replace(microsecond=0) >= max(was.values())  # never ahead of the clock
        assert all(f"Writer {number} edit 24".encode() in bodies[-1][3] for number in range(3))
        kept = {etag: body for _, _, etag, body in bodies}
        assert served[audience].items() <= kept.items()
        assert bodies[-1][2] in served[audience]
    for engine in engines:
        await engine.dispose()


async def test_bodies_become_visible_in_the_order_of_their_places_so_that_no_shelf_misses_one(trip: Trip) -> None:
    """A first renderer stands still between its bodies and its commit, and a second one would overtake it."""
    other = await _trip(trip.engine)
    audiences = [*trip.audiences, *other.audiences]
    shelf = Shelf(trip.engine)
    shelf._expiries = {audience: {uuid4(): datetime.now(UTC) + timedelta(days=1)} for audience in audiences}
    following = asyncio.create_task(shelf.run())
    for statement in _STAND_STILL:
        await _execute(trip.engine, statement.format(audience=trip.audiences[0]))
    try:
        async with trip.engine.begin() as holder:
            await holder.execute(text("SELECT pg_advisory_xact_lock(1000, 0)"))
            first = asyncio.create_task(_renderer(trip.engine)._trip(trip.messages.trip))
            await _until(lambda: _waiting(trip.engine, 1), None)
            second = asyncio.create_task(_renderer(trip.engine)._trip(other.messages.trip))
            # the second one has to wait; if it does not, it is seen below
            await _until(lambda: _waiting(trip.engine, 2, or_done=second), None)
            assert await shelf.look_again(60)
            seen = [shelf.body(audience) is not None for audience in audiences]
        await asyncio.gather(first, second)
        assert await shelf.look_again(60)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    assert [shelf.body(audience) is not None for audience in audiences] == [True] * 4
    assert seen == [False] * 4


_STAND_STILL = (
    """
    CREATE FUNCTION stand_still() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock(1000, 0); RETURN NULL; END'
    """,
    """
    CREATE TRIGGER stand_still AFTER INSERT ON bodies FOR EACH ROW WHEN (NEW.audience = '{audience}')
    EXECUTE FUNCTION stand_still()
    """,
)


async def _waiting(engine: AsyncEngine, count: int, or_done: asyncio.Task[None] | None = None) -> bool:
    """Whether so many wait for an advisory lock of this database."""
    waiting = await _rows(engine, _WAITING)
    return len(waiting) == count or (or_done is not None and or_done.done())


_WAITING = """
SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted
"""


async def _are_served(newest: Mapping[UUID, str], served: Mapping[UUID, Mapping[str, bytes]]) -> bool:
    return all(etag in served[audience] for audience, etag in newest.items())


async def _write(trip: Trip, renderers: Sequence[Renderer], number: int) -> None:
    """Edits of one meeting; the first writer waits twice for a body, so that there are three, however late they are."""
    randomly = random.Random(number)
    for edit in range(25):
        written = f"Writer {number} edit {edit}"
        await trip.messages.retitle(trip.meetings[number], written, "")
        for renderer in randomly.sample(renderers, k=randomly.randrange(3)):
            renderer.wake()
        await asyncio.sleep(randomly.random() * 0.2)
        if number == 0 and edit in (8, 16):
            await _until(partial(_holds, trip, trip.audiences[0], written.encode()), None)


async def _watch(shelves: Sequence[Shelf], served: dict[UUID, dict[str, bytes]]) -> None:
    while True:
        for shelf in shelves:
            for audience, seen in served.items():
                if (body := shelf.body(audience)) is not None:
                    seen[body.answers.etag.decode()] = shelf.plain(audience, body)
        await asyncio.sleep(0.005)


# Helpers


def _items(body: bytes) -> dict[bytes, tuple[bytes, datetime]]:
    """By UID: the block and the time zones that it names, without its stamps, and its LAST-MODIFIED."""
    zones = {zone.split(b"\r\n")[1]: zone for zone in re.findall(rb"BEGIN:VTIMEZONE.*?END:VTIMEZONE", body, re.DOTALL)}
    items = {}
    for block in BLOCK.findall(body):
        stamps = STAMPS.search(block)
        uid = UIDS.search(block)
        assert stamps
        assert uid
        assert stamps[1] == stamps[2]
        named = {b"TZID:" + name for name in re.findall(rb";TZID=([^:]+):", block)}
        bare = STAMPS.sub(b"", block) + b"".join(zones[name] for name in sorted(named))
        items[uid[1]] = (bare, datetime.strptime(stamps[2].decode(), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC))
    return items


def _modified(body: bytes) -> dict[bytes, datetime]:
    return {uid: modified for uid, (_, modified) in _items(body).items()}


def _stop_document(host: UUID) -> dict[str, Any]:
    return {
        "place": "Tokyo",
        "country": "Japan",
        "zone": "Asia/Tokyo",
        "arrives": "2021-05-06T08:00:00",
        "departs": "2021-05-06T22:00:00",
        "arrives_at": "2021-05-05T23:00:00Z",
        "departs_at": "2021-05-06T13:00:00Z",
        "host": str(host),
    }


def _hours_later(document: dict[str, Any]) -> dict[str, Any]:
    times = whole_meeting(uuid4(), "", "2031-05-06T19:30:00")
    assert times["start"] != document["start"]
    return {name: times[name] for name in ("start", "starts_at", "ends_at")}


async def _bodies(trip: Trip, audience: UUID) -> list[Body]:
    rows = await _rows(
        trip.engine,
        f"SELECT version, since, etag, compressed FROM bodies WHERE audience = '{audience}' ORDER BY version",
    )
    return [(version, since, etag, gzip.decompress(compressed)) for version, since, etag, compressed in rows]


async def _holds(trip: Trip, audience: UUID, wanted: bytes) -> bool:
    bodies = await _bodies(trip, audience)
    return bool(bodies) and wanted in bodies[-1][3]


async def _nothing_marked(engine: AsyncEngine) -> bool:
    return not await _rows(engine, "SELECT id FROM marks")


async def _until_rendered(trip: Trip, renderer: Renderer) -> None:
    await _until(lambda: _nothing_marked(trip.engine), renderer)


async def _until(reached: Callable[[], Awaitable[bool]], renderer: Renderer | None, patience: float = 60) -> None:
    until = time.monotonic() + patience
    while not await reached():
        assert time.monotonic() < until
        if renderer is not None:
            await renderer.round()
        await asyncio.sleep(0.02)


async def _now(engine: AsyncEngine) -> datetime:
    ((now,),) = await _rows(engine, "SELECT clock_timestamp()")
    assert isinstance(now, datetime)
    return now


async def _early_in_the_next_second(engine: AsyncEngine) -> None:
    """In this one something may have been rendered already."""
    second = (await _now(engine)).replace(microsecond=0)
    while (now := await _now(engine)).replace(microsecond=0) == second or now.microsecond > 150_000:
        await asyncio.sleep(0.02)


async def _rows(engine: AsyncEngine, query: str) -> Sequence[Any]:
    async with engine.connect() as connection:
        return (await connection.execute(text(query))).all()


async def _execute(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(statement.replace(":", r"\:")))

"""One command, one transaction: all of it or nothing, once for each key, and nothing overwritten unseen."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.schedule import published
from services.schedule.projections import MODELS, STORE, TRIP
from services.schedule.trip import AnnounceTrip, Command, Place, PlanTrip, decide
from shared.call import Call
from shared.command import Act, Answer, Changed, Desk, Transaction, answer_with, forget_old_answers
from shared.database import is_away, make_engine
from shared.errors import KeyReused, NotFound, NotYetKnown, StaleVersion, StoreAway
from shared.event_store import Append, ConcurrentAppend, EventStore
from tests.running_api import Api, running_schedule

MakeDatabase = Callable[[str], Awaitable[str]]
ONE = UUID("11111111-1111-4111-8111-111111111111")
TWO = UUID("11111111-1111-4111-8111-111111111112")
PLAN = PlanTrip(
    trip=ONE,
    title="Tokyo",
    principals=("Secretary of State",),
    home=Place(place="Washington", zone="America/New_York"),
    starts_on=date(2023, 11, 2),
    ends_on=date(2023, 11, 10),
)
BODY: dict[str, Any] = {
    "title": "Tokyo",
    "principals": ["Secretary of State"],
    "home": {"place": "Washington", "zone": "America/New_York"},
    "starts_on": "2023-11-02",
    "ends_on": "2023-11-10",
}
CALL = Call(
    actor="planner-1",
    scopes=frozenset({"planner"}),
    now=datetime(2023, 11, 1, 12, tzinfo=UTC),
    occurred_at=datetime(2023, 10, 31, 9, tzinfo=UTC),
    correlation_id="6f1e7c62-4a0b-4d3e-9c57-0d8e2f4b6a10",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    idempotency_key="key-1",
    request_digest=b"digest-1",
    if_match=None,
    if_none_match=None,
)


class Broken(Exception):
    """What a step of a command dies of."""


@pytest.fixture
async def engine(patient_locks: None, make_database: MakeDatabase) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(await make_database("services/schedule/migrations"), name="desk-test")
    yield engine
    assert engine.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


@pytest.fixture
async def schedule(patient_locks: None, make_database: MakeDatabase, tmp_path: Path) -> AsyncIterator[Api]:
    async with running_schedule(make_database, tmp_path / "tokens") as api:
        yield api


def desk_at(engine: AsyncEngine, **other: Any) -> Desk:
    given: dict[str, Any] = {"store": STORE, "project": MODELS.project, "committed": lambda: None}
    return Desk(engine=engine, openly=published.is_open, **(given | other))


def act_of(command: Command) -> Act:
    async def act(transaction: Transaction) -> Answer:
        planned = isinstance(command, PlanTrip)
        trip = await (transaction.load if planned else transaction.get)(TRIP, command.trip)
        return answer_with(TRIP, transaction.record(TRIP, command.trip, decide(command, trip)), 201 if planned else 200)

    return act


async def tables(engine: AsyncEngine) -> dict[str, int]:
    async with engine.connect() as connection:
        return {
            table: await connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0
            for table in ("events", "heads", "trips", "idempotency")
        }


WAITING = (
    "pg_locks WHERE NOT granted AND locktype = 'advisory' "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
NOTHING = {"events": 0, "heads": 0, "trips": 0, "idempotency": 0}
ALL = {"events": 1, "heads": 1, "trips": 1, "idempotency": 1}


# -- all or nothing -----------------------------------------------------------------------------------------------


async def locks(connection: AsyncConnection) -> list[tuple[int, int, int]]:
    """The advisory locks that this very transaction holds."""
    rows = await connection.execute(
        text(
            "SELECT classid::bigint, objid::bigint, objsubid FROM pg_locks "
            "WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted"
        )
    )
    return sorted(tuple(row) for row in rows)


async def test_command_takes_its_steps_in_order_and_the_log_s_lock_last(engine: AsyncEngine) -> None:
    steps: list[tuple[str, list[tuple[int, int, int]], int, int]] = []
    trips_lock, logs_lock = (0x90000000, 0x00005000, 1), (1, 0, 2)

    async def note(step: str, connection: AsyncConnection) -> None:
        rows = [await connection.scalar(text(f"SELECT count(*) FROM {table}")) for table in ("trips", "idempotency")]
        steps.append((step, await locks(connection), *[row or 0 for row in rows]))  # type: ignore[arg-type]

    class Noting(EventStore):
        async def append(
            self, connection: AsyncConnection, key: str, metadata: Mapping[str, Any], appends: Sequence[Append]
        ) -> list[int]:
            await note("before append", connection)
            positions = await super().append(connection, key, metadata, appends)
            await note("after append", connection)
            return positions

    async def project(connection: AsyncConnection, changed: Sequence[Changed[Any]]) -> None:
        await note("project", connection)
        await MODELS.project(connection, changed)

    async def act(transaction: Transaction) -> Answer:
        await note("act", transaction.connection)
        return await act_of(PLAN)(transaction)

    told: list[str] = []
    desk = desk_at(engine, store=Noting(STORE.codec), project=project, committed=lambda: told.append("committed"))
    answer = await desk.execute(CALL, ONE, act)
    assert steps == [
        ("act", [trips_lock], 0, 0),
        ("project", [trips_lock], 0, 0),
        ("before append", [trips_lock], 1, 1),
        ("after append", [logs_lock, trips_lock], 1, 1),
    ]
    assert (answer.status, answer.etag, told, await tables(engine)) == (201, '"1"', ["committed"], ALL)
    async with engine.connect() as connection:
        (event,) = await STORE.after((await connection.get_raw_connection()).driver_connection, 0, 10)
    assert (event.key, dict(event.metadata)) == (
        str(ONE),
        {
            "actor": "planner-1",
            "occurred_at": "2023-10-31T09:00:00.000000Z",
            "correlation_id": "6f1e7c62-4a0b-4d3e-9c57-0d8e2f4b6a10",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        },
    )


@pytest.mark.parametrize("step", ["act", "project", "append", "commit"])
async def test_failure_at_any_step_leaves_nothing(engine: AsyncEngine, step: str) -> None:
    class Breaking(EventStore):
        async def append(
            self, connection: AsyncConnection, key: str, metadata: Mapping[str, Any], appends: Sequence[Append]
        ) -> list[int]:
            positions = await super().append(connection, key, metadata, appends)
            if step == "append":
                raise Broken
            if step == "commit":
                async with engine.connect() as other:
                    pid = (await connection.get_raw_connection()).driver_connection.get_server_pid()  # type: ignore[union-attr]
                    await other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
            return positions

    async def project(connection: AsyncConnection, changed: Sequence[Changed[Any]]) -> None:
        await MODELS.project(connection, changed)
        if step == "project":
            raise Broken

    async def act(transaction: Transaction) -> Answer:
        answer = await act_of(PLAN)(transaction)
        if step == "act":
            raise Broken
        return answer

    told: list[str] = []
    desk = desk_at(engine, store=Breaking(STORE.codec), project=project, committed=lambda: told.append("committed"))
    with pytest.raises(Exception) as raised:  # noqa: PT011  Broken, or what the driver says of a lost connection
        await desk.execute(CALL, ONE, act)
    assert (isinstance(raised.value, Broken), is_away(raised.value)) == (step != "commit", step == "commit")
    assert (await tables(engine), told) == (NOTHING, [])
    await desk_at(engine).execute(CALL, ONE, act_of(PLAN))
    assert await tables(engine) == ALL


async def test_somebody_who_was_first_each_time_is_told_as_a_store_that_is_away(engine: AsyncEngine) -> None:
    attempts: list[int] = []

    class Outrun(EventStore):
        async def append(self, *_: Any) -> list[int]:
            attempts.append(1)
            raise ConcurrentAppend("trip/1")

    with pytest.raises(StoreAway):
        await desk_at(engine, store=Outrun(STORE.codec)).execute(CALL, ONE, act_of(PLAN))
    assert (len(attempts), await tables(engine)) == (3, NOTHING)


async def test_decision_on_a_stream_that_moved_meanwhile_is_made_again(engine: AsyncEngine) -> None:
    """A thing's id that two trips give at once: neither trip's lock is the other's."""
    desk = desk_at(engine)
    await desk.execute(replace(CALL, idempotency_key=None), ONE, act_of(PLAN))
    runs: list[int] = []

    async def act(transaction: Transaction) -> Answer:
        answer = await act_of(AnnounceTrip(trip=ONE))(transaction)
        if not runs:
            other = replace(CALL, idempotency_key=None, actor="planner-2")
            # under another trip's lock, so that it is not kept waiting
            await desk.execute(other, TWO, act_of(AnnounceTrip(trip=ONE)))
        runs.append(1)
        return answer

    with pytest.raises(Exception, match="The trip is announced"):
        await asyncio.wait_for(desk.execute(CALL, ONE, act), 60)
    assert len(runs) == 1
    assert await tables(engine) == {"events": 2, "heads": 2, "trips": 1, "idempotency": 0}


async def test_what_is_not_known_yet_is_asked_again_in_a_new_transaction(engine: AsyncEngine) -> None:
    seen: list[int] = []

    async def act(transaction: Transaction) -> Answer:
        seen.append(await transaction.connection.scalar(text("SELECT pg_current_xact_id()::text::bigint")) or 0)
        if len(seen) < 3:
            raise NotYetKnown("a moment")
        return await act_of(PLAN)(transaction)

    await desk_at(engine).execute(CALL, ONE, act)
    assert (len(set(seen)), await tables(engine)) == (3, ALL)


# -- keys ---------------------------------------------------------------------------------------------------------


async def test_key_gives_the_first_answer_again_and_only_to_the_same_request_of_the_same_caller(
    engine: AsyncEngine,
) -> None:
    desk = desk_at(engine)
    first = await desk.execute(CALL, ONE, act_of(PLAN))
    await desk.execute(replace(CALL, idempotency_key="key-2"), ONE, act_of(AnnounceTrip(trip=ONE)))
    again = await desk.execute(replace(CALL, now=datetime(2023, 11, 2, tzinfo=UTC)), ONE, act_of(PLAN))
    assert again == first
    with pytest.raises(KeyReused):
        await desk.execute(replace(CALL, request_digest=b"digest-2"), ONE, act_of(PLAN))
    other = replace(PLAN, trip=TWO)
    theirs = await desk.execute(replace(CALL, actor="planner-2"), TWO, act_of(other))
    assert theirs.body != first.body
    assert await tables(engine) == {"events": 3, "heads": 2, "trips": 2, "idempotency": 3}


async def test_refusal_is_not_remembered(engine: AsyncEngine) -> None:
    desk = desk_at(engine)
    announce = replace(CALL, idempotency_key="key-2")
    with pytest.raises(NotFound):
        await desk.execute(announce, ONE, act_of(AnnounceTrip(trip=ONE)))
    await desk.execute(CALL, ONE, act_of(PLAN))
    assert (await desk.execute(announce, ONE, act_of(AnnounceTrip(trip=ONE)))).etag == '"2"'


async def test_answer_without_an_event_is_remembered_too(engine: AsyncEngine) -> None:
    async def nothing(transaction: Transaction) -> Answer:
        return Answer(status=200, etag='"1"', body='{"secret": "s"}', remembered='{"secret": null}')

    desk = desk_at(engine)
    first, again = [await desk.execute(CALL, ONE, nothing) for _ in range(2)]
    assert (first.body, again.body) == ('{"secret": "s"}', '{"secret": null}')


async def test_answers_are_kept_for_thirty_days(engine: AsyncEngine) -> None:
    desk = desk_at(engine)
    for key, age in (("old", "30 days 1 minute"), ("young", "29 days 23 hours")):
        trip = uuid4()
        await desk.execute(replace(CALL, idempotency_key=key), trip, act_of(replace(PLAN, trip=trip)))
        async with engine.begin() as connection:
            await connection.execute(
                text(f"UPDATE idempotency SET answered_at = now() - interval '{age}' WHERE key = :key"), {"key": key}
            )
    await forget_old_answers(engine)
    async with engine.connect() as connection:
        assert (await connection.scalars(text("SELECT key FROM idempotency"))).all() == ["young"]


@pytest.mark.parametrize("given", [str(ONE), None])
async def test_key_sent_twice_at_once_has_one_effect(schedule: Api, given: str | None) -> None:
    """Also where the trip's id is made at the route, so that no trip's lock keeps the two apart."""
    body = BODY | ({"id": given} if given else {})
    answers = await asyncio.gather(*(schedule.post("/schedule/trips", body, Idempotency_Key="once") for _ in range(6)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.text for answer in answers}) == 1
    # each of them points to the one trip
    assert {answer.headers["location"] for answer in answers} == {f"/schedule/trips/{answers[0].json()['id']}"}
    assert await tables(schedule.engine) == ALL
    reused = await schedule.post("/schedule/trips", body | {"title": "Seoul"}, Idempotency_Key="once")
    assert (reused.status_code, reused.json()["slug"]) == (422, "key-reused")


# -- two edits at once --------------------------------------------------------------------------------------------


async def add_stop(api: Api) -> str:
    trip = (await api.done("/schedule/trips", BODY))["id"]
    body = {"place": "Tokyo", "country": "Japan", "zone": "Asia/Tokyo"}
    times = {"arrives": "2023-11-07T10:00", "departs": "2023-11-08T17:00"}
    return str((await api.done(f"/schedule/trips/{trip}/stops", body | times))["id"])


async def test_second_edit_of_one_state_is_refused_with_both(schedule: Api) -> None:
    stop = await add_stop(schedule)
    places = ["Kyoto", "Osaka"]
    answers = await asyncio.gather(
        *(schedule.post(f"/schedule/stops/{stop}/change", {"place": place}, If_Match='"1"') for place in places)
    )
    won, lost = sorted(answers, key=lambda answer: answer.status_code)
    assert (won.status_code, lost.status_code) == (200, 412)
    problem = lost.json()
    assert (problem["slug"], problem["given"], problem["current"], problem["thing"]) == (
        "stale-version",
        '"1"',
        '"2"',
        won.json(),
    )
    for tags in ('"2", "9"', "*", '"2"'):
        assert (await schedule.post(f"/schedule/stops/{stop}/change", {}, If_Match=tags)).status_code == 200
    for tags in ('W/"2"', '"1"', '"3"'):
        assert (await schedule.post(f"/schedule/stops/{stop}/change", {}, If_Match=tags)).status_code == 412


async def test_second_edit_without_a_tag_keeps_what_it_replaced(schedule: Api) -> None:
    stop = await add_stop(schedule)
    places = ["Kyoto", "Osaka", "Nara"]
    answers = await asyncio.gather(
        *(schedule.post(f"/schedule/stops/{stop}/change", {"place": place}) for place in places)
    )
    by_tag = {answer.headers["etag"]: answer.json()["place"] for answer in answers}
    assert sorted(by_tag) == ['"2"', '"3"', '"4"']
    changes = [event.data for event in await schedule.events() if event.type == "StopChanged.v1"]
    assert [(change.was["place"], change.changed["place"]) for change in changes] == [
        ("Tokyo", by_tag['"2"']),
        (by_tag['"2"'], by_tag['"3"']),
        (by_tag['"3"'], by_tag['"4"']),
    ]


async def test_tag_of_another_thing_in_the_transaction_is_not_asked(engine: AsyncEngine) -> None:
    """If-Match is about the thing that the address names; what a command loads besides is not held against it."""
    desk = desk_at(engine)
    await desk.execute(CALL, ONE, act_of(PLAN))

    async def act(transaction: Transaction) -> Answer:
        state = await transaction.load(TRIP, ONE)
        assert state is not None
        return answer_with(TRIP, state)

    tagged = replace(CALL, idempotency_key=None, if_match=('"7"',))
    assert (await desk.execute(tagged, ONE, act)).etag == '"1"'
    with pytest.raises(StaleVersion):
        await desk.execute(tagged, ONE, act_of(AnnounceTrip(trip=ONE)))


# -- locks --------------------------------------------------------------------------------------------------------


async def test_commands_on_one_trip_wait_for_each_other_and_those_on_another_do_not(engine: AsyncEngine) -> None:
    desk = desk_at(engine)
    inside, leave = asyncio.Event(), asyncio.Event()

    async def slow(transaction: Transaction) -> Answer:
        inside.set()
        await leave.wait()
        return await act_of(PLAN)(transaction)

    first = asyncio.create_task(desk.execute(CALL, ONE, slow))
    await inside.wait()
    announce = replace(CALL, idempotency_key="key-2")
    second = asyncio.create_task(desk.execute(announce, ONE, act_of(AnnounceTrip(trip=ONE))))
    other = replace(CALL, idempotency_key="key-3")
    assert (await desk.execute(other, TWO, act_of(replace(PLAN, trip=TWO)))).status == 201
    await blocked(engine)
    assert not second.done()
    leave.set()
    assert [(await task).etag for task in (first, second)] == ['"1"', '"2"']


# -- the database away --------------------------------------------------------------------------------------------


def is_store_away(response: httpx.Response) -> bool:
    slug = response.json()["slug"]
    return (response.status_code, slug, response.headers["retry-after"]) == (503, "store-away", "5")


async def test_connection_that_is_lost_in_the_middle_of_a_command_leaves_nothing(schedule: Api) -> None:
    stop = await add_stop(schedule)
    before = (await tables(schedule.engine), (await schedule.get(f"/schedule/stops/{stop}")).json())
    async with schedule.engine.begin() as holder:
        # the command gets as far as the log's lock: its read models and its key are written
        await holder.execute(text("SELECT pg_advisory_xact_lock(1, 0)"))
        path, body = f"/schedule/stops/{stop}/change", {"place": "Kyoto"}
        waiting = asyncio.create_task(schedule.post(path, body, Idempotency_Key="lost"))
        await blocked(schedule.engine)
        await holder.execute(text(f"SELECT pg_terminate_backend(pid) FROM {WAITING}"))
        assert is_store_away(await waiting)
    assert (await tables(schedule.engine), (await schedule.get(f"/schedule/stops/{stop}")).json()) == before
    again = await schedule.done(path, body, Idempotency_Key="lost")
    assert again["place"] == "Kyoto"


async def test_database_that_is_gone_is_said_to_be_away_by_commands_and_queries(schedule: Api) -> None:
    stop = await add_stop(schedule)
    gone = make_engine("postgresql+asyncpg://somebody:secret@127.0.0.1:9/nothing", name="gone")
    schedule.app.state.desk = replace(schedule.desk, engine=gone)
    assert is_store_away(await schedule.post("/schedule/trips", BODY))
    assert is_store_away(await schedule.post(f"/schedule/stops/{stop}/change", {"place": "Kyoto"}))
    assert is_store_away(await schedule.get("/schedule/trips"))
    assert is_store_away(await schedule.get(f"/schedule/stops/{stop}"))


async def test_restart_of_the_database_costs_no_command(schedule: Api) -> None:
    """Nothing was under way: the dead connections in the pool are thrown away unseen."""
    stop = await add_stop(schedule)
    for number in range(3):
        async with schedule.engine.begin() as connection:
            await connection.execute(
                text(
                    # our own alone: an autovacuum worker may be here, and who is no superuser may not end it
                    "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()"
                )
            )
        for _ in range(10):  # what the server said is there by now, and read in a few turns of the loop
            await asyncio.sleep(0.01)
        answers = await asyncio.gather(
            *(schedule.post(f"/schedule/stops/{stop}/change", {"place": f"P{number}{n}"}) for n in range(4))
        )
        assert [answer.status_code for answer in answers] == [200] * 4


async def blocked(engine: AsyncEngine) -> None:
    """Until somebody waits for a lock."""
    async with asyncio.timeout(120):
        while True:
            async with engine.connect() as connection:
                if await connection.scalar(text(f"SELECT count(*) FROM {WAITING}")):
                    return
            await asyncio.sleep(0.01)

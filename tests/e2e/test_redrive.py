"""`python -m services.notifications redrive`, as operators say it: a process of its own, on real services' databases.

What the program cannot take is made by a trigger, which is taken away as a release would mend it; another trigger
writes down, in its order, each thing that was really applied.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from tests.trio_fixture import ROOT, SERVICES, Trio, until

REFUSING = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'a fault of the program'; END $$;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON things FOR EACH ROW
    WHEN (new.document ->> 'title' LIKE 'Refused%') EXECUTE FUNCTION refuse();
"""
SLOW = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.05); RETURN new; END $$;
CREATE TRIGGER wait BEFORE INSERT OR UPDATE ON things FOR EACH ROW EXECUTE FUNCTION wait();
"""
MIDDLE = 14  # the third of the trips has begun
HELD = f"""
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$ BEGIN
    IF (SELECT count(*) FROM applied) >= {MIDDLE} THEN PERFORM pg_advisory_xact_lock_shared(1400, 14); END IF;
    RETURN new; END $$;
CREATE TRIGGER hold BEFORE INSERT OR UPDATE ON things FOR EACH ROW EXECUTE FUNCTION hold();
SELECT pg_advisory_lock(1400, 14);
"""
IS_HELD = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = 1400 AND NOT granted)"
OTHERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
WRITING_DOWN = """
CREATE TABLE applied (place bigint GENERATED ALWAYS AS IDENTITY, trip uuid, stream text, document jsonb);
CREATE FUNCTION write_down() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO applied (trip, stream, document) VALUES (new.trip, new.kind || '/' || new.id, new.document);
    RETURN NULL; END $$;
CREATE TRIGGER write_down AFTER INSERT OR UPDATE ON things FOR EACH ROW EXECUTE FUNCTION write_down();
"""
TRIPS, STOPS = 6, 5
EVERYTHING = (
    *("parked_messages", "consumer_marks", "consumer_offsets", "consumer_epochs", "dropped_messages"),
    *("things", "marks", "events", "relay_cursor"),
)
SCHEDULE = "attache.schedule.cleared"


EACH = """
import contextlib, io, json, sys
from services.notifications.__main__ import PROGRAM
from shared.cli import run
done = []
for told in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = run(PROGRAM, ["redrive", *told])
        except SystemExit as error:
            code = error.code
    done.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""


@dataclass(kw_only=True)
class Scene:
    """Services of which notifications has parked every trip at its first message, and then stopped."""

    trio: Trio
    database: asyncpg.Connection
    trips: Sequence[str]

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "services.notifications", "redrive", *arguments],
            cwd=ROOT,
            env={**os.environ, **self.trio.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    async def redrive(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        process = self.start(*arguments)
        out, err = await asyncio.to_thread(process.communicate, timeout=120)
        return process.returncode, out, err

    async def redrive_each(self, *told: Sequence[str]) -> list[tuple[int, str, str]]:
        """The same of several, one after the other in one process: what takes longest is to start it."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            EACH,
            cwd=ROOT,
            env={**os.environ, **self.trio.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            out, _ = await asyncio.wait_for(process.communicate(json.dumps(told).encode()), 240)
        finally:
            if process.returncode is None:
                process.kill()
        return [(code, said, err) for code, said, err in json.loads(out)]

    async def redriven(self) -> tuple[int, str, str]:
        """One that is said again where the database was away for it; so is a key that another has held for 5 s."""
        for _ in range(5):
            result = await self.redrive()
            if result[0] != 2:
                break
        return result

    async def killed(self, *arguments: str) -> None:
        """One that is killed where the database holds it up; one that waits for too long there ends by itself."""
        code = None
        while code != -signal.SIGKILL:
            process = self.start(*arguments)

            async def held(process: "subprocess.Popen[str]" = process) -> bool:
                return process.poll() is not None or await self.database.fetchval(IS_HELD)

            try:
                await until(held, 120, self.trio)
            finally:
                process.kill()
                _, err = process.communicate()
            code = process.returncode
            assert code in (-signal.SIGKILL, 2), err

    async def applied(self) -> dict[str, list[str]]:
        """By trip, the streams whose things were written, in the order in which they were."""
        found = defaultdict(list)
        for row in await self.database.fetch("SELECT trip::text, stream FROM applied ORDER BY place"):
            found[row["trip"]].append(row["stream"])
        return dict(found)

    async def told(self) -> dict[str, list[str]]:
        """By trip, the streams of the schedule's events, in the order of their numbers."""
        connection = await asyncpg.connect(self.trio.databases["schedule"].replace("+asyncpg", ""))
        found = defaultdict(list)
        for row in await connection.fetch("SELECT key, stream FROM events ORDER BY cleared_sequence"):
            found[row["key"]].append(row["stream"])
        await connection.close()
        return dict(found)

    async def everything(self) -> dict[str, list[str]]:
        query = "SELECT t::text || ' ' || t.xmin FROM {} t ORDER BY 1"
        return {table: [row[0] for row in await self.database.fetch(query.format(table))] for table in EVERYTHING}


@pytest.fixture
async def scene(make_trio: Callable[..., Awaitable[Trio]]) -> AsyncIterator[Scene]:
    trio: Trio = await make_trio(None)
    database = await asyncpg.connect(trio.databases["notifications"].replace("+asyncpg", ""))
    await database.execute(REFUSING)
    trio.start(*SERVICES)
    async with trio.client() as client:
        await until(lambda: _alive(client), 120, trio)
        trips = [await _trip(client, number) for number in range(TRIPS)]
    scene = Scene(trio=trio, database=database, trips=trips)
    query = "SELECT count(*) FROM parked_messages WHERE slug = 'key-waits' OR announced_at IS NOT NULL"
    await until(lambda: _is(database, query, TRIPS * (STOPS + 1)), 120, trio)
    assert trio.stop(signal.SIGTERM, "notifications") == {"notifications": 0}
    await until(lambda: _is(database, f"{query} AND slug <> 'gap'", TRIPS * (STOPS + 1)), 120, trio)
    await database.execute("DROP TRIGGER refuse ON things")
    await database.execute(WRITING_DOWN)
    yield scene
    await database.close()


async def test_a_redrive_that_is_killed_in_the_middle_and_said_again_does_all_of_it_once_and_in_order(
    scene: Scene,
) -> None:
    await scene.database.execute(HELD)
    await scene.killed("--type", "TripPlanned")
    await scene.database.execute("SELECT pg_advisory_unlock(1400, 14)")
    await until(lambda: _is(scene.database, OTHERS, 0), 120, scene.trio)  # what was held has ended
    before = await scene.applied()
    assert 0 < len(before) < TRIPS
    code, out, _ = await scene.redrive("--type", "TripPlanned")
    assert (code, out.splitlines()[-1].endswith(" keys go on, 0 are still parked")) == (0, True)
    assert await scene.applied() == await scene.told()
    assert await scene.database.fetchval("SELECT count(*) FROM parked_messages") == 0
    marks = await scene.database.fetch("SELECT sequence, waits_for FROM consumer_marks WHERE topic = $1", SCHEDULE)
    assert [tuple(row) for row in marks] == [(STOPS + 1, None)] * TRIPS


async def test_two_redrives_beside_the_service_that_runs_apply_each_message_once(scene: Scene) -> None:
    await scene.database.execute(SLOW)
    scene.trio.start("notifications")
    results = await asyncio.gather(scene.redriven(), scene.redriven(), _more(scene))
    assert [result[0] for result in results[:2]] == [0, 0], results
    expected = await scene.told()
    assert {len(streams) for streams in expected.values()} == {STOPS + 2}
    await until(lambda: _are(scene.applied, expected), 120, scene.trio)
    assert await scene.database.fetchval("SELECT count(*) FROM parked_messages") == 0


async def test_a_dry_run_lists_what_is_parked_and_changes_nothing(scene: Scene) -> None:
    before = await scene.everything()
    code, out, _ = await scene.redrive("--dry-run")
    assert await scene.everything() == before
    lines = out.splitlines()
    assert code == 1
    assert lines[-1] == f"notifications: {TRIPS} keys are parked, nothing was changed"
    assert len(lines) == TRIPS + 1
    rows = await scene.database.fetch(
        "SELECT key, message_id, attempts, to_char(parked_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') "
        "FROM parked_messages WHERE sequence = 1"
    )
    assert sorted(lines[:-1]) == sorted(
        f"notifications: {SCHEDULE} key '{key}': {STOPS + 1} messages since {since}, the first is TripPlanned {name}: "
        f"not-applied, {attempts} attempts"
        for key, name, attempts, since in rows
    )
    code, out, err = await scene.redrive("--dry-run", "--json", "--key", scene.trips[2])
    [one] = json.loads(out)["keys"]
    assert (code, one["key"], one["messages"], one["type"]) == (1, scene.trips[2], STOPS + 1, "TripPlanned")
    assert err == "notifications: 1 keys are parked, nothing was changed\n"
    assert await scene.everything() == before


async def test_exit_codes_tell_what_is_still_parked_and_what_could_not_be_done(scene: Scene) -> None:
    await scene.database.execute(REFUSING.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    attempts = "SELECT attempts FROM parked_messages WHERE sequence = 1 AND key = $1"
    tried = await scene.database.fetchval(attempts, scene.trips[0])
    code, out, _ = await scene.redrive("--key", scene.trips[0])
    assert (code, out.splitlines()[-1]) == (1, "notifications: 0 keys go on, 1 are still parked")
    assert await scene.database.fetchval(attempts, scene.trips[0]) == tried + 1
    name = await scene.database.fetchval(
        "SELECT message_id FROM parked_messages WHERE sequence = 1 AND key = $1", scene.trips[0]
    )
    drop = ("--skip", name, "--reason", "planned by mistake", "--by", "Ada")
    code, out, _ = await scene.redrive(*drop, "--dry-run")
    assert (code, await scene.database.fetchval(attempts, scene.trips[0])) == (1, tried + 1)
    code, out, _ = await scene.redrive(*drop)
    assert code == 0
    assert out == f"notifications: dropped {name} (TripPlanned, {SCHEDULE} key '{scene.trips[0]}') for good\n"
    applied = await scene.applied()
    assert applied == {scene.trips[0]: (await scene.told())[scene.trips[0]][1:]}
    await scene.database.execute("DROP TRIGGER refuse ON things")
    code, out, _ = await scene.redrive()
    assert (code, out.splitlines()[-1]) == (0, f"notifications: {TRIPS - 1} keys go on, 0 are still parked")
    assert await scene.redrive() == (0, "notifications: 0 keys go on, 0 are still parked\n", "")


WRONG = {
    ("--since", "yesterday"): "argument --since: 'yesterday' is no instant",
    ("--until", "2026-11-25T04:00:00"): "argument --until: '2026-11-25T04:00:00' has no offset",
    ("--since", "2026-11-25T04:00:00Z", "--until", "2026-11-25T05:00:00+01:00"): "--since has to be before --until",
    ("--type", "MeetingSheduled"): "no messages of the type 'MeetingSheduled': did you mean MeetingScheduled?",
    ("--topic", "attache.schedule"): "does not hear the topic 'attache.schedule': it is one of attache.participants",
    ("--skip", "x"): "say why with --reason and who with --by",
    ("--skip", "x", "--by", "Ada", "--reason", "  "): "argument --reason: one line is needed",
    ("--skip", "x", "--by", "Ada", "--reason", "why", "--key", "k"): "beside it only --topic chooses",
    ("--reason", "why"): "--reason and --by go with --skip",
    ("--skip", "x", "--by", "Ada", "--reason", "why"): "no parked message is called 'x'",
    ("--everything",): "unrecognized arguments: --everything",
}


async def test_what_is_wrong_is_said_in_one_line_with_exit_code_2(make_trio: Callable[..., Awaitable[Trio]]) -> None:
    trio: Trio = await make_trio(None)
    database = await asyncpg.connect(trio.databases["notifications"].replace("+asyncpg", ""))
    scene = Scene(trio=trio, database=database, trips=[])
    said = await scene.redrive_each(*WRONG)
    for (arguments, line), (code, out, err) in zip(WRONG.items(), said, strict=True):
        assert (code, out, err.count("\n"), line in err) == (2, "", 1, True), (arguments, err)
    away = {**trio.environment, "NOTIFICATIONS_DATABASE_URL": "postgresql+asyncpg://nobody:x@127.0.0.1:1/nothing"}
    trio.environment = away
    code, out, err = await scene.redrive()
    assert (code, out) == (2, "")
    assert err.startswith("notifications: the database does not answer: ")
    assert err.count("\n") == 1
    await database.close()


async def _more(scene: Scene) -> tuple[int, str, str]:
    """One fact more of each trip, while they are being redriven."""
    async with scene.trio.client() as client:
        for trip in scene.trips:
            await _do(client, f"/schedule/trips/{trip}/announce", {})
    return 0, "", ""


async def _trip(client: httpx.AsyncClient, number: int) -> str:
    body = {
        "title": f"Refused {number}",
        "principals": ["Minister"],
        "home": {"place": "Lisbon", "zone": "Europe/Lisbon"},
        "starts_on": "2023-03-01",
        "ends_on": "2023-03-20",
    }
    trip = str((await _do(client, "/schedule/trips", body))["id"])
    for day in range(STOPS):
        stop = {
            "place": f"Oslo {day}",
            "country": "Norway",
            "zone": "Europe/Oslo",
            "arrives": f"2023-03-{2 * day + 1:02}T12:00:00",
            "departs": f"2023-03-{2 * day + 2:02}T09:00:00",
        }
        await _do(client, f"/schedule/trips/{trip}/stops", stop)
    return trip


async def _do(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Idempotency-Key": str(uuid4())}
    while (answer := await client.post(path, json=body, headers=headers)).status_code == 503:
        await asyncio.sleep(0.1)  # a database that was slow to answer counts as away
    assert answer.status_code in (200, 201), answer.text
    found: dict[str, Any] = answer.json()
    return found


async def _alive(client: httpx.AsyncClient) -> bool:
    answers = []
    for name in SERVICES:
        with contextlib.suppress(httpx.TransportError):
            answers.append((await client.get(f"/{name}/healthz")).status_code)
    return answers == [200] * len(SERVICES)


async def _is(database: asyncpg.Connection, query: str, value: object) -> bool:
    return bool(await database.fetchval(query) == value)


async def _are(ask: Callable[[], Awaitable[object]], value: object) -> bool:
    return await ask() == value

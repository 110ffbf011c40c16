"""One service's database: version, schema, clock, size, what waits in it. Read only, on connections of its own."""

import contextlib
import json
import time
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import asyncpg

from services.doctor.findings import Finding, fail, graded, ok, warn
from shared.database import is_away, why_unusable, wrong_server
from shared.migrations import ahead, behind, head, is_ahead
from shared.relay import RELAY_LOCK
from shared.time_zones import tz_release

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""How long a database may take to let the doctor in, and to answer."""
SKEW_WARNS: Final = 2.0
SKEW_FAILS: Final = 60.0
SET_CLOCK: Final = "set the clocks by one time service (NTP)"
RELAY_WARNS = 10.0
RELAY_FAILS = 60.0
LAG_WARNS = 30.0
LAG_FAILS = 300.0
PARKED_SHOWN: Final = 20
INSTANTS: Final = 20_000

_NEWEST = "SELECT extract(epoch FROM recorded_at)::float FROM events ORDER BY position DESC LIMIT 1"
_RELAY = """
SELECT position, (SELECT count(*) FROM events e WHERE e.position > c.position) AS unpublished,
    coalesce((SELECT extract(epoch FROM clock_timestamp() - recorded_at)::float FROM events e
        WHERE e.position > c.position ORDER BY e.position LIMIT 1), 0) AS age
FROM relay_cursor c
"""
_LEADER = """
SELECT coalesce(host(a.client_addr), 'this machine') AS address, a.backend_start AS since
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.classid = $1 AND l.objid = $2 AND l.objsubid = 2 AND l.granted
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
# never a body, headers or an error's text: those hold what the trip is about
_PARKED = """
SELECT topic, key, min(slug) FILTER (WHERE slug <> 'key-waits') AS slug, min(parked_at) AS since,
    max(attempts) AS attempts, count(*) AS messages
FROM parked_messages GROUP BY topic, key ORDER BY since LIMIT $1
"""
_MARKS = """
SELECT DISTINCT ON (key) key, CASE WHEN waits_for IS NULL OR waits_for = 'gap' THEN sequence ELSE $2::bigint END
FROM consumer_marks WHERE topic = $1 ORDER BY key, sequence DESC
"""
_BEHIND = """
WITH marks AS (SELECT * FROM unnest($1::text[], $2::bigint[]) AS m(key, sequence)),
behind AS (
    SELECT h.key, coalesce(m.sequence, 0) AS mark, h.cleared_sequence - coalesce(m.sequence, 0) AS messages
    FROM heads h LEFT JOIN marks m USING (key) WHERE h.cleared_sequence > coalesce(m.sequence, 0)
)
SELECT coalesce(sum(messages), 0)::bigint AS messages, coalesce((
    SELECT extract(epoch FROM clock_timestamp() - min(e.recorded_at))::float
    FROM events e JOIN behind b ON e.key = b.key AND e.cleared_sequence = b.mark + 1), 0) AS seconds
FROM behind
"""
_TIMED = """
SELECT jsonb_path_query(data, '$.** ? (exists(@.tz))')::text AS timed FROM (
    SELECT DISTINCT ON (stream) data FROM events WHERE data @? '$.**.tz' ORDER BY stream, version DESC
) AS newest LIMIT $1
"""


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """A connection that cannot write."""
    connection = await asyncpg.connect(
        url.replace("+asyncpg", "", 1),
        timeout=CONNECT_SECONDS,
        command_timeout=ANSWER_SECONDS,
        server_settings={"application_name": "attache-doctor", "default_transaction_read_only": "on"},
    )
    try:
        yield connection
    finally:
        connection.terminate()


async def server(name: str, url: str) -> list[Finding]:
    """The server's version and clock, the schema, the size."""
    try:
        async with connected(url) as database:
            number = int(await database.fetchval("SHOW server_version_num"))
            size = await database.fetchval("SELECT pg_database_size(current_database())")
            skew = await _skew(database)
            schema = await _schema(database, name)
    except Exception as error:
        if not is_away(error) and not isinstance(error, asyncpg.PostgresError):
            raise
        said, _, do = (why_unusable(error, url) or str(error)).rpartition(": ")
        return [fail(f"database {name}", said or do, do if said else "see its log")]
    return [version(name, number, size), clock(f"clock database {name}", skew), schema]


def version(name: str, number: int, size: int) -> Finding:
    """By the server's `server_version_num`, and the database's size in bytes."""
    if (wrong := wrong_server(number)) is not None:
        return fail(f"database {name}", *wrong.split(": "))
    return ok(f"database {name}", f"PostgreSQL {number // 10_000}.{number % 10_000}, {size / 2**20:.0f} MB")


def clock(check: str, skew: float) -> Finding:
    """`skew`: by how many seconds the other clock is before (below 0) or after ours."""
    found = f"{abs(skew):.1f} s {'after' if skew > 0 else 'before'} this machine's"
    return graded(check, found, abs(skew), warns=SKEW_WARNS, fails=SKEW_FAILS, do=SET_CLOCK)


def beyond_doubt(theirs: float, before: float, after: float) -> float:
    """By how far another clock, read at an unknown moment between two of ours, lies outside of them."""
    return theirs - after if theirs > after else min(0.0, theirs - before)


async def _skew(database: Any) -> float:
    before = time.time()
    theirs: datetime = await database.fetchval("SELECT clock_timestamp()")
    return beyond_doubt(theirs.timestamp(), before, time.time())


async def _schema(database: Any, name: str) -> Finding:
    scripts = f"services/{name}/migrations"
    table = await database.fetchval("SELECT to_regclass('alembic_version')")
    current = await database.fetchval("SELECT version_num FROM alembic_version") if table else None
    wanted = head(scripts)
    if current == wanted:
        return ok(f"schema {name}", str(current))
    text = ahead(current, wanted) if is_ahead(scripts, current) else behind(current, wanted, name)
    return fail(f"schema {name}", *text.split(": "))


async def newest_event(name: str, url: str) -> list[Finding]:
    """Whether this machine's clock went back behind what was recorded."""
    async with connected(url) as database:
        newest = await database.fetchval(_NEWEST)
    back = newest - time.time() if newest is not None else 0.0
    found = f"{back:.0f} s before the newest recorded event" if back > SKEW_WARNS else "after every recorded event"
    return [graded(f"clock events {name}", found, back, warns=SKEW_WARNS, fails=SKEW_FAILS, do=SET_CLOCK)]


async def relay(name: str, url: str) -> list[Finding]:
    """What waits to be published, and who does it."""
    async with connected(url) as database:
        row = await database.fetchrow(_RELAY)
        leader = await database.fetchrow(_LEADER, *RELAY_LOCK)
    waits = f"{row['unpublished']} events unpublished, the oldest for {row['age']:.0f} s"
    do = "see the service's log (relay.stopped) and the bus"
    found = graded(f"relay {name}", waits, row["age"], warns=RELAY_WARNS, fails=RELAY_FAILS, do=do)
    if leader is None:
        return [found, fail(f"relay {name} leader", "nobody leads", "start the service, or see why it cannot lead")]
    return [found, ok(f"relay {name} leader", f"at {leader['address']} since {leader['since']:%Y-%m-%dT%H:%M:%SZ}")]


async def parked(name: str, url: str) -> list[Finding]:
    """The keys that wait for a message that could not be taken."""
    async with connected(url) as database:
        rows = await database.fetch(_PARKED, PARKED_SHOWN)
    do = (
        "mend what refuses it (the log says), or the producer: it is tried again every 30 s, and at once by "
        f"python -m services.{name} redrive"
    )
    return [
        warn(
            f"parked {name}",
            f"{row['topic']} key {row['key'][:80]!r}: {row['slug'] or 'key-waits'} since "
            f"{row['since']:%Y-%m-%dT%H:%M:%SZ}, {row['attempts']} attempts, {row['messages']} messages",
            do,
        )
        for row in rows
    ] or [ok(f"parked {name}", "no key waits")]


async def lag(name: str, url: str, producer: str, producer_url: str, topic: str) -> list[Finding]:
    """How far a consumer is behind one producer's log, parked keys left out."""
    async with connected(url) as database:
        marks = await database.fetch(_MARKS, topic, 2**62)
    async with connected(producer_url) as database:
        row = await database.fetchrow(_BEHIND, [mark[0] for mark in marks], [mark[1] for mark in marks])
    found = f"{row['messages']} messages behind {producer}, {row['seconds']:.0f} s"
    do = "see the service's log (consumer.stopped) and its CPU"
    return [graded(f"lag {name}", found, row["seconds"], warns=LAG_WARNS, fails=LAG_FAILS, do=do)]


async def time_zones(url: str) -> list[Finding]:
    """Whether the instants that stand in the log are those that this program's time zones give."""
    async with connected(url) as database:
        timed = [json.loads(row["timed"]) for row in await database.fetch(_TIMED, INSTANTS)]
    instants = [one for each in timed for one in _derived(each)]
    moved = sum(not _agrees(*one) for one in instants)
    releases = ", ".join(sorted({str(one["tz"]) for one in timed})) or "none yet"
    found = f"{len(instants)} instants derived with {releases}; this program has {tz_release()}"
    if max((str(one["tz"]) for one in timed), default="") > tz_release():
        return [fail("time zones", found, "run the newer program: this one's time zones are older than its data")]
    if moved:
        return [warn("time zones", f"{found}; {moved} differ", "run python -m services.schedule retime")]
    return [ok("time zones", found)]


def _derived(thing: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The wall times of a stop, movement or meeting with their zones and the instants that were derived."""
    origin, destination = thing.get("origin") or thing, thing.get("destination") or thing
    pairs = (("arrives", "arrives_at", destination), ("departs", "departs_at", origin), ("start", "starts_at", thing))
    return [
        (thing[wall], where["zone"], thing[instant])
        for wall, instant, where in pairs
        if thing.get(wall) and thing.get(instant) and where.get("zone")
    ]


def _agrees(wall: str, zone: str, instant: str) -> bool:
    given = {datetime.fromisoformat(wall).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp() for fold in (0, 1)}
    return datetime.fromisoformat(instant).timestamp() in given

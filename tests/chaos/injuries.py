"""The finer tools of the faults: done from outside, by SQL, by a record on a topic, or by a slower `fsync`."""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from uuid import uuid4

import asyncpg

from shared.messages import topic_of
from tests.chaos.scene import CannotBeHad, Scene
from tests.chaos.surroundings import SERVICES

PLACE = topic_of("schedule", openly=False)
_CUT = """
SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid = 2 AND objid = 0 AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid()
"""
_QUEUES = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND locktype = 'advisory' AND NOT granted)"
_SLOW = """
CREATE OR REPLACE FUNCTION chaos_slow() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN PERFORM pg_sleep(0.03); RETURN NEW; END'
"""
_SLOW_COMMIT = """
CREATE OR REPLACE FUNCTION chaos_slow_commit() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN PERFORM pg_sleep(random() * 0.1); RETURN NULL; END'
"""
_SLOW_DISK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
int fsync(int fd) { usleep(100000); return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd); }
int fdatasync(int fd) { usleep(100000); return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd); }
"""


def cut_relay(scene: Scene) -> None:
    """The database ends the connection that holds the relay's lock, as a network that is cut does."""
    scene.rows("schedule", _CUT)


def slow_handlers(scene: Scene) -> None:
    """Each message that notifications takes in costs 30 ms more."""
    scene.rows("notifications", _SLOW)
    scene.rows(
        "notifications",
        "CREATE OR REPLACE TRIGGER chaos_slow BEFORE INSERT OR UPDATE ON things "
        "FOR EACH ROW EXECUTE FUNCTION chaos_slow()",
    )


def quick_handlers(scene: Scene) -> None:
    """As it was."""
    scene.rows("notifications", "DROP TRIGGER IF EXISTS chaos_slow ON things")


def slow_commits(scene: Scene) -> None:
    """Each commit of an event takes up to 100 ms more, some longer than others: who began first may end last."""
    for service in SERVICES:
        scene.rows(service, _SLOW_COMMIT)
        scene.rows(
            service,
            "CREATE CONSTRAINT TRIGGER chaos_slow AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION chaos_slow_commit()",
        )


def quick_commits(scene: Scene) -> None:
    """As it was."""
    for service in SERVICES:
        scene.rows(service, "DROP TRIGGER IF EXISTS chaos_slow ON events")


def withhold(scene: Scene, *, then_another: bool) -> None:
    """The broker never gets one event: the relay is kept from leading, and its cursor moved over it."""
    meeting = scene.meeting()

    async def do() -> None:
        ours, other = [await asyncpg.connect(scene.surroundings.databases["schedule"]) for _ in range(2)]
        try:
            leading = asyncio.ensure_future(ours.execute("SELECT pg_advisory_lock(2, 0)"))
            while not (leading.done() or await other.fetchval(_QUEUES, ours.get_server_pid())):
                await asyncio.sleep(0.02)
            if not leading.done():
                await other.execute(_CUT)
            await leading
            before = await ours.fetchval("SELECT position FROM relay_cursor")
            await scene.load.revise(meeting)
            rows = await ours.fetch("SELECT position, id FROM events WHERE position > $1 ORDER BY position", before)
            await ours.execute("UPDATE relay_cursor SET position = $1", rows[-1]["position"])
            scene.withheld |= {str(row["id"]) for row in rows}
            if then_another:
                await scene.load.revise(meeting)
        finally:
            await ours.close()
            await other.close()

    asyncio.run(do())


def poison(scene: Scene) -> None:
    """Garbage, a message of an unknown key that is refused, and one that takes the next number of a key in use."""
    bootstrap, stranger = scene.surroundings.kafka.address, str(uuid4())
    scene.poison.keys.add(stranger)

    async def put() -> None:
        await scene.poison.garble(bootstrap, PLACE)
        await scene.poison.refused(bootstrap, PLACE, stranger, 1)
        await scene.poison.refused(bootstrap, PLACE, stranger, 2)

    asyncio.run(put())
    scene.lasts(1, 5)
    if scene.long:  # it may take as long as from one comparison with the producers' heads to the next
        _poison_a_key_in_use(scene, bootstrap)


def _poison_a_key_in_use(scene: Scene, bootstrap: str) -> None:
    scene.at_rest()
    meeting = scene.meeting()
    [(key,)] = scene.rows("schedule", "SELECT key FROM events WHERE stream = $1 LIMIT 1", f"meeting/{meeting}")
    [(head,)] = scene.rows("schedule", "SELECT cleared_sequence FROM heads WHERE key = $1", key)
    asyncio.run(scene.poison.refused(bootstrap, PLACE, key, head + 1))
    scene.go_on(1)
    asyncio.run(scene.load.revise(meeting))
    asyncio.run(scene.load.revise(meeting))


def slow_disk(scene: Scene) -> None:
    """Every `fsync` of PostgreSQL takes 100 ms longer, by a library that is loaded before the C library."""
    with _slow_fsync(scene) as library:
        scene.surroundings.postgres.stop()
        os.environ["LD_PRELOAD"] = library
        try:
            scene.surroundings.postgres.start()
        finally:
            del os.environ["LD_PRELOAD"]
        scene.lasts(8, 30)
        scene.surroundings.postgres.stop()
        scene.surroundings.postgres.start()


@contextlib.contextmanager
def _slow_fsync(scene: Scene) -> Iterator[str]:
    compiler = shutil.which("cc")
    if compiler is None:
        raise CannotBeHad("no C compiler (cc), which makes the slow fsync")
    library = scene.surroundings.folder / "slow_fsync.so"
    command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library), "-ldl"]
    done = subprocess.run(command, input=_SLOW_DISK, text=True, capture_output=True, check=False)
    if done.returncode:
        raise CannotBeHad(f"the slow fsync could not be compiled: {done.stderr.splitlines()[-1:]}")
    library.chmod(0o755)
    yield str(library)


_STREAMS = """
SELECT stream FROM events WHERE stream LIKE 'meeting/%' GROUP BY stream HAVING count(*) > 2 ORDER BY stream LIMIT 3
"""
_PUT_BACK = """
INSERT INTO events OVERRIDING SYSTEM VALUE SELECT * FROM chaos_events
ON CONFLICT (id) DO UPDATE SET data = excluded.data
"""


def damage(scene: Scene) -> None:
    """A version is taken out, a payload changed, a read model's row altered: `verify` has to name each of the three."""
    scene.surroundings.until(lambda: len(scene.rows("schedule", _STREAMS)) == 3, 180, "meetings with some history")
    scene.at_rest()
    streams = [stream for (stream,) in scene.rows("schedule", _STREAMS)]
    lacking, changed, drifted = streams
    scene.rows("schedule", f"CREATE TABLE chaos_events AS SELECT * FROM events WHERE stream IN ({_quoted(streams)})")
    scene.rows("schedule", "DELETE FROM events WHERE stream = $1 AND version = 2", lacking)
    forged = """UPDATE events SET data = data || '{"forged": true}' WHERE stream = $1 AND version = 1"""
    scene.rows("schedule", forged, changed)
    drift = "UPDATE meetings SET revision = revision + $2 WHERE 'meeting/' || id = $1"
    scene.rows("schedule", drift, drifted, 1)
    code, printed = scene.surroundings.command("verify", "schedule")["schedule"]
    for wanted in (
        f"({lacking} 3): version 2 is missing",
        f"({changed} 1): the event is not what was stored",
        f"{drifted.replace('/', ' ')}: the read model is not what the log folds to",
    ):
        if code != 1 or wanted not in printed:
            scene.wrong.append(f"verify ended with {code} and did not say: {wanted}")
    scene.rows("schedule", _PUT_BACK)
    scene.rows("schedule", "DROP TABLE chaos_events")
    scene.rows("schedule", drift, drifted, -1)


def _quoted(streams: list[str]) -> str:
    return ", ".join(f"'{stream}'" for stream in streams)

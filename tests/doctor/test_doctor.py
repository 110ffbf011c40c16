"""Each check of the doctor: well where it is, and red or yellow where the thing that it looks at is broken."""

import asyncio
import json
import os
import ssl
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.doctor import answers, certificates, databases, findings, machine, rendering, secrets, topics
from services.doctor.databases import clock
from services.doctor.findings import Finding, code_of, fail, graded, ok, run_all, said, warn
from services.doctor.looks import Look, _of_machine, looked, of_environment, of_folder
from services.jobs import SETTINGS
from services.surroundings import CannotGoOn
from shared.bus import Topic
from shared.bus_kafka import KafkaBus
from shared.message_log import MessageLog
from shared.migrations import head
from shared.relay import RELAY_LOCK
from shared.settings import load, table
from shared.tokens import add_token
from tests.certificates import self_signed

MakeDatabase = Callable[..., Awaitable[str]]
CANARY = "Kanarienvogel"
SCHEDULE = "services/schedule/migrations"
NOTIFICATIONS = "services/notifications/migrations"
TOPIC = "attache.participants.cleared"


def _levels(findings: Sequence[Finding]) -> dict[str, str]:
    return {one.check: one.level for one in findings}


async def _run(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def _event(version: int, recorded: str = "now()", data: str = "{}") -> str:
    return (
        "INSERT INTO events (id, stream, version, type, data, metadata, key, cleared_sequence, digest, recorded_at) "
        f"VALUES (gen_random_uuid(), 'trip/1', {version}, 'x', '{data}', '{{}}', 'k', {version}, '', {recorded})"
    )


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is given time to answer: a busy machine is not a finding."""
    for module, name in (
        (databases, "CONNECT_SECONDS"),
        (databases, "ANSWER_SECONDS"),
        (certificates, "CONNECT_SECONDS"),
        (findings, "LIMIT_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 120.0)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of who runs the tests."""
    ours = {row.variable for row in table(*SETTINGS.values())}
    prefixes = ("DOCTOR_", *(f"{name.upper()}_" for name in SETTINGS))
    for name in [*os.environ]:
        if name.startswith(prefixes) or {name, name.removesuffix("_FILE")} & ours:
            monkeypatch.delenv(name)


@pytest.fixture
async def schedule(make_database: MakeDatabase) -> str:
    return await make_database(SCHEDULE)


def test_the_worst_finding_is_the_exit_code() -> None:
    well, yellow, red = ok("a", "x"), warn("b", "y", "do"), fail("c", "z", "mend")
    assert [code_of(one) for one in ([well], [well, yellow], [red, yellow, well], [])] == [0, 1, 2, 3]
    assert said([well, red], as_json=False) == "ok   a: x\nFAIL c: z -> mend"
    assert json.loads(said([red], as_json=True)) == {
        "code": 2,
        "findings": [{"check": "c", "level": "FAIL", "found": "z", "do": "mend"}],
    }


def test_what_is_graded_is_well_up_to_its_bound() -> None:
    found = [graded("a", "x", value, warns=2, fails=60, do="do").level for value in (2, 2.1, 60, 60.1)]
    assert found == ["ok", "warn", "warn", "FAIL"]
    assert [clock("c", skew).level for skew in (-61, -3, 0, 3, 61)] == ["FAIL", "warn", "ok", "warn", "FAIL"]


def test_a_clock_that_was_read_late_is_given_the_benefit_of_the_doubt() -> None:
    assert [databases.beyond_doubt(theirs, 100.0, 104.0) for theirs in (90.0, 100.0, 103.0, 109.0)] == [-10, 0, 0, 5]


async def test_a_check_that_hangs_or_breaks_is_a_line_and_holds_up_no_other() -> None:
    async def hangs() -> list[Finding]:
        await asyncio.Event().wait()
        raise AssertionError

    async def breaks() -> list[Finding]:
        raise ValueError(f"postgresql://u:{CANARY}@h/n")

    async def well() -> list[Finding]:
        return [ok("well", "yes")]

    found = await run_all({"hangs": hangs, "breaks": breaks, "well": well}, limit=0.2)
    assert _levels(found) == {"hangs": "FAIL", "breaks": "FAIL", "well": "ok"}
    assert found[0].found == "no answer within 0.2 s"
    assert CANARY not in said(found, as_json=True)


@pytest.mark.parametrize(
    ("free", "size", "level"),
    [
        (20 * 2**30, 100 * 2**30, "ok"),
        (19 * 2**30, 100 * 2**30, "warn"),
        (4 * 2**30, 100 * 2**30, "FAIL"),
        (2**29 - 1, 2**30, "FAIL"),
        (0, 0, "FAIL"),
    ],
)
def test_a_disk_is_judged_by_share_and_by_bytes(free: int, size: int, level: str) -> None:
    assert machine.disk_finding("/", free, size).level == level


async def test_a_path_that_is_not_there_is_a_failure(tmp_path: Path) -> None:
    assert [one.level for one in await machine.disk(tmp_path / "none")] == ["FAIL"]
    assert (await machine.disk(tmp_path))[0].check == f"disk {tmp_path}"


def test_a_kernel_that_says_it_is_not_synchronised_warns() -> None:
    told = [None, (0, 0), (5, 0), (0, machine.UNSYNCHRONISED)]
    assert [machine.clock_finding(one).level for one in told] == ["ok", "ok", "warn", "warn"]


async def test_secret_files_are_there_and_no_samples_and_not_for_others_to_write(tmp_path: Path) -> None:
    contents = {"good": CANARY, "empty": "", "sample": "changeme", "open": CANARY, "none": None}
    for name, content in contents.items():
        if content is not None:
            (tmp_path / name).write_text(content)
            (tmp_path / name).chmod(0o444)
    (tmp_path / "open").chmod(0o666)
    found = await secrets.secret_files([tmp_path / name for name in contents])
    assert _levels(found) == {f"secret {name}": "FAIL" for name in ("empty", "sample", "open", "none")}
    assert CANARY not in said(found, as_json=True)
    assert _levels(await secrets.secret_files([tmp_path / "good"])) == {"secrets": "ok"}
    assert stat.S_IMODE((tmp_path / "good").stat().st_mode) == 0o444


def test_secret_files_are_found_by_the_settings_that_name_them_and_not_by_their_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    named = {
        "DATABASE_URL_FILE": "dsn",
        "SERVICE_TOKEN_FILE": "service_token",
        "BUS_URL_FILE": "bus",
        "KAFKA_SASL_PASSWORD_FILE": "password",
        "SCHEDULE_DATABASE_URL_FILE": "schedule.pgpass",
        "NOTIFICATIONS_SERVICE_TOKEN_FILE": "own",
        "PARTICIPANTS_OTEL_EXPORTER_OTLP_HEADERS_FILE": "otel_headers",
    }
    others = {"SSL_CERT_FILE": "root_token", "POSTGRES_PASSWORD_FILE": "postgres_password", "TOKENS_FILE": "tokens"}
    for variable, file in {**named, **others}.items():
        monkeypatch.setenv(variable, str(tmp_path / file))
    assert of_environment().secrets == sorted(tmp_path / file for file in named.values())
    data = _running(tmp_path / "data")
    monkeypatch.setenv("DOCTOR_SECRETS", f"{tmp_path}/one, {tmp_path}/two")
    more = {*(tmp_path / file for file in named.values()), tmp_path / "one", tmp_path / "two"}
    assert {*of_environment().secrets} == more
    assert {*of_folder(data).secrets} == {*more, data / "secrets" / "token-services"}


def _running(data: Path) -> Path:
    """The folder of a `make run`."""
    for file, content in {
        "run.json": '{"base": "http://127.0.0.1:9"}',
        "bus.json": "{}",
        "postgres/port": "1",
        "secrets/token-services": CANARY,
    }.items():
        (data / file).parent.mkdir(parents=True, exist_ok=True)
        (data / file).write_text(content)
    return data


def test_a_run_of_a_release_that_wrote_no_bus_is_looked_at(tmp_path: Path) -> None:
    data = _running(tmp_path)
    (data / "bus.json").unlink()
    assert {name: one.bus for name, one in of_folder(data).settings.items()} == dict.fromkeys(SETTINGS, "local")
    (data / "run.json").unlink()
    with pytest.raises(CannotGoOn, match="nothing runs on this folder"):
        of_folder(data)


async def test_whom_one_trusts_is_read_or_told_and_hides_no_other_finding(tmp_path: Path) -> None:
    (tmp_path / "folder.pem").mkdir()
    (tmp_path / "empty.pem").write_text("\n")
    (tmp_path / "secret").touch()
    unseen = tmp_path / ("n" * 300)  # it cannot even be asked whether it is there, as in a closed folder
    trusted = [tmp_path / "folder.pem", tmp_path / "empty.pem", unseen, tmp_path / "gone.pem"]
    found = {one.check: one.found for one in await secrets.secret_files([tmp_path / "secret"], trusted)}
    assert found == {
        "secret secret": "is empty",
        "secret folder.pem": "is a folder",
        "secret empty.pem": "is empty",
        f"secret {unseen.name}": "cannot be read (OSError)",
    }
    assert await secrets.secret_files([], [tmp_path / "gone.pem"]) == []


async def test_whom_one_trusts_is_for_nobody_else_to_write(tmp_path: Path) -> None:
    trusted = {"tokens": 0o664, "ca.pem": 0o646, "key.pem": 0o400, "gone.pem": None}
    for name, mode in trusted.items():
        if mode is not None:
            (tmp_path / name).write_bytes(b"\xff")  # what is in it is not looked at here
            (tmp_path / name).chmod(mode)
    settings = load(
        SETTINGS["schedule"],
        database_url="postgresql+asyncpg://u@127.0.0.1/n",
        bus_url="postgresql+asyncpg://u@127.0.0.1/n",
        service_token=CANARY,
        tokens_file=tmp_path / "tokens",
    ).model_copy(update={"kafka_ca_file": tmp_path / "ca.pem", "kafka_cert_file": tmp_path / "gone.pem"})
    other = settings.model_copy(update={"kafka_key_file": tmp_path / "key.pem"})
    (tmp_path / "good").write_text(CANARY)
    (tmp_path / "good").chmod(0o400)
    look = Look(settings={"schedule": settings, "participants": other}, secrets=[tmp_path / "good"])
    assert _levels(await _of_machine(look)["secrets"]()) == {"secret tokens": "FAIL", "secret ca.pem": "FAIL"}
    for name in ("tokens", "ca.pem"):
        (tmp_path / name).chmod(0o644)
    (well,) = await _of_machine(look)["secrets"]()
    assert (well.level, well.found.partition(",")[0]) == ("ok", "4 files")


async def test_each_scope_wants_a_holder(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    assert (await secrets.tokens(path))[0].level == "FAIL"
    add_token(path, "a", ("planner", "staff", "service"))
    assert (await secrets.tokens(path))[0].found == "nobody has the scope operator"
    add_token(path, "b", ("operator",))
    assert (await secrets.tokens(path))[0].level == "ok"
    path.write_text("no token file\n")
    assert (await secrets.tokens(path))[0].level == "FAIL"


@pytest.mark.parametrize(
    ("days", "before", "level"), [(60, -1, "ok"), (20, -1, "warn"), (-1, -400, "FAIL"), (60, 2, "FAIL")]
)
async def test_a_certificate_in_a_file_is_judged_by_its_end(
    tmp_path: Path, days: float, before: float, level: str
) -> None:
    file, _ = self_signed(tmp_path, days=days, before=before)
    assert [one.level for one in await certificates.of_file(file)] == [level]
    file.write_text("no certificate")
    assert [one.level for one in await certificates.of_file(file)] == ["FAIL"]


@pytest.mark.parametrize(
    ("days", "name", "host", "level"),
    [
        (60, "localhost", "localhost", "ok"),
        (60, "localhost", "127.0.0.1", "ok"),
        (5, "localhost", "localhost", "warn"),
        (-1, "localhost", "localhost", "FAIL"),
        (60, "feeds.example.org", "localhost", "FAIL"),
        (60, "feeds.example.org", "127.0.0.1", "FAIL"),
    ],
)
async def test_the_certificate_of_the_public_address_is_read_whatever_is_wrong_with_it(
    tmp_path: Path, days: float, name: str, host: str, level: str
) -> None:
    file, key = self_signed(tmp_path, days=days, name=name)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file, key)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await certificates.of_address(f"https://{host}:{port}/")
    assert [one.level for one in found] == [level], found
    assert [one.level for one in await certificates.of_address(f"https://{host}:{port}/")] == ["FAIL"]


async def test_the_certificate_of_each_broker_is_read(tmp_path: Path) -> None:
    file, key = self_signed(tmp_path, days=60)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file, key)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await certificates.of_brokers(f"127.0.0.1:{port},127.0.0.1:1")
    assert [(one.check, one.level) for one in found] == [
        ("certificate KAFKA_BOOTSTRAP", "ok"),
        ("certificate KAFKA_BOOTSTRAP", "FAIL"),
    ]


async def test_a_plain_address_has_no_certificate() -> None:
    assert [one.level for one in await certificates.of_address("http://127.0.0.1:9")] == ["ok"]


async def test_a_database_tells_version_clock_and_schema(schedule: str, make_database: MakeDatabase) -> None:
    found = await databases.server("schedule", schedule)
    assert _levels(found) == {"database schedule": "ok", "clock database schedule": "ok", "schema schedule": "ok"}
    empty = await databases.server("schedule", await make_database())
    assert _levels(empty)["schema schedule"] == "FAIL"
    assert empty[-1].do == "run python -m services.schedule migrate"
    await _run(schedule, "UPDATE alembic_version SET version_num = '9999'")
    assert (await databases.server("schedule", schedule))[-1] == fail(
        "schema schedule",
        f"the database's schema is 9999, which is ahead of this program's {head(SCHEDULE)}",
        "run the newer program, or restore the backup that was made before it",
    )


def test_another_postgresql_is_a_failure() -> None:
    assert databases.version("schedule", 180004, 9 * 2**20) == ok("database schedule", "PostgreSQL 18.4, 9 MB")
    assert databases.version("schedule", 170010, 0) == fail(
        "database schedule",
        "the server is PostgreSQL 17 and this program is for PostgreSQL 18",
        "bring it to 18 with pg_upgrade or a dump",
    )


async def test_a_database_that_is_away_is_a_line_without_its_password() -> None:
    found = await databases.server("schedule", f"postgresql+asyncpg://u:{CANARY}@127.0.0.1:9/n")
    assert _levels(found) == {"database schedule": "FAIL"}
    assert CANARY not in said(found, as_json=True)


def test_a_database_that_lets_nobody_in_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nowhere = f"postgresql+asyncpg://u:{CANARY}@127.0.0.1:9/n"
    for name in ("schedule", "participants", "notifications"):
        monkeypatch.setenv(f"{name.upper()}_DATABASE_URL", nowhere)
        monkeypatch.setenv(f"{name.upper()}_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("SERVICE_TOKEN", "attache_x")
    monkeypatch.setenv("BUS_URL", nowhere)
    monkeypatch.setenv("TOKENS_FILE", str(tmp_path / "none"))
    code, found = looked(of_environment())
    refused = ("ConnectionRefusedError at 127.0.0.1", "see whether it is up")
    assert code == 2
    assert [(one.check, one.found.rpartition(": ")[2], one.do) for one in found if "database" in one.check] == [
        (f"database {name}", *refused) for name in ("schedule", "participants", "notifications")
    ]
    left = {"program", "clock kernel", "tokens", "certificate PUBLIC_URL", "topics"}
    assert {one.check for one in found} - left == {
        f"{kind} {name}" for kind in ("database", "service") for name in ("schedule", "participants", "notifications")
    }


@pytest.mark.parametrize(("seconds", "level"), [(-60, "ok"), (55, "warn"), (3600, "FAIL")])
async def test_a_clock_that_went_back_behind_the_log_is_told(schedule: str, seconds: int, level: str) -> None:
    await _run(schedule, _event(1, f"now() + interval '{seconds} s'"))
    assert [one.level for one in await databases.newest_event("schedule", schedule)] == [level]


def test_a_relay_may_be_ten_seconds_late_and_a_consumer_thirty() -> None:
    assert (databases.RELAY_WARNS, databases.RELAY_FAILS) == (10, 60)
    assert (databases.LAG_WARNS, databases.LAG_FAILS) == (30, 300)


@pytest.fixture
def in_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is a warning after an hour and a failure after two: a busy machine lets it wait for less."""
    for of in ("RELAY", "LAG"):
        monkeypatch.setattr(databases, f"{of}_WARNS", 3600.0)
        monkeypatch.setattr(databases, f"{of}_FAILS", 7200.0)


@pytest.mark.parametrize(("seconds", "level"), [(1, "ok"), (4800, "warn"), (7200, "FAIL")])
async def test_the_relay_is_judged_by_the_oldest_event_that_waits(
    in_hours: None, schedule: str, seconds: int, level: str
) -> None:
    await _run(schedule, _event(1, f"now() - interval '{seconds} s'"))
    assert _levels(await databases.relay("schedule", schedule)) == {
        "relay schedule": level,
        "relay schedule leader": "FAIL",
    }
    leader = await asyncpg.connect(schedule.replace("+asyncpg", ""))
    await leader.execute("SELECT pg_advisory_lock($1, $2)", *RELAY_LOCK)
    try:
        assert _levels(await databases.relay("schedule", schedule))["relay schedule leader"] == "ok"
    finally:
        await leader.close()


async def test_parked_keys_are_named_and_their_content_is_not(schedule: str) -> None:
    assert [one.level for one in await databases.parked("schedule", schedule)] == ["ok"]
    await _run(
        schedule,
        "INSERT INTO parked_messages (topic, key, headers, body, slug, error, attempts, parked_at) VALUES "
        f"('{TOPIC}', 'trip-1', '[[\"x\", \"{CANARY}\"]]', '{CANARY}', 'not-applied', '{CANARY}', 3, "
        "'2026-01-02T03:04:05Z')",
    )
    [found] = await databases.parked("schedule", schedule)
    assert (found.level, found.found) == (
        "warn",
        f"{TOPIC} key 'trip-1': not-applied since 2026-01-02T03:04:05Z, 3 attempts, 1 messages",
    )
    assert found.do.endswith("python -m services.schedule redrive")
    assert CANARY not in said([found], as_json=True)


@pytest.mark.parametrize(("seconds", "level"), [(1, "ok"), (4800, "warn"), (7200, "FAIL")])
async def test_lag_counts_messages_and_seconds_of_what_is_not_parked(
    in_hours: None, schedule: str, make_database: MakeDatabase, seconds: int, level: str
) -> None:
    consumer = await make_database(SCHEDULE)
    await _run(
        schedule, "INSERT INTO heads VALUES ('k', 0, 2)", _event(1), _event(2, f"now() - interval '{seconds} s'")
    )
    look = partial(databases.lag, "schedule", consumer, "participants", schedule, TOPIC)
    await _run(consumer, f"INSERT INTO consumer_marks (topic, key, sequence) VALUES ('{TOPIC}', 'k', 1)")
    [behind] = await look()
    assert (behind.level, behind.found.partition(",")[0]) == (level, "1 messages behind participants")
    await _run(consumer, "UPDATE consumer_marks SET sequence = 2")
    assert (await look())[0].found == "0 messages behind participants, 0 s"
    await _run(consumer, "UPDATE consumer_marks SET sequence = 0, waits_for = 'not-applied'")
    assert (await look())[0].found == "0 messages behind participants, 0 s"


@pytest.mark.parametrize(
    ("tz", "instant", "level"),
    [
        ("2020a", "2023-11-07T09:25:00Z", "ok"),
        ("2020a", "2023-11-07T10:25:00Z", "warn"),
        ("2099z", "2023-11-07T09:25:00Z", "FAIL"),
    ],
)
async def test_instants_are_compared_with_this_programs_time_zones(
    schedule: str, tz: str, instant: str, level: str
) -> None:
    thing = {"tz": tz, "zone": "Asia/Tokyo", "start": "2023-11-07T18:25:00", "starts_at": instant}
    await _run(schedule, _event(1, data=json.dumps({"whole": thing})))
    [found] = await databases.time_zones(schedule)
    assert (found.level, found.found.startswith(f"1 instants derived with {tz}")) == (level, True)


async def test_marks_that_do_not_move_and_links_that_end_are_told(make_database: MakeDatabase) -> None:
    url = await make_database(NOTIFICATIONS)
    assert _levels(await rendering.rendering(url)) == {"rendering": "ok"}
    assert _levels(await rendering.links(url)) == {"links": "ok"}
    trip = "'6ba7b810-9dad-11d1-80b4-00c04fd430c8'"
    link = (
        "INSERT INTO feed_links (id, trip, audience, expires_at, revision, thing, secrets) VALUES "
        f"(gen_random_uuid(), {trip}, gen_random_uuid(), now() + interval '%s', 1, '%s', '[]')"
    )
    await _run(
        url,
        f"INSERT INTO marks (trip) VALUES ({trip})",
        "INSERT INTO audiences (id, trip, delegation, level, alarm_seconds) "
        f"VALUES (gen_random_uuid(), {trip}, gen_random_uuid(), 'full', 0)",
        link % ("13 days", "{}"),
        link % ("15 days", "{}"),
        link % ("13 days", '{"revoked_at": "2026-01-01T00:00:00Z"}'),
    )
    [waits] = await rendering.rendering(url, again=0)
    assert (waits.level, waits.found) == ("FAIL", "1 audiences wait, and the oldest mark has not moved")
    [ending] = await rendering.links(url)
    assert (ending.level, ending.found) == ("warn", "1 links end within 14 days")


async def test_local_topics_that_lack_or_differ_are_failures(make_database: MakeDatabase) -> None:
    url = await make_database("shared/bus_migrations")
    await _run(url, "INSERT INTO topics VALUES ('a', 8), ('b', 3)")
    found = await topics.on_local_bus(url, [Topic(name=name) for name in ("a", "b", "c")])
    assert [(one.level, one.found) for one in found] == [
        ("FAIL", "b: partitions is 3, not 8"),
        ("FAIL", "c: is not there"),
    ]
    assert [one.level for one in await topics.on_local_bus(url, [Topic(name="a")])] == ["ok"]


async def test_kafkas_topics_that_lack_or_differ_are_failures_and_none_is_made(kafka_address: str) -> None:
    there, lacking = Topic(name="doctor.there", partitions=2), Topic(name="doctor.lacking")
    await KafkaBus(kafka_address).ensure_topics([there])
    for _ in range(2):
        found = await topics.on_kafka(kafka_address, [Topic(name=there.name, partitions=3), lacking])
        assert [(one.level, one.found) for one in found] == [
            ("FAIL", "doctor.lacking: is not there"),
            ("FAIL", "doctor.there: partitions is 2, not 3"),
        ]
    assert [one.level for one in await topics.on_kafka(kafka_address, [there])] == ["ok"]
    assert [one.level for one in await topics.on_kafka("127.0.0.1:9", [there])] == ["FAIL"]


def _answering(status: int, document: Any, late: timedelta = timedelta(0)) -> httpx.AsyncClient:
    """A service whose clock is so much behind."""

    def answer(_: httpx.Request) -> httpx.Response:
        date = datetime.now(UTC) - late
        return httpx.Response(status, json=document, headers={"Date": f"{date:%a, %d %b %Y %H:%M:%S GMT}"})

    return httpx.AsyncClient(transport=httpx.MockTransport(answer))


async def test_a_service_is_judged_by_readiness_and_by_its_clock() -> None:
    well = await answers.service(_answering(200, {"reasons": {}}), "schedule", "http://x")
    assert _levels(well) == {"service schedule": "ok", "clock service schedule": "ok"}
    red = {"reasons": {"relay": "the relay has stood"}}
    late = await answers.service(_answering(503, red, timedelta(minutes=5)), "schedule", "http://x")
    assert _levels(late) == {"service schedule": "FAIL", "clock service schedule": "FAIL"}
    assert late[0].found == "the relay has stood"
    async with httpx.AsyncClient() as client:
        assert [one.level for one in await answers.service(client, "schedule", "http://127.0.0.1:9")] == ["FAIL"]


async def test_marks_behind_what_producers_told_are_told_when_they_stand_still(schedule: str) -> None:
    page = {"items": [{"key": "k", "sequence": 2}, {"key": "p", "sequence": 2}], "next": None}
    log = partial(MessageLog, service="participants", base="http://x", token="t")
    client = _answering(200, page)
    look = partial(answers.heads, log(client=client), TOPIC, "schedule", schedule, again=0)
    mark = f"INSERT INTO consumer_marks (topic, key, sequence, waits_for) VALUES ('{TOPIC}',"
    await _run(schedule, f"{mark} 'k', 1, NULL)", f"{mark} 'p', 1, 'not-applied')")
    [behind] = await look()
    assert (behind.level, behind.found) == ("warn", "1 keys stand still behind what was told")
    await _run(schedule, "UPDATE consumer_marks SET sequence = 2")
    assert [one.level for one in await look()] == ["ok"]
    await _run(schedule, f"{mark} 'gone', 1, NULL)", "UPDATE consumer_marks SET sequence = 3 WHERE key = 'k'")
    [ahead] = await look()
    found = "2 keys are further than participants has told: its database was put back, or is another one"
    assert (ahead.level, ahead.found) == ("FAIL", found)
    await _run(schedule, "UPDATE consumer_marks SET epoch = 0 WHERE key IN ('k', 'gone')")  # to be built anew
    assert [one.level for one in await look()] == ["warn"]
    refused = log(client=_answering(403, {}))
    assert [one.level for one in await answers.heads(refused, TOPIC, "schedule", schedule, again=0)] == ["FAIL"]


def test_each_wrong_setting_is_a_line_and_the_others_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"postgresql+asyncpg://u:{CANARY}@127.0.0.1/n"
    given = {"BUS_URL": address, "SERVICE_TOKEN": CANARY, "SCHEDULE_DATABASE_URL": address}
    for name, value in {**given, "PARTICIPANTS_DATABASE_URL": "nowhere", "PARTICIPANTS_PORT": "many"}.items():
        monkeypatch.setenv(name, value)
    look = of_environment()
    assert list(look.settings) == ["schedule"]
    assert [one.check for one in look.wrong] == ["settings participants"] * 2 + ["settings notifications"]
    assert look.wrong[-1].found == "NOTIFICATIONS_DATABASE_URL or DATABASE_URL is not set"
    assert CANARY not in said(look.wrong, as_json=True)


@pytest.mark.parametrize("arguments", [[], ["--data", "/nowhere"]])
def test_where_nothing_can_be_looked_at_the_code_is_three_and_the_reason_a_line(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={},
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)

"""Backup, restore and drill on a Compose stack of its own, with the demo trip in it."""

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import pytest

from deploy.backup import back_up
from deploy.backup_folder import BASE, check_files, read_backup
from deploy.drill import drill_copy, drill_here, settled, table
from deploy.drill_feeds import Door, Link
from deploy.env_file import read_env
from deploy.facts import Facts, Feed, differences, read_facts
from deploy.kafka_node import free_port
from deploy.make_secrets import make
from deploy.restore import MARKER, restore
from deploy.server import LENT_DATA, Server, lent, scratch
from deploy.stack import ROOT, SERVICES, Stack, Unable

PATIENCE_SECONDS = 300.0


def docker_answers() -> bool:
    """Whether an engine and Compose are there."""
    return shutil.which("docker") is not None and all(
        subprocess.run(["docker", *command], capture_output=True, check=False).returncode == 0
        for command in (["info"], ["compose", "version"])
    )


pytestmark = [
    pytest.mark.skipif(not os.environ.get("ATTACHE_TEST_DRILLS"), reason="five minutes: make compose-test runs it"),
    pytest.mark.skipif(not docker_answers(), reason="backup and restore of the stack: no Docker with Compose"),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with the demo trip, gone afterwards with its image."""
    folder = tmp_path_factory.mktemp("stack")
    make(folder / ".env", {})
    port = free_port()  # it stays free while the image is built
    name = f"attache-test-{secrets.token_hex(3)}"
    given = {
        **read_env(folder / ".env"),
        "ATTACHE_SECRETS": str(folder / "deploy" / "secrets"),
        "ATTACHE_IMAGE": f"attache/{name}",
        "COMPOSE_DISABLE_ENV_FILE": "1",
        # no override beside it: what that names may be somebody's, and goes with the volumes
        "COMPOSE_FILE": str(ROOT / "docker-compose.yml"),
        "COMPOSE_PROFILES": "",
        "PORT": str(port),
    }
    stack = Stack(name, given)
    try:
        stack.compose("build", "--quiet")
        stack.up()
        stack.compose("run", "--rm", "-T", "demo", "--json")
        settled(stack)
        yield stack
    finally:
        stack.compose("--profile", "*", "down", "--volumes", "--timeout", "5")
        subprocess.run(["docker", "rmi", stack.environment["ATTACHE_IMAGE"]], capture_output=True, check=False)


@pytest.fixture
def quiet() -> Callable[[str], None]:
    return lambda _: None


@contextlib.contextmanager
def planner(stack: Stack) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {stack.secret('planner_token')}"}
    with httpx.Client(base_url=Door(stack).address, headers=headers, timeout=60) as client:
        yield client


def issued(stack: Stack, feeds: Sequence[Feed]) -> dict[str, Link]:
    """A link for each feed, by its audience."""
    links: dict[str, Link] = {}
    Door(stack).issue(feeds, links)
    return links


def calendars(stack: Stack, links: Mapping[str, Link]) -> dict[str, str]:
    """Each feed by its audience, lines unfolded."""
    with planner(stack) as client:
        answers = {audience: client.get(link.path).raise_for_status() for audience, link in links.items()}
    return {audience: answer.text.replace("\r\n ", "") for audience, answer in answers.items()}


def sequences(body: str) -> dict[str, int]:
    """SEQUENCE by UID."""
    events = body.split("BEGIN:VEVENT")[1:]
    return {
        re.findall(r"\nUID:(\S+)", event)[0]: int((re.findall(r"\nSEQUENCE:(\d+)", event) or ["0"])[0])
        for event in events
    }


def unstamped(body: str) -> str:
    """What a calendar shows of it."""
    return re.sub(r"\r\n(SEQUENCE|DTSTAMP|LAST-MODIFIED):\S*", "", body)


def cancel_a_meeting(stack: Stack, trip: str) -> str:
    """A change that feeds of the trip show; returns the meeting's id."""
    with planner(stack) as client:
        listed = client.get(f"/schedule/trips/{trip}/meetings").raise_for_status().json()["items"]
        meeting = next(one for one in listed if one["status"] != "cancelled")
        path = f"/schedule/meetings/{meeting['id']}"
        tag = client.get(path).raise_for_status().headers["etag"]
        reason = {"reason": "The hall is closed"}
        client.post(f"{path}/cancel", json=reason, headers={"If-Match": tag}).raise_for_status()
    return str(meeting["id"])


def test_drill_on_the_stack_itself_finds_all_as_it_was(stack: Stack, tmp_path: Path) -> None:
    outcome = drill_here(stack, tmp_path / "kept", yes=True)
    check_files(tmp_path / "kept", read_backup(tmp_path / "kept"))
    assert outcome.lines == []
    assert outcome.over_http == len(outcome.before.feeds) > 5
    assert all(log.events > 0 for log in outcome.before.logs.values())
    assert table(outcome)[-1] == "all is as it was"


def test_drill_on_a_copy_leaves_the_running_stack_as_it_is(stack: Stack) -> None:
    before = settled(stack)
    outcome = drill_copy(stack, None)
    assert outcome.lines == []
    assert outcome.over_http == len(before.feeds)
    assert settled(stack) == before == outcome.before
    assert [name for name in volumes() if name.startswith(f"{stack.project}-drill")] == []


def test_a_container_of_compose_run_is_none_of_a_service(stack: Stack) -> None:
    running, schedule = stack.running(), stack.containers("schedule")
    once = ["run", "--detach", "--rm", "--no-deps", "--entrypoint", "sleep"]
    made = [stack.compose(*once, name, "infinity").strip() for name in ("doctor", "schedule")]
    try:
        assert (stack.running(), stack.containers("schedule")) == (running, schedule)
    finally:
        subprocess.run(["docker", "rm", "--force", *made], capture_output=True, check=True)


def volumes() -> list[str]:
    listed = subprocess.run(["docker", "volume", "ls", "-q"], capture_output=True, text=True, check=True)
    return listed.stdout.split()


@pytest.fixture(scope="module")
def backup_folder(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "backup"
    back_up(stack, folder, lambda _: None)
    return folder


@pytest.mark.parametrize(
    ("database", "damage", "line"),
    [
        ("schedule", "DELETE FROM events WHERE position = (SELECT max(position) FROM events)", "schedule: events "),
        (
            "participants",
            "UPDATE events SET data = data || '{\"more\": 1}' WHERE position = (SELECT min(position) FROM events)",
            "participants: sha256 of the events ",
        ),
        (
            "notifications",
            "UPDATE bodies SET etag = 'another' WHERE place = (SELECT max(place) FROM bodies)",
            "feed ",
        ),
    ],
)
def test_one_event_or_one_feed_that_differs_is_found(
    database: str, damage: str, line: str, backup_folder: Path
) -> None:
    before = read_backup(backup_folder).facts
    with scratch("postgres:18") as server:
        server.unpack(backup_folder / BASE, LENT_DATA)
        server.run_data(LENT_DATA)
        assert read_facts(server) == before
        assert list(server.rows(database, damage)) == []
        found = differences(before, read_facts(server))
    assert found != []
    assert all(one.startswith((line, f"{database}: ")) for one in found), found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_scratch_container_ends_with_its_program(number: signal.Signals) -> None:
    program = (
        "from deploy.server import scratch\n"
        "with scratch('postgres:18') as server:\n"
        "    print(server.container, flush=True)\n"
        "    server.run('sleep', '600')\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        assert name in containers()
        process.send_signal(number)
        process.wait()
    until = time.monotonic() + PATIENCE_SECONDS
    while name in containers():
        assert time.monotonic() < until
        time.sleep(0.2)


def containers() -> list[str]:
    command = ["docker", "ps", "--all", "--format", "{{.Names}}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_restore_to_an_earlier_point_with_a_newer_kafka(
    stack: Stack, tmp_path: Path, quiet: Callable[[str], None]
) -> None:
    feeds = settled(stack).feeds
    links = issued(stack, feeds)
    before = settled(stack)
    then = calendars(stack, links)
    back_up(stack, tmp_path / "backup", quiet)
    meeting = cancel_a_meeting(stack, feeds[0].trip)
    assert settled(stack).feeds != before.feeds
    seen = calendars(stack, links)
    assert seen != then

    with pytest.raises(Unable, match="notifications and participants and schedule must not run meanwhile"):
        restore(stack, tmp_path / "backup", "base", quiet, lambda _: True)
    stack.compose("stop", "proxy", *SERVICES)
    with pytest.raises(Unable, match=r"\d+ events of schedule, .* would be replaced .*: say YES=1"):
        restore(stack, tmp_path / "backup", "base", quiet, lambda _: False)
    restore(stack, tmp_path / "backup", "base", quiet, lambda _: True)
    stack.up()
    after = settled(stack)
    assert [line for line in differences(before, after) if not line.startswith("feed ")] == []
    assert all(after.logs[name].epoch > log.epoch for name, log in before.logs.items())
    shown = calendars(stack, links)
    assert {audience: unstamped(body) for audience, body in shown.items()} == {
        audience: unstamped(body) for audience, body in then.items()
    }
    for audience, body in shown.items():  # newer than what was shown of the time that is lost
        assert all(number > sequences(seen[audience])[uid] for uid, number in sequences(body).items())

    assert cancel_a_meeting(stack, feeds[0].trip) == meeting
    assert settled(stack).feeds != before.feeds
    again = calendars(stack, links)
    assert again != then
    for audience, body in again.items():
        assert all(number >= sequences(shown[audience])[uid] for uid, number in sequences(body).items())


def test_interrupted_restore_starts_nothing_and_is_repaired(
    stack: Stack, tmp_path: Path, quiet: Callable[[str], None]
) -> None:
    before = settled(stack)
    back_up(stack, tmp_path / "backup", quiet)
    stack.compose("stop", "proxy", "schedule", "participants", "notifications", "postgres")
    with lent(stack) as server:  # as one that was killed between its last two steps left it
        data = server.run("printenv", "PGDATA").strip()
        server.run("bash", "-c", f"echo 1900000000 >{MARKER}; mv {data} /var/lib/postgresql/replaced")
    with pytest.raises(Unable):
        stack.up("postgres")
    said = stack.compose("logs", "--no-log-prefix", "--tail", "1", "postgres")
    assert said.strip() == (
        "postgres: a restore was begun and not finished: run make restore again, with the same folder or another"
    )
    stack.compose("stop", "postgres")
    restore(stack, tmp_path / "backup", "base", quiet, lambda _: True)
    stack.up()
    after = settled(stack)
    assert differences(before, after) == []  # nothing was written since, so no calendar has to be told anew
    producers = ("schedule", "participants")
    assert all(after.logs[name].epoch > 1_900_000_000 for name in producers)  # above what the killed one had seen


def test_lost_kafka_volume_changes_no_byte(stack: Stack) -> None:
    before = settled(stack)
    links = issued(stack, before.feeds)
    facts = settled(stack)
    then = Door(stack).fetch(links, facts.feeds)
    stack.compose("rm", "--stop", "--force", "kafka")
    subprocess.run(["docker", "volume", "rm", f"{stack.project}_kafka"], capture_output=True, check=True)
    stack.up()
    until = time.monotonic() + PATIENCE_SECONDS
    while (held := records(stack)) != held_by(facts):
        assert time.monotonic() < until, f"the topics hold {held}"
        time.sleep(0.5)
    assert settled(stack) == facts
    assert Door(stack).fetch(links, facts.feeds) == then


def records(stack: Stack) -> dict[str, int]:
    """How many records each cleared topic holds."""
    script = "/opt/kafka/bin/kafka-get-offsets.sh --bootstrap-server localhost:9092 --topic 'attache.*cleared'"
    try:
        lines = stack.compose("exec", "-T", "kafka", "bash", "-c", script).split()
    except Unable:
        return {}
    counted: dict[str, int] = {}
    for line in lines:
        topic, _, offset = line.split(":")
        counted[topic] = counted.get(topic, 0) + int(offset)
    return counted


def held_by(facts: Facts) -> dict[str, int]:
    """As many as there are events: each is told on the cleared topic once, after all was sent again."""
    return {f"attache.{name}.cleared": log.events for name, log in facts.logs.items() if log.events}


def test_dumps_restore_where_nothing_is_with_new_passwords(
    stack: Stack, tmp_path: Path, quiet: Callable[[str], None]
) -> None:
    before, made = settled(stack), how_made(stack)
    back_up(stack, tmp_path / "backup", quiet)
    file = Path(stack.config["secrets"]["schedule_database_url"]["file"])
    file.chmod(0o644)
    file.write_text(f"postgresql+asyncpg://schedule:{secrets.token_hex(24)}@postgres/schedule\n")
    os.chmod(file, 0o444)  # noqa: PTH101  as make secrets leaves it
    stack.compose("--profile", "*", "down", "--volumes")
    # nothing is there: nobody is asked
    restore(stack, tmp_path / "backup", "dump", quiet, lambda _: False, nothing_lost=True)
    stack.up()
    assert differences(before, settled(stack)) == []
    assert how_made(stack) == made


def how_made(stack: Stack) -> list[list[str]]:
    """What a first start decides for good: who may enter which database, in which order texts stand, checksums."""
    server = Server(container=stack.container("postgres") or "")
    query = "SELECT datname, datdba::regrole, datlocprovider, datlocale, datacl FROM pg_database ORDER BY datname"
    access = "SELECT type, database, user_name, address, auth_method FROM pg_hba_file_rules ORDER BY rule_number"
    rows = [*server.rows("postgres", query), *server.rows("postgres", "SHOW data_checksums")]
    assert all(provider == "b" for _, _, provider, *_ in rows[:-1])
    return [*rows, *server.rows("postgres", access)]

"""`make run`: what it makes, what it refuses in one line, how it stops, and what it finds again."""

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import pytest

from deploy.kafka_node import KafkaNode
from services.data_folder import Log
from services.demo.trip_commands import FORMS
from services.demo.trip_file import DEMO, read_trip_file
from services.embedded import EmbeddedPostgres
from services.front import is_ours
from tests.trio_fixture import emptied

if TYPE_CHECKING:
    from tests.e2e.conftest import Loaded, Running, StartUp, Until, Up
else:
    Loaded = Running = StartUp = Until = Up = Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 180
TRIES = 5
"""So often what lasts for a moment is looked for: whoever looks can be held up for longer."""


def _one_line(up: Up, code: int = 1) -> str:
    """The one line that a start said, which ended with this exit code, and has left no server and no run.json."""
    assert up.ended() == code
    assert up.printed == ""
    lines = [line for line in up.said.splitlines() if not line.startswith("data in ")]
    assert len(lines) == 1, up.said
    assert not up.servers()
    assert not up.run_file.exists()
    return lines[0]


# What it makes


def test_a_ready_run_names_every_feed_on_stdout_and_in_run_json(running: Running) -> None:
    run = running.run
    names = {feed["delegation"]: (feed["kind"], feed["level"]) for feed in run["feeds"]}
    assert run.keys() == {"base", "token", "trip", "feeds"}
    assert names["United States delegation"] == ("own", "full")
    assert names["Press pool"] == ("press", "delegation")
    assert Counter(kind for kind, _ in names.values()) == {"own": 1, "host": 8, "press": 1}
    running.up.until(lambda: running.up.printed.endswith("Stop with Ctrl-C.\n"), what="all on stdout")  # after run.json
    listed = [line.strip() for line in running.up.printed.splitlines() if "/feeds/" in line]
    assert listed == [feed["url"] for feed in run["feeds"]]
    assert f"Attaché is ready at {run['base']}/" in running.up.printed
    for feed in run["feeds"]:
        assert httpx.get(feed["url"], trust_env=False, timeout=PATIENCE).text.startswith("BEGIN:VCALENDAR\r\n")


def test_what_is_secret_is_for_its_owner_alone(running: Running) -> None:
    data = running.up.data
    files = [data / name for name in ("run.json", "tokens", "services.log")] + sorted((data / "secrets").iterdir())
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in files} == {p.name: "0o600" for p in files}
    assert stat.S_IMODE(data.stat().st_mode) & 0o066 == 0
    log = (data / "services.log").read_text(encoding="utf-8")
    secret = [running.run["token"], *(feed["url"].rpartition("/")[2] for feed in running.run["feeds"])]
    assert [one for one in secret if one in log] == []


def test_a_load_that_was_killed_goes_on_and_does_nothing_twice(loaded: Loaded) -> None:
    trip_file = read_trip_file(DEMO)
    commands = Counter(FORMS[step.command].path.split("/")[1] for step in trip_file.steps)
    made = Counter(step.makes.kind for step in trip_file.steps if step.makes)
    members = made.pop("member")  # they are listed by delegation
    assert 0 < loaded.broken_at < len(trip_file.steps)
    assert loaded.counts == made
    # each command of these two is one event; a member's can be two, when it changes the order or the head
    # a link whose address the kill kept from being written down is rotated, since only its issue tells it
    totals = {service: sum(types.values()) for service, types in loaded.events.items()}
    totals["notifications"] -= loaded.events["notifications"].get("FeedLinkRotated", 0)
    assert (totals["schedule"], totals["notifications"]) == (commands["schedule"], commands["notifications"])
    assert {name: loaded.events["participants"][name] for name in ("DelegationRegistered", "MemberAdded")} == {
        "DelegationRegistered": made["delegation"],
        "MemberAdded": members,
    }
    assert not loaded.left_run_file


def test_a_second_start_finds_the_same_feeds_under_any_port(loaded: Loaded, running: Running) -> None:
    def plain(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [{**feed, "url": feed["url"].removeprefix(run["base"])} for feed in run["feeds"]]

    assert running.run["base"] != loaded.run["base"]
    assert plain(running.run) == plain(loaded.run)
    assert running.run["trip"] == loaded.run["trip"]
    print(f"a second start is ready after {running.seconds:.1f} s")


# What it refuses


def test_a_second_run_on_the_same_data_is_refused_and_disturbs_nothing(running: Running, start_up: StartUp) -> None:
    before = running.up.run_file.read_bytes()
    second = start_up(running.up.data)
    assert second.ended() == 1
    assert second.said == (
        f"attache: {running.up.data.resolve()} is in use by process {running.up.process.pid}: "
        "stop that first, or give another folder with DATA=\n"
    )
    assert running.up.run_file.read_bytes() == before
    with running.client() as client:
        running.up.until(lambda: client.get("/schedule/readyz").json()["ready"], what="ready again")


def test_a_port_that_is_taken_is_said_in_one_line(start_up: StartUp, data_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert _one_line(start_up(data_folder / "data", port=port)) == (
            f"attache: cannot listen on port {port}: Address already in use; name another: make run PORT=8090"
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "argument --port: '70000' is no port: 1 to 65535, or 0 for any that is free"),
        (["--port", "http"], "argument --port: 'http' is no port: 1 to 65535, or 0 for any that is free"),
        (["--data", ""], "argument --data: the name of a folder is needed"),
        (["--bus", "rabbit"], "argument --bus: invalid choice: 'rabbit' (choose from 'local', 'kafka')"),
    ],
)
def test_a_wrong_argument_is_said_in_one_line(arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "services", "up", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    # newer Pythons leave out the quotes around choices
    line = ended.stderr.replace("local, kafka", "'local', 'kafka'")
    assert (ended.returncode, line) == (2, f"attache: {said} (see python -m services up --help)\n")


def test_data_that_is_a_file_is_said_in_one_line(start_up: StartUp, data_folder: Path) -> None:
    (data_folder / "data").write_text("a note")
    said = _one_line(start_up(data_folder / "data"))
    assert said == f"attache: {data_folder / 'data'} cannot be used: File exists"
    assert (data_folder / "data").read_text() == "a note"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("NOTIFICATIONS_DOMAIN", "no domain!", "attache: NOTIFICATIONS_DOMAIN: string should match pattern"),
        (
            "NOTIFICATIONS_DOMIAN",
            "b.example",
            "attache: NOTIFICATIONS_DOMIAN is no setting (near it: NOTIFICATIONS_DOMAIN",
        ),
    ],
)
def test_a_wrong_setting_is_said_before_anything_is_started(
    start_up: StartUp, data_folder: Path, name: str, value: str, said: str
) -> None:
    up = start_up(data_folder / "data", environment={name: value})
    line = _one_line(up)
    assert line.startswith(said)
    assert value not in line
    assert not (up.data / "postgres" / "data").exists()


def test_a_broker_that_is_away_is_said_in_one_line(start_up: StartUp, data_folder: Path, free_port: int) -> None:
    address = f"127.0.0.1:{free_port}"
    up = start_up(data_folder / "data", "--bus", "kafka", environment={"KAFKA_BOOTSTRAP": address})
    assert _one_line(up) == f"attache: no Kafka answers at {address}: start one in another terminal: make kafka"


def test_on_kafka_it_serves_the_same_feeds_and_the_doctor_looks_at_kafka(
    start_up: StartUp, loaded: Loaded, loaded_folder: Path, breakable_kafka: KafkaNode
) -> None:
    address = breakable_kafka.address
    asyncio.run(emptied(address))
    up = start_up(loaded_folder, "--bus", "kafka", environment={"KAFKA_BOOTSTRAP": address})
    run = up.ready()
    assert [feed["delegation"] for feed in run["feeds"]] == [feed["delegation"] for feed in loaded.run["feeds"]]
    for feed in run["feeds"]:
        assert "BEGIN:VEVENT" in httpx.get(feed["url"], trust_env=False, timeout=PATIENCE).text
    command = [sys.executable, "-m", "services", "doctor", "--data", str(loaded_folder), "--json"]
    plain = {name: value for name, value in os.environ.items() if name not in ("BUS", "KAFKA_BOOTSTRAP")}
    told = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=False)
    topics = [one["found"] for one in json.loads(told.stdout)["findings"] if one["check"] == "topics"]
    assert topics == ["9 topics are as they have to be (Kafka does not tell its version)"], told.stdout
    assert up.stop() == 0


@pytest.fixture
def small_disk(data_folder: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a disk of so many MB, which only root can."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    disk = data_folder / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        if subprocess.run(command, check=False, capture_output=True).returncode != 0:
            pytest.skip("this machine lets nobody mount a small disk")
        return disk

    yield mount
    subprocess.run(["umount", "-q", disk], check=False)


@pytest.mark.parametrize("size", [12, 64])
def test_a_full_disk_is_said_in_one_line(small_disk: Callable[..., Path], start_up: StartUp, size: int) -> None:
    data = small_disk(f"size={size}m") / "data"
    up = start_up(data)
    assert up.ended() == 1
    last = up.said.splitlines()[-1]
    assert last.startswith("attache: ")
    assert last.endswith("the disk is full")
    assert "Traceback" not in up.said
    assert not up.servers()
    assert not up.run_file.exists()


def test_a_disk_that_cannot_be_written_is_said_in_one_line(small_disk: Callable[..., Path], start_up: StartUp) -> None:
    data = small_disk("size=1m,ro") / "data"
    assert _one_line(start_up(data)) == f"attache: {data} cannot be used: Read-only file system"


# How it stops


def _in_initdb(up: Up) -> bool:
    return (up.data / "postgres" / "data.new" / "global").exists()


def _in_migration(up: Up) -> bool:
    log = up.data / "services.log"
    return log.exists() and "Running upgrade" in log.read_text(encoding="utf-8") and not _loads(up)


def _loads(up: Up) -> bool:
    return (up.data / "secrets" / "demo.json").exists()


def _held_in(phase: Callable[[Up], bool], start_up: StartUp, folder: Path) -> Up:
    """A start that stands still in a phase; another one where that was missed, since who looks may be held up too."""
    for number in range(TRIES):
        up = start_up(folder / f"{number}" / "data")
        up.until(lambda up=up: phase(up) or _loads(up), what=phase.__name__)  # type: ignore[misc]
        up.process.send_signal(signal.SIGSTOP)
        os.waitpid(up.process.pid, os.WUNTRACED)
        if phase(up):
            break
        up.process.send_signal(signal.SIGCONT)
        assert up.stop() == 0
    return up


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        (_in_initdb, signal.SIGINT),
        (_in_initdb, signal.SIGTERM),
        (_in_migration, signal.SIGTERM),
    ],
)
def test_a_signal_stops_it_before_anything_is_served(
    start_up: StartUp, data_folder: Path, phase: Callable[[Up], bool], number: signal.Signals
) -> None:
    up = _held_in(phase, start_up, data_folder)
    up.process.send_signal(number)
    assert up.stop(signal.SIGCONT) == 0
    assert up.said.splitlines()[1:] == ["stopping"]
    assert up.printed == ""
    assert not up.servers()
    assert not up.run_file.exists()


def test_a_closed_terminal_stops_what_serves_even_while_clients_hold_on(start_up: StartUp, loaded_folder: Path) -> None:
    up = start_up(loaded_folder)
    run = up.ready()
    with httpx.Client(base_url=run["base"], trust_env=False, timeout=PATIENCE) as client:
        assert client.get("/").status_code == 200  # and the connection is kept
        assert up.stop(signal.SIGHUP) == 0  # and not as long as clients like
    assert up.said.splitlines()[1:] == ["stopping"]
    assert not up.servers()
    assert not up.run_file.exists()


def test_under_nohup_a_closed_terminal_stops_nothing(start_up: StartUp, loaded_folder: Path) -> None:
    up = start_up(loaded_folder, hangup=signal.SIG_IGN)
    run = up.ready()
    up.process.send_signal(signal.SIGHUP)
    with httpx.Client(base_url=run["base"], trust_env=False, timeout=PATIENCE) as client:
        assert client.get("/").status_code == 200
    assert "stopping" not in up.said
    assert up.stop() == 0


def test_a_second_ctrl_c_does_not_wait_for_a_request(start_up: StartUp, loaded_folder: Path) -> None:
    # the request would have had ten seconds; once of a few times the machine does not take as long
    assert any(_seconds_of_a_hurried_stop(start_up, loaded_folder) < 9 for _ in range(TRIES))


def _seconds_of_a_hurried_stop(start_up: StartUp, folder: Path) -> float:
    up = start_up(folder)
    port = int(up.ready()["base"].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(b"POST /schedule/trips HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{")
        with httpx.Client(trust_env=False, timeout=PATIENCE) as client:
            client.get(f"http://127.0.0.1:{port}/schedule/healthz")  # so the slow one has begun
        began = time.monotonic()
        up.process.send_signal(signal.SIGINT)
        up.until(lambda: "stopping" in up.said)
        up.process.send_signal(signal.SIGINT)
        assert up.ended() == 0
        seconds = time.monotonic() - began
    assert "Traceback" not in up.said
    assert not up.servers()
    return seconds


def _sql(folder: Path, database: str, statement: str) -> None:
    async def run(url: str) -> None:
        connection = await asyncpg.connect(url.replace("+asyncpg", ""))
        await connection.execute(statement)
        await connection.close()

    with EmbeddedPostgres(folder) as server:
        asyncio.run(run(server.url(database)))


def test_data_of_a_newer_version_are_refused_in_one_line(start_up: StartUp, loaded_folder: Path) -> None:
    _sql(loaded_folder, "participants", "UPDATE alembic_version SET version_num = '9999'")
    said = _one_line(start_up(loaded_folder))
    assert said.startswith("attache: the database participants cannot be brought to this version: ")
    assert "9999" in said


def test_a_service_that_does_not_start_is_named_and_all_else_is_stopped(start_up: StartUp, loaded_folder: Path) -> None:
    _sql(loaded_folder, "notifications", "ALTER TABLE instance RENAME TO lost")
    said = _one_line(start_up(loaded_folder))
    assert said.startswith("attache: the service notifications did not start: ")
    assert '"instance"' in said


def test_a_database_that_dies_ends_it_with_one_line(start_up: StartUp, loaded_folder: Path) -> None:
    up = start_up(loaded_folder)
    up.ready()
    head = int((up.data / "postgres" / "data" / "postmaster.pid").read_text().split("\n")[0])
    os.kill(head, signal.SIGKILL)
    assert up.ended() == 1
    assert up.said.splitlines()[-1].startswith("attache: PostgreSQL has ended by itself")
    assert "Traceback" not in up.said
    assert not up.run_file.exists()


def test_what_a_kill_left_running_is_ended_by_the_next_start(
    start_up: StartUp, loaded_folder: Path, until: Until
) -> None:
    first = start_up(loaded_folder)
    first.ready()
    left = first.servers()
    head = int((first.data / "postgres" / "data" / "postmaster.pid").read_text().split("\n")[0])
    os.kill(head, signal.SIGSTOP)  # so that it cannot heed the signal that its owner's death sends
    first.process.kill()
    first.process.wait()
    assert head in first.servers()
    old = first.run_file.stat().st_ino
    second = start_up(loaded_folder)
    until(lambda: "data in" in second.said)
    # gone at the start, long before all is ready again and there is another one
    assert old not in [file.stat().st_ino for file in loaded_folder.glob("run.json")]
    with suppress(ProcessLookupError):
        os.kill(head, signal.SIGCONT)
    second.ready()
    assert not set(left) & set(second.servers())


@pytest.mark.skipif(not (ROOT / ".venv" / "bin" / "python").exists(), reason="no .venv: this is not run by make")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_make_is_the_end_of_all(loaded_folder: Path, until: Until, number: signal.Signals) -> None:
    command = ["make", "run", "PORT=0", f"DATA={loaded_folder}"]
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as make:
        until((loaded_folder / "run.json").exists, what="ready")
        make.send_signal(number)
        make.wait(PATIENCE)
    postgres = EmbeddedPostgres(loaded_folder)
    postgres.claim(PATIENCE)  # the folder is let go of when the program has ended
    postgres.stop()
    assert not (loaded_folder / "run.json").exists()


# What it takes


def test_play_shows_a_step_a_second_after_the_feeds_until_it_is_stopped(start_up: StartUp, data_folder: Path) -> None:
    up = start_up(data_folder / "data", "--play")
    total = len(read_trip_file(DEMO).steps)
    plan = len(read_trip_file(DEMO).plan)
    up.until(lambda: f"{plan + 3}/{total} " in up.said)
    assert up.said.index("/feeds/") < up.said.index(f"{plan + 1}/{total} ")
    assert not up.run_file.exists()
    assert up.stop(signal.SIGINT) == 0  # in the middle of the load
    assert up.said.splitlines()[-1] == "stopping"
    assert up.printed == ""
    assert not up.servers()
    done = _done_at(up)
    assert (done[plan + 2] - done[plan]).total_seconds() > 1.5


def _done_at(up: Up) -> list[datetime]:
    """When each command was done, by the log."""
    lines = map(json.loads, (up.data / "services.log").read_text(encoding="utf-8").splitlines())
    return [
        datetime.fromisoformat(line["timestamp"])
        for line in lines
        if line["event"] == "http.answered" and line["method"] == "POST" and line["status"] in (200, 201)
    ]


def test_the_shell_s_own_variables_are_not_taken_for_ours(start_up: StartUp, loaded_folder: Path) -> None:
    environment = {
        "DATABASE_URL": "mysql://elsewhere/none",
        "BUS_URL": "mysql://elsewhere/none",
        "HOST": "elsewhere",
        "PORT": "3000",
        "PGHOST": "elsewhere",
        "PGSSLMODE": "require",
        "PGSERVICE": "none",
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "ALL_PROXY": "http://127.0.0.1:9",
    }
    up = start_up(loaded_folder, environment=environment)
    up.ready()
    assert up.stop() == 0


def test_a_lost_token_file_is_made_again(start_up: StartUp, loaded_folder: Path) -> None:
    (loaded_folder / "tokens").unlink()
    up = start_up(loaded_folder)
    run = up.ready()
    headers = {"Authorization": f"Bearer {run['token']}"}
    answer = httpx.get(
        f"{run['base']}/schedule/trips/{run['trip']}", headers=headers, trust_env=False, timeout=PATIENCE
    )
    assert answer.status_code == 200


def test_the_log_does_not_grow_without_end(tmp_path: Path) -> None:
    path = tmp_path / "services.log"
    log = Log(path, limit=10)
    for line in ("first\n", "second\n", "third\n"):
        log.write(line)
    log.close()
    assert (path.read_text(), (tmp_path / "services.log.before").read_text()) == ("third\n", "second\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:8080", True),
        ("localhost", True),
        ("localhost:9", True),
        ("[::1]:8080", True),
        ("192.0.2.7:8080", True),
        ("rebound.example:8080", False),
        ("rebound.example", False),
        ("", False),
    ],
)
def test_the_page_is_for_addresses_of_this_machine(host: str, ours: bool) -> None:
    assert is_ours(host) is ours

"""The embedded PostgreSQL: what it makes, whom it keeps apart, and how it comes back after a kill."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from unittest.mock import Mock

import asyncpg
import pytest

from services import embedded_server
from services.embedded import CannotStart, EmbeddedPostgres
from services.embedded_server import server_pids

ROOT = Path(__file__).resolve().parent.parent
OWNER = """
import sys, time
from pathlib import Path
from services.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
print(server.pid, flush=True)
time.sleep(600)
"""


def _ask(url: str, query: str) -> object:
    async def ask() -> object:
        connection = await asyncpg.connect(url.replace("+asyncpg", ""), timeout=30)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(ask())


def _until(holds: Callable[[], bool], patience: float = 60) -> None:
    end = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < end, "it did not come to hold in time"
        time.sleep(0.02)


@pytest.fixture
def owner(data_folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that has started the server on the data folder."""
    command = [sys.executable, "-c", OWNER, str(data_folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
        process.kill()
    _until(lambda: not list(server_pids(data_folder.resolve() / "postgres" / "data")))


def test_each_role_reaches_its_own_database_and_no_other(data_folder: Path) -> None:
    with EmbeddedPostgres(data_folder, databases=("schedule", "participants")) as server:
        schedule, participants = server.url("schedule"), server.url("participants")
        assert _ask(schedule, "SELECT current_user || '@' || current_database()") == "schedule@schedule"
        assert _ask(participants, "SELECT current_user || '@' || current_database()") == "participants@participants"
        for other in ("participants", "postgres"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                _ask(f"{schedule.rpartition('/')[0]}/{other}", "SELECT 1")
        with pytest.raises(asyncpg.InvalidPasswordError):
            _ask(schedule.replace("//schedule:", "//participants:"), "SELECT 1")


def test_its_passwords_are_for_their_owner_alone(data_folder: Path) -> None:
    with EmbeddedPostgres(data_folder, databases=("bus",)):
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (data_folder / "secrets").iterdir()}
        assert modes == {"database-postgres": 0o600, "database-bus": 0o600}
        assert stat.S_IMODE((data_folder / "secrets").stat().st_mode) == 0o700


def test_a_second_start_finds_data_and_addresses_again(data_folder: Path) -> None:
    with EmbeddedPostgres(data_folder) as server:
        url = server.url("schedule")
        _ask(url, "CREATE TABLE kept AS SELECT 7 AS number")
    with EmbeddedPostgres(data_folder) as server:
        assert server.url("schedule") == url
        assert _ask(url, "SELECT number FROM kept") == 7


def test_a_second_run_on_the_same_data_is_refused(data_folder: Path, owner: "subprocess.Popen[str]") -> None:
    with pytest.raises(CannotStart) as refused:
        EmbeddedPostgres(data_folder).start()
    assert str(refused.value) == (
        f"{data_folder} is in use by process {owner.pid}: stop that first, or give another folder with DATA="
    )
    assert list(server_pids(data_folder.resolve() / "postgres" / "data"))


def test_a_killed_owner_takes_its_server_with_it(data_folder: Path, owner: "subprocess.Popen[str]") -> None:
    owner.kill()
    _until(lambda: not list(server_pids(data_folder.resolve() / "postgres" / "data")))


def test_a_start_after_a_kill_of_everything_goes_on_with_the_data(
    data_folder: Path, owner: "subprocess.Popen[str]"
) -> None:
    data = data_folder.resolve() / "postgres" / "data"
    head = int((data / "postmaster.pid").read_text().split("\n")[0])
    os.kill(head, signal.SIGKILL)
    owner.kill()
    owner.wait()
    with EmbeddedPostgres(data_folder) as server:
        assert _ask(server.url("bus"), "SELECT current_user::text") == "bus"


def test_a_killed_server_is_started_again_by_the_process_that_had_started_it(data_folder: Path) -> None:
    data = data_folder.resolve() / "postgres" / "data"
    with EmbeddedPostgres(data_folder) as server:
        url, head = server.url("bus"), server.pid
        for pid in list(server_pids(data)):
            with suppress(ProcessLookupError):  # backends end by themselves when their head has
                os.kill(pid, signal.SIGKILL)
        # nobody has waited for the head: it is a zombie, whose id still counts as taken
        _until(lambda: not list(server_pids(data)))
        server.start()
        assert server.pid != head
        assert _ask(url, "SELECT current_user::text") == "bus"


def test_a_start_of_what_runs_is_a_restart(data_folder: Path) -> None:
    with EmbeddedPostgres(data_folder) as server:
        head = server.pid
        server.start()
        assert server.pid != head
        assert _ask(server.url("bus"), "SELECT current_user::text") == "bus"


def test_a_start_ends_the_server_that_a_kill_left_running(data_folder: Path, owner: "subprocess.Popen[str]") -> None:
    data = data_folder.resolve() / "postgres" / "data"
    head = int((data / "postmaster.pid").read_text().split("\n")[0])
    backends = set(server_pids(data)) - {head}
    # stopped, it cannot heed the signal that comes with its owner's death
    os.kill(head, signal.SIGSTOP)
    owner.kill()
    owner.wait()
    os.kill(head, signal.SIGKILL)
    with EmbeddedPostgres(data_folder) as server:
        assert server.pid != head
        assert not backends & set(server_pids(data))
        assert _ask(server.url("bus"), "SELECT current_user::text") == "bus"


def test_a_half_made_data_folder_is_made_anew(data_folder: Path) -> None:
    half = data_folder / "postgres" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(data_folder) as server:
        assert _ask(server.url("schedule"), "SELECT current_user::text") == "schedule"


def test_data_of_another_major_version_is_refused(data_folder: Path) -> None:
    with EmbeddedPostgres(data_folder, databases=()):
        pass
    (data_folder / "postgres" / "data" / "PG_VERSION").write_text("17\n")
    with pytest.raises(CannotStart, match=r"was made by PostgreSQL 17 and this is PostgreSQL 18: .*DATA="):
        EmbeddedPostgres(data_folder).start()


def test_data_without_its_password_is_refused_and_left_alone(data_folder: Path) -> None:
    with EmbeddedPostgres(data_folder, databases=()):
        pass
    secret = data_folder / "secrets" / "database-postgres"
    kept = secret.read_text()
    secret.unlink()
    with pytest.raises(CannotStart, match=r"database-postgres is gone"):
        EmbeddedPostgres(data_folder).start()
    secret.write_text(kept)
    with EmbeddedPostgres(data_folder, databases=()) as server:
        assert _ask(server.superuser_url, "SELECT 1") == 1


def test_a_file_in_place_of_the_folder_is_refused_in_one_line(data_folder: Path) -> None:
    (data_folder / "taken").write_text("a note")
    with pytest.raises(CannotStart) as refused:
        EmbeddedPostgres(data_folder / "taken").start()
    assert str(refused.value) == f"{data_folder / 'taken'} cannot be used: File exists"


def test_a_port_that_was_taken_meanwhile_is_given_up(data_folder: Path) -> None:
    with EmbeddedPostgres(data_folder / "one", databases=("bus",)) as one:
        port = (data_folder / "one" / "postgres" / "port").read_text()
        (data_folder / "two" / "postgres").mkdir(parents=True)
        (data_folder / "two" / "postgres" / "port").write_text(port)
        with EmbeddedPostgres(data_folder / "two", databases=("bus",)) as two:
            assert _ask(two.url("bus"), "SELECT inet_server_port()") != int(port)
        assert _ask(one.url("bus"), "SELECT inet_server_port()") == int(port)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
def test_a_full_disk_is_said_in_one_line(data_folder: Path) -> None:
    disk = data_folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=False).returncode != 0:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        with pytest.raises(CannotStart) as refused:
            EmbeddedPostgres(disk / "data").start()
        assert str(refused.value) == (
            f"PostgreSQL could not be set up in {disk / 'data' / 'postgres'}: the disk is full"
        )
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has namespaces")
def test_a_namespace_that_cannot_be_entered_is_a_line_and_its_reason_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_server, "_step_inside", Mock(side_effect=OSError(28, "No space left on device")))
    inside = embedded_server.Account(uid=os.geteuid(), gid=os.getegid(), namespace=True)
    with (tmp_path / "log").open("wb") as log, pytest.raises(CannotStart, match=r"could not enter a user namespace"):
        inside.popen(["true"], tmp_path, log)
    assert "No space left on device" in (tmp_path / "log").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
def test_root_may_keep_the_data_in_a_closed_folder(data_folder: Path) -> None:
    data_folder.chmod(0o700)
    with EmbeddedPostgres(data_folder, databases=("bus",)) as server:
        assert _ask(server.url("bus"), "SELECT current_user::text") == "bus"
        assert Path(f"/proc/{server.pid}/status").read_text().count("CapEff:\t0000000000000000") == 1

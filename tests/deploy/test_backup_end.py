"""How a backup ends: nothing of it is left, in the folder or in a container, whatever ended it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from deploy import server
from deploy.server import Server, held_wal, lent, scratch
from deploy.stack import Stack, Unable, start
from tests.deploy.fake_docker import ECHOES, HANGS, Answer, FakeDocker
from tests.deploy.test_backup_words import RUNNING, docker

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 60.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
UNDER_WAY: Mapping[str, str | Answer] = {
    **RUNNING,
    "pg_database_size": "1000\n",
    "df --output": "Avail\n30000000\n",
    "pg_basebackup": "a base",
    "inspect": "sha256:0123\n",
    "run --interactive --rm": ECHOES,
    "mkdir": HANGS,  # by then the container is there
    "exec --interactive --user postgres 0123 psql": ECHOES,  # the session that holds the WAL
    "exec --interactive": "",
}
__all__ = ["docker"]


def until(holds: Callable[[], object], process: "subprocess.Popen[str] | None" = None) -> None:
    """Wait for it; a process that has ended brings nothing more."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.02)


def _as_from_a_terminal() -> None:
    """A child inherits what is ignored, and these tests may themselves run in the background or under nohup."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def containers(docker: FakeDocker) -> list[list[str]]:
    """Those that were there and have ended."""
    return [one.split()[:3] for one in docker.ended if one.startswith("run")]


@pytest.fixture
def backup(tmp_path: Path, docker: FakeDocker) -> Iterator["subprocess.Popen[str]"]:
    """One that has come as far as its container."""
    docker.answer(UNDER_WAY)
    command = [sys.executable, "-m", "deploy.backup", "--to", str(tmp_path / "to")]
    with subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=_as_from_a_terminal
    ) as process:
        try:
            until(lambda: any(asked.endswith("/restoring") for asked in docker.asked), process)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_backup_that_is_ended_leaves_no_container_and_no_file(
    number: signal.Signals, backup: "subprocess.Popen[str]", tmp_path: Path, docker: FakeDocker
) -> None:
    assert containers(docker) == []
    backup.send_signal(number)
    _, said = backup.communicate(timeout=PATIENCE_SECONDS)
    assert (backup.returncode, said) == (128 + number, "backup: interrupted; nothing was kept\n")
    assert containers(docker) == [["run", "--interactive", "--rm"]]
    assert [file.name for file in tmp_path.iterdir()] == ["bin"]


def test_a_backup_that_is_killed_leaves_no_container(backup: "subprocess.Popen[str]", docker: FakeDocker) -> None:
    backup.kill()
    until(lambda: containers(docker))


def test_a_container_that_does_not_start_is_told_in_dockers_words(docker: FakeDocker) -> None:
    docker.answer({"run": ("", "Unable to find image\ndocker: no such image\n", 125)})
    with pytest.raises(Unable, match=r"^docker: no such image$"), scratch("none"):
        pytest.fail("there is none")


def test_a_server_that_holds_no_wal_is_told_in_its_own_words(
    docker: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*arguments: object, **options: object) -> "subprocess.Popen[bytes]":
        process = start(*arguments, **options)  # type: ignore[arg-type]
        process.wait()
        return process

    monkeypatch.setattr(server, "start", ended)
    docker.answer({"exec": ("", "psql: error: FATAL:  the database system is shutting down\n", 2)})
    said = r"^the server keeps no WAL for a backup: psql: error: FATAL:  the database system is shutting down$"
    with pytest.raises(Unable, match=said), held_wal(Server(container="0123")):
        pytest.fail("it holds none")


def test_a_lent_container_that_is_interrupted_at_its_start_is_removed(docker: FakeDocker) -> None:
    docker.answer({"config": '{"name": "attache"}', "rm --force": "", "run --detach": HANGS})

    def interrupt() -> None:
        until(lambda: any("run --detach" in asked for asked in docker.asked))
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sender = threading.Thread(target=interrupt)
    sender.start()
    try:
        with pytest.raises(KeyboardInterrupt), lent(Stack()):
            pytest.fail("it hangs")
    finally:
        sender.join()
        signal.signal(signal.SIGINT, before)
    assert [asked.split()[1:3] for asked in docker.ended] == [["--progress", "quiet"]]
    assert docker.asked[-1] == "rm --force attache-restoring"

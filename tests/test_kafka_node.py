"""Apache Kafka from jars: one readable line where it cannot run, and nothing left behind when it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.kafka_node import NodeUnable, answers, check_java, fetch_jars, free_port, main
from tests.kafka_fixture import unavailable

ROOT = Path(__file__).resolve().parent.parent


def test_a_taken_port_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--dir", str(tmp_path), "--port", str(port)]) == 1
    told = f"port {port} of 127.0.0.1 is taken: give another one, or stop what listens there\n"
    assert capsys.readouterr() == ("", told)


def test_a_machine_without_java_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NodeUnable, match=r"^Java is not on the path: Kafka needs Java 17 or newer "):
        check_java()


def test_an_old_java_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path / "java", """echo 'openjdk version "11.0.2" 2019-01-15' >&2""")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(NodeUnable, match=r'this machine has openjdk version "11\.0\.2" 2019-01-15$'):
        check_java()


def test_a_machine_without_maven_is_told_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NodeUnable, match=r"^Maven \(mvn\) is not on the path: "):
        fetch_jars(tmp_path / "jars")


def test_a_maven_that_fails_is_quoted_and_its_folder_not_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _program(tmp_path / "mvn", "echo '[ERROR] Could not transfer artifact x'; echo '[ERROR] more'; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for _ in range(2):
        with pytest.raises(NodeUnable, match=r"^Maven could not fetch Kafka's jars: Could not transfer artifact x$"):
            fetch_jars(tmp_path / "jars")


@pytest.mark.parametrize(("how", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_the_command_takes_its_kafka_with_it(tmp_path: Path, how: signal.Signals, code: int) -> None:
    try:
        check_java()
        fetch_jars()
    except NodeUnable as unable:
        unavailable(f"no Kafka: {unable}")
    port = free_port()
    command = [sys.executable, "-m", "deploy.kafka_node", "--dir", str(tmp_path), "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"Kafka is ready on 127.0.0.1:{port}, data in {tmp_path}, Ctrl-C stops it\n"
        assert answers(port)
        process.send_signal(how)
        assert process.wait(120) == code
    deadline = time.monotonic() + 120
    while answers(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not answers(port)


def _program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)

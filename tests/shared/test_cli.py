"""What a service's command line says when it cannot start: one readable line, before anything is begun."""

import os
import socket
import subprocess
import sys

import pytest
import structlog

from services.schedule.__main__ import PROGRAM
from shared.cli import run
from shared.settings import ESCAPED

NOWHERE = "postgresql+asyncpg://somebody:Kanarienvogel@127.0.0.1:9/nothing"


def _served(**settings: str) -> tuple[int, str]:
    given = {"DATABASE_URL": NOWHERE, "BUS_URL": NOWHERE, "SERVICE_TOKEN": "attache_canary", **settings}
    done = subprocess.run(
        [sys.executable, "-m", "services.schedule", "serve"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={"PATH": os.environ["PATH"], "LOG_FORMAT": "json", **given},
    )
    return done.returncode, done.stderr


def test_a_redrive_that_fails_unforeseen_is_not_said_to_have_left_something_parked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(*_: object) -> int:
        raise ZeroDivisionError

    for name, value in {"DATABASE_URL": NOWHERE, "BUS_URL": NOWHERE, "SERVICE_TOKEN": "attache_canary"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("shared.cli._redrive", fail)
    monkeypatch.setattr("shared.cli.set_up", lambda *_, **__: None)
    with structlog.testing.capture_logs():
        assert run(PROGRAM, ["redrive"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "schedule: not done: ZeroDivisionError"


def test_a_port_that_is_taken_is_said_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert _served(SCHEDULE_PORT=str(port)) == (
            1,
            f"schedule: cannot listen on 127.0.0.1 port {port}: Address already in use\n",
        )


def test_a_wrong_setting_is_said_in_one_line_without_its_value() -> None:
    shape = "should be postgresql+asyncpg://user:password@host:port/name"
    assert _served(DATABASE_URL="postgresql://somebody:Kanarienvogel@127.0.0.1/nothing") == (
        1,
        f"schedule: SCHEDULE_DATABASE_URL or DATABASE_URL: {shape}, {ESCAPED}\n",
    )


def test_a_database_that_does_not_answer_is_said_in_one_line() -> None:
    code, said = _served(SCHEDULE_PORT="0")
    assert code == 1
    line = "schedule: the database does not answer: ConnectionRefusedError at 127.0.0.1: see whether it is up"
    assert said.splitlines()[-1] == line
    assert "Kanarienvogel" not in said

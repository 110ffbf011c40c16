"""What is measured is a project of its own: nothing of where it is started goes in, and nothing of it is left."""

import json
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from bench import stack
from deploy.stack import ROOT
from tests.compose import running_stack
from tests.deploy.fake_docker import HANGS, LASTS, Answer, FakeDocker
from tests.deploy.test_backup_end import PATIENCE_SECONDS, SIGNALS, _as_from_a_terminal, until
from tests.deploy.test_backup_words import docker

__all__ = ["docker"]
ANSWERS: dict[str, str | Answer] = {
    "image inspect": json.dumps([{"Size": 5_000_000}]),
    "image rm": "",
    " config ": json.dumps({"name": "x", "services": {"schedule": {"image": "ours"}}}),
    "ps --quiet": "c1\n",
    "stats": json.dumps({"Name": "x-proxy-1", "MemUsage": "10MiB / 1GiB", "CPUPerc": "0.5%"}),
    " build": "",
    " up ": "",
    " run ": "",
    " down ": "",
}
THE_FILE = f"--file {re.escape(str(ROOT))}/docker-compose\\.yml"
"""No override beside it, which may name a volume that is somebody's."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The secrets of who runs it; and temporary files are where they can be looked for."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("ATTACHE_SECRETS", str(tmp_path / "secrets"))
    for name in ("KAFKA_BOOTSTRAP", "COMPOSE_PROFILES", "COMPOSE_ENV_FILES", "COMPOSE_FILE", "TOPIC_REPLICATION"):
        monkeypatch.setenv(name, "theirs")
    monkeypatch.setenv("DOCKER_HOST", "unix:///kept")
    return tmp_path / "secrets"


def test_nothing_of_who_runs_it_goes_in_and_nothing_is_left(
    docker: FakeDocker, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docker.answer(ANSWERS)
    assert stack.main(["--samples", "1"]) == 0
    assert "at rest: 10 MB" in capsys.readouterr().out
    composed = [one for one in docker.asked if one.startswith("compose ")]
    own = rf"compose {THE_FILE} --env-file .+/attache-bench-\w+/\.env "
    assert [one for one in composed if not re.match(own, one)] == []
    for asked, environment in zip(docker.asked, docker.environments, strict=True):
        if asked in composed:
            assert [name for name, value in environment.items() if value == "theirs" or name == "ATTACHE_SECRETS"] == []
        assert environment["DOCKER_HOST"] == "unix:///kept"
    project = docker.environments[0]["COMPOSE_PROJECT_NAME"]
    assert docker.asked[-2].endswith("--profile * down --volumes --timeout 5")
    assert docker.asked[-1] == f"image rm attache/{project}"
    assert [*elsewhere.parent.joinpath("tmp").iterdir()] == []
    assert not elsewhere.exists()


def test_a_project_of_the_tests_is_of_the_file_alone(docker: FakeDocker, tmp_path: Path) -> None:
    docker.answer(ANSWERS)
    running_stack.compose("x", tmp_path / ".env", "--profile", "*", "down", "--volumes")
    assert re.match(rf"compose {THE_FILE} --project-name x ", docker.asked[0])
    assert "COMPOSE_FILE" not in docker.environments[0]


def test_what_cannot_be_built_is_one_line_and_nothing_is_left(
    docker: FakeDocker, capsys: pytest.CaptureFixture[str]
) -> None:
    docker.answer(ANSWERS | {" build": ("", "no builder\n", 1), "image rm": ("", "no such image\n", 1)})
    assert stack.main([]) == 2
    assert capsys.readouterr().err == "stack: no builder\n"
    assert " down " in docker.asked[-2]


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_ended_leaves_nothing_even_if_it_is_told_twice(
    docker: FakeDocker, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    docker.answer(ANSWERS | {" up ": HANGS, " down ": LASTS})
    monkeypatch.setenv("TMPDIR", str(elsewhere.parent / "tmp"))
    with subprocess.Popen(
        [sys.executable, "-m", "bench.stack"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_as_from_a_terminal,
    ) as process:
        try:
            for words in (" up ", " down "):
                until(partial(_asked, docker, words), process)
                process.send_signal(number)
            _, said = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert (process.returncode, said) == (128 + number, "stack: interrupted\n")
    assert docker.asked[-1].startswith("image rm ")
    assert [*elsewhere.parent.joinpath("tmp").iterdir()] == []


def _asked(docker: FakeDocker, words: str) -> bool:
    return any(words in one for one in docker.asked)


def test_a_place_that_cannot_be_written_to_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert stack.main([]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1

"""`make up`: what Compose is told by Make, what is found in `.env`, and what is said where something fails."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.make_secrets import make
from deploy.up import strangers

ROOT = Path(__file__).parents[2]
DOCKER = """#!/bin/sh
case "$*" in
  *" ps "*) echo '{"Service": "migrate", "ExitCode": 1, "State": "exited"}' ;;
  *" logs "*) echo "attache: migrate: the secret file x is empty" ;;
  *) echo "told [$PORT] $*" ;;
esac
exit 1
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make up: there is no make")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that `make up` needs, and a `docker` that says what it was told, and that migrate has failed."""
    (tmp_path / "bin").mkdir()
    docker = tmp_path / "bin" / "docker"
    docker.write_text(DOCKER, encoding="utf-8")
    docker.chmod(0o755)
    for name in ("Makefile", "docker-compose.yml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "deploy").mkdir()
    for name in ("up.py", "make_secrets.py", "env_file.py"):
        shutil.copy(ROOT / "deploy" / name, tmp_path / "deploy")
    (tmp_path / ".env").write_text("PORT=9090\n", encoding="utf-8")
    return tmp_path


def up(checkout: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    environment["PATH"] = f"{checkout / 'bin'}{os.pathsep}{environment['PATH']}"
    command = ["make", "up", *words]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def said(checkout: Path) -> list[str]:
    """Our own lines."""
    return [line for line in up(checkout).stderr.splitlines() if line.startswith("attache: ")]


def test_the_port_of_the_env_file_counts_unless_another_is_given(checkout: Path) -> None:
    assert "told []" in up(checkout).stdout
    assert "told [8111]" in up(checkout, "PORT=8111").stdout


@pytest.mark.parametrize(
    ("environment", "said", "profiles"),
    [
        (None, "", "--profile cluster"),
        ("observability, mail", "COMPOSE_PROFILES=tools\n", "--profile observability --profile mail --profile cluster"),
        (None, "COMPOSE_PROFILES=cluster,tools\n", "--profile tools --profile cluster"),
        ("", "COMPOSE_PROFILES=tools\n", "--profile cluster"),
    ],
)
def test_a_cluster_is_one_profile_more(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, environment: str | None, said: str, profiles: str
) -> None:
    (checkout / ".env").write_text(said, encoding="utf-8")
    if environment is not None:
        monkeypatch.setenv("COMPOSE_PROFILES", environment)
    files = f"--env-file {checkout}/.env --env-file {checkout}/deploy/cluster.env"
    assert f"compose {files} {profiles} up --build --wait" in up(checkout, "CLUSTER=1").stdout
    assert "--profile" not in up(checkout).stdout


def test_an_env_that_compose_refuses_is_one_line(checkout: Path) -> None:
    (checkout / ".env").write_text("PORT='1\n", encoding="utf-8")
    assert said(checkout) == [f"attache: {checkout}/.env: line 1: the quotes of PORT are not closed"]
    assert not (checkout / "deploy" / "secrets").exists()


def test_an_env_with_bytes_that_are_no_text_is_no_hindrance(checkout: Path) -> None:
    (checkout / ".env").write_bytes("# für\nPORT=9090".encode("latin-1"))
    assert "told []" in up(checkout).stdout
    assert (checkout / ".env").read_bytes().startswith("# für\nPORT=9090\nATTACHE".encode("latin-1"))


def test_what_failed_is_told_once_in_its_own_words(checkout: Path) -> None:
    assert said(checkout) == ["attache: migrate: the secret file x is empty"]


@pytest.mark.parametrize(
    "listed",
    [
        [
            {"Service": "kafka", "ExitCode": 0, "State": "running"},
            {"Service": "migrate", "ExitCode": 1, "State": "exited"},
        ],
        [],
    ],
)
def test_what_failed_is_found_where_an_older_compose_lists_it_in_one_array(
    checkout: Path, listed: list[dict[str, object]]
) -> None:
    docker = checkout / "bin" / "docker"
    one = json.dumps({"Service": "migrate", "ExitCode": 1, "State": "exited"})
    assert one in DOCKER
    docker.write_text(DOCKER.replace(one, json.dumps(listed, indent=1)), encoding="utf-8")
    assert said(checkout) == ["attache: migrate: the secret file x is empty"] * bool(listed)


def test_containers_are_made_anew_where_a_secret_was(checkout: Path) -> None:
    make(checkout / ".env")
    assert "--force-recreate" not in up(checkout).stdout
    (checkout / "deploy" / "secrets" / "planner_token").unlink()
    told = up(checkout).stdout
    assert "made deploy/secrets/planner_token\n" in told
    assert "compose up --build --wait --force-recreate\n" in told
    (checkout / "deploy" / "secrets" / "planner_token").unlink()
    assert "--force-recreate" not in up(checkout, "ARGS=--no-recreate").stdout


def test_secrets_may_be_anywhere(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("elsewhere") / "secrets"
    with (checkout / ".env").open("a", encoding="utf-8") as env:
        env.write(f"ATTACHE_SECRETS={folder}\n")
    assert f"made {folder / 'planner_token'}\n" in up(checkout).stdout


def test_a_variable_that_means_nothing_is_told(checkout: Path) -> None:
    settings = "TOPIC_PARTITION=8\nLOG_LEVEL=debug\nCOMPOSE_PROJECT_NAME=other\n"
    (checkout / ".env").write_text(settings, encoding="utf-8")
    line = "attache: .env: TOPIC_PARTITION is no setting of docker-compose.yml and does nothing"
    assert said(checkout)[0] == f"{line} (near it: TOPIC_PARTITIONS)"
    assert len(said(checkout)) == 2
    with (checkout / ".env").open("a", encoding="utf-8") as env:
        env.write("ROOT_OF=/srv\nATTACHE_SECRETS=${ROOT_OF}/secrets # one that another is made of\n")
        env.write("# what is told in $PROT counts not, nor '$BIMD'\nPROT=2\nBIMD=x\n")
    assert [line.split()[1] for line in strangers(checkout / ".env")] == ["TOPIC_PARTITION", "PROT", "BIMD"]
    with (checkout / ".env").open("a", encoding="utf-8") as env:
        env.write("COMPOSE_FILE=docker-compose.yml:mine.yml\n")
    assert len(said(checkout)) == 1

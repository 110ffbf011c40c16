"""What `make secrets` writes: everything once, nothing twice, and what the services can read."""

import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from deploy.env_file import read_env
from deploy.make_secrets import SERVICES, TOKENS, CannotMake, cluster_id, main, make
from shared.settings import is_sample
from shared.tokens import callers_of
from tests.deploy.compose_file import compose_answers

NAMES = {
    *("postgres_password", "grafana_password", "planner_token", "operator_token", "tokens"),
    *(f"{name}_{kind}" for name in SERVICES for kind in ("database_url", "service_token")),
}


@pytest.fixture
def env(tmp_path: Path) -> Path:
    return tmp_path / ".env"


def _content(env: Path) -> dict[str, str]:
    folder = env.parent / "deploy" / "secrets"
    return {path.name: path.read_text(encoding="utf-8").strip() for path in folder.iterdir()}


def test_everything_is_made_once_and_left_alone_afterwards(env: Path) -> None:
    assert len(make(env)) == len(NAMES) + 1
    made, said = _content(env), env.read_text(encoding="utf-8")
    assert set(made) == NAMES
    assert make(env) == []
    assert (_content(env), env.read_text(encoding="utf-8")) == (made, said)


def test_a_token_that_was_taken_away_ends_even_where_the_new_one_cannot_be_written(
    env: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(env)
    folder = env.parent / "deploy" / "secrets"
    leaked = _content(env)["planner_token"]
    (folder / "planner_token").unlink()

    def full(path: Path, content: str) -> list[Path]:
        if not path.exists():
            raise OSError(28, "No space left on device")
        return []

    with monkeypatch.context() as patch:
        patch.setattr("deploy.make_secrets._secret", full)
        with pytest.raises(OSError, match="No space left"):
            make(env)
    assert callers_of(folder / "tokens").caller(leaked) is None
    assert folder / "planner_token" in make(env)
    assert callers_of(folder / "tokens").caller(_content(env)["planner_token"]) is not None


def test_a_cluster_id_that_is_empty_is_made(env: Path) -> None:
    env.write_text("KAFKA_CLUSTER_ID=\n")
    make(env)
    assert len(read_env(env)["KAFKA_CLUSTER_ID"]) == 22
    assert env not in make(env)


def test_containers_may_read_the_files_and_nobody_else_the_folder(env: Path) -> None:
    make(env)
    folder = env.parent / "deploy" / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o444}


def test_no_secret_is_like_another_and_none_is_a_sample(env: Path) -> None:
    make(env)
    secrets = [content for name, content in _content(env).items() if name != "tokens"]
    assert len(set(secrets)) == len(secrets)
    assert not any(map(is_sample, secrets))
    for name in SERVICES:
        url = _content(env)[f"{name}_database_url"]
        assert re.fullmatch(rf"postgresql\+asyncpg://{name}:[0-9a-f]{{48}}@postgres/{name}", url)


def test_every_token_may_do_what_its_line_says(env: Path) -> None:
    make(env)
    content = _content(env)
    callers = callers_of(env.parent / "deploy" / "secrets" / "tokens")
    found = {name: callers.caller(content[name]) for name in TOKENS}
    said = {name: (caller.name, ",".join(sorted(caller.scopes))) for name, caller in found.items() if caller}
    assert said == dict(TOKENS)


def test_compose_finds_the_folder_and_a_cluster_id_in_the_env(env: Path) -> None:
    env.write_text("PORT=9000", encoding="utf-8")
    make(env)
    said = read_env(env)
    assert said["ATTACHE_SECRETS"] == "./deploy/secrets"
    assert said["PORT"] == "9000"
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{21}", said["KAFKA_CLUSTER_ID"])
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{21}", cluster_id()) for _ in range(300))


def test_a_folder_that_the_env_names_is_used(env: Path) -> None:
    env.write_text("ATTACHE_SECRETS=./elsewhere\n", encoding="utf-8")
    make(env)
    assert (env.parent / "elsewhere" / "tokens").exists()
    assert not (env.parent / "deploy").exists()


def test_the_environment_goes_before_the_env_as_it_does_for_compose(env: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "ATTACHE_SECRETS=./elsewhere\n"
    env.write_text(said, encoding="utf-8")
    monkeypatch.setenv("ATTACHE_SECRETS", "./given")
    monkeypatch.setenv("KAFKA_CLUSTER_ID", "0123456789abcdefghijkl")
    make(env)
    assert (env.parent / "given" / "tokens").exists()
    assert not (env.parent / "elsewhere").exists()
    # what the broker begins with now it has to be told again where nobody gives it
    assert env.read_text(encoding="utf-8") == f"{said}KAFKA_CLUSTER_ID=0123456789abcdefghijkl\n"


@pytest.mark.parametrize(
    ("said", "given", "folder"),
    [
        ("ATTACHE_SECRETS=~/sec", None, "home/sec"),
        ('ATTACHE_SECRETS="~"', None, "home"),
        ("", "~/sec", "home/sec"),
        ("ATTACHE_SECRETS=${BASE:-${HOME}}/sec", None, "home/sec"),
        ("ATTACHE_SECRETS='./a~b #c'", None, "a~b #c"),
        ("", "{}/a #b", "a #b"),
        ("", "{}/pa$word", "pa$word"),
        ("", "{}/it's $5", "it's $5"),
        ("", "./$HOME", "$HOME"),
    ],
)
def test_secrets_are_made_where_compose_reads_them_with_and_without_the_environment(
    env: Path, monkeypatch: pytest.MonkeyPatch, said: str, given: str | None, folder: str
) -> None:
    monkeypatch.setenv("HOME", str(env.parent / "home"))
    monkeypatch.delenv("BASE", raising=False)
    env.write_text(f"{said}\n", encoding="utf-8")
    if given is not None:
        monkeypatch.setenv("ATTACHE_SECRETS", given.format(env.parent))
    make(env)
    monkeypatch.delenv("ATTACHE_SECRETS", raising=False)
    assert (env.parent / folder / "tokens").exists()
    assert make(env) == []
    if compose_answers():
        assert compose_reads(env) == str(env.parent / folder / "tokens")


def compose_reads(env: Path) -> str:
    """The file of a secret, as Compose finds it by an `.env`."""
    file = 'services: {one: {image: none, secrets: [s]}}\nsecrets: {s: {file: "${ATTACHE_SECRETS}/tokens"}}'
    env.with_name("compose.yml").write_text(file, encoding="utf-8")
    told = subprocess.run(
        ["docker", "compose", "config", "--format", "json"], cwd=env.parent, check=True, capture_output=True, text=True
    )
    return str(json.loads(told.stdout)["secrets"]["s"]["file"]).replace("$$", "$")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"COMPOSE_ENV_FILES": "other.env"}, "Compose does not read .env, because COMPOSE_ENV_FILES is set"),
        ({"COMPOSE_DISABLE_ENV_FILE": "1"}, "Compose does not read .env, because COMPOSE_DISABLE_ENV_FILE is set"),
        ({"ATTACHE_SECRETS": ""}, "ATTACHE_SECRETS is empty in the environment, which goes before"),
        ({"KAFKA_CLUSTER_ID": ""}, "KAFKA_CLUSTER_ID is empty in the environment, which goes before"),
        (
            {"ATTACHE_SECRETS": os.fsdecode(b"/tmp/f\xfcr")},
            "ATTACHE_SECRETS has a character in it that cannot be printed",
        ),
    ],
)
def test_an_environment_that_hides_what_is_written_is_refused_in_a_line(
    env: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: dict[str, str],
    line: str,
) -> None:
    env.write_text("ATTACHE_SECRETS=./named\n", encoding="utf-8")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["--env", str(env)]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"secrets: {line}")
    assert [path.name for path in env.parent.iterdir()] == [".env"]


def test_an_environment_that_hides_nothing_is_no_hindrance(env: Path) -> None:
    assert make(env, {"COMPOSE_ENV_FILES": "", "COMPOSE_DISABLE_ENV_FILE": "false"})


def test_a_token_that_was_taken_away_is_made_anew_and_the_old_one_ends(env: Path) -> None:
    make(env)
    before, folder = _content(env), env.parent / "deploy" / "secrets"
    (folder / "planner_token").unlink()
    assert make(env) == [folder / "planner_token", folder / "tokens"]
    callers, now = callers_of(folder / "tokens"), _content(env)
    assert callers.caller(before["planner_token"]) is None
    assert [caller.name for name in TOKENS if (caller := callers.caller(now[name]))] == [
        one for one, _ in TOKENS.values()
    ]
    assert now["operator_token"] == before["operator_token"]


def test_an_empty_token_is_said_in_a_line(env: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(env)
    folder = env.parent / "deploy" / "secrets"
    for name in ("tokens", "operator_token"):
        (folder / name).unlink()
    (folder / "operator_token").touch()
    with pytest.raises(CannotMake, match="operator_token is empty: remove it"):
        make(env)
    assert main(["--env", str(env)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1

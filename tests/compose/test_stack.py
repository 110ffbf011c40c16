"""The Compose deployment for real, in its short form: up, the demo trip, replicas, what may be reached, down.

A project, a port and secrets of its own, so that it disturbs nothing that runs. Without a Docker engine it is left out.
"""

import json
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
import pytest

from tests.compose.running_stack import Stack, compose, engine_answers, secrets_in, started

REFUSED = "a sample and no secret: put a real one there (make secrets makes them)"
INSIDE = """
import hashlib, http.client, json, sys
told = http.client.HTTPConnection(sys.argv[1], 8083, timeout=60)
told.request("GET", sys.argv[2])
answer = told.getresponse()
body = answer.read()
print(json.dumps([answer.status, answer.getheader("ETag"), hashlib.sha256(body).hexdigest()]))
"""


pytestmark = pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers here")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with started(tmp_path_factory.mktemp("stack"), "--scale", "notifications=2") as found:
        yield found


@pytest.fixture(scope="module")
def told(stack: Stack) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(stack.demo("--json"))
    return told


def test_every_container_is_healthy_and_every_job_done(stack: Stack) -> None:
    found = [json.loads(line) for line in stack.compose("ps", "--all", "--format", "json").stdout.splitlines()]
    states = sorted((one["Service"], one["State"], one["Health"], one["ExitCode"]) for one in found)
    running = ("kafka", "notifications", "notifications", "participants", "postgres", "proxy", "schedule")
    assert states == sorted(
        [(name, "running", "healthy", 0) for name in running]
        + [(name, "exited", "", 0) for name in ("migrate", "topics")]
    )


def test_the_demo_answers_with_feeds_that_a_second_run_prints_again(stack: Stack, told: dict[str, Any]) -> None:
    assert set(told) == {"base", "token", "trip", "feeds"}
    assert told["base"] == stack.base
    assert json.loads(stack.demo("--json")) == told
    listed = stack.demo()
    assert [feed["url"] for feed in told["feeds"] if feed["url"] not in listed] == []
    for feed in told["feeds"]:
        answer = _get(feed["url"])
        assert (answer.status_code, answer.text.startswith("BEGIN:VCALENDAR\r\n")) == (200, True)


def test_each_replica_serves_the_same_bytes_under_the_same_tag(stack: Stack, told: dict[str, Any]) -> None:
    replicas = stack.containers("notifications")
    assert len(replicas) == 2
    for feed in told["feeds"]:
        path = httpx.URL(feed["url"]).path
        answers = [_inside(replica, path) for replica in replicas]
        assert answers[0] == answers[1]
        assert (answers[0][0], answers[0][1]) == (
            200,
            _get(feed["url"]).headers["ETag"].replace("-gz", ""),
        )


@pytest.mark.parametrize("service", ["schedule", "participants", "notifications"])
@pytest.mark.parametrize(
    "path", ["metrics", "%6detrics", "METRICS", "messages", "messages/heads", "./messages", "x/../metrics"]
)
def test_what_is_between_the_services_is_not_reached_from_outside(stack: Stack, service: str, path: str) -> None:
    tokens = [
        (stack.env.parent / "secrets" / name).read_text().strip()
        for name in ("operator_token", "schedule_service_token")
    ]
    statuses = {_raw(stack.port, f"/{service}/{path}", token) for token in tokens}
    assert statuses == {404}
    assert _get(f"{stack.base}/{service}/healthz").json() == {"status": "alive"}


def test_no_log_carries_a_feed_s_secret(stack: Stack, told: dict[str, Any]) -> None:
    secret = httpx.URL(told["feeds"][0]["url"]).path.rpartition("/")[2].removesuffix(".ics")
    for path in (f"/feeds/{secret}.ics", f"/%66eeds/{secret}.ics", f"/FEEDS/{secret}.ics", f"/x/{secret}?a={secret}"):
        _get(stack.base + path, {"Referer": told["feeds"][0]["url"]})
    said = stack.compose("logs", "--no-color").stdout
    assert "/feeds/(secret)" in said
    assert secret not in said


def test_a_service_s_role_enters_no_other_database(stack: Stack) -> None:
    url = (stack.env.parent / "secrets" / "schedule_database_url").read_text().strip()
    password = url.split(":")[2].split("@")[0]
    for database in ("participants", "notifications", "postgres", "schedule"):
        command = ["psql", f"postgresql://schedule:{password}@127.0.0.1/{database}", "-Atc", "SELECT 1"]
        done = subprocess.run(
            ["docker", "exec", stack.containers("postgres")[0], *command], capture_output=True, text=True, check=False
        )
        assert (done.returncode == 0) is (database == "schedule"), done.stderr


def test_a_sample_secret_stops_the_start_in_one_line(tmp_path: Path) -> None:
    env = secrets_in(tmp_path)
    sample = tmp_path / "secrets" / "participants_service_token"
    sample.unlink()
    sample.write_text("change-me\n")
    sample.chmod(0o444)
    project = f"attache-test-{token_hex(4)}"
    try:
        done = compose(project, env, "run", "--rm", "-T", "--no-deps", "migrate", check=False)
        assert (done.returncode, _said(done.stderr, "attache:")) == (
            1,
            [f"attache: migrate: PARTICIPANTS_SERVICE_TOKEN or SERVICE_TOKEN: holds {REFUSED}"],
        )
        (tmp_path / "secrets" / "postgres_password").unlink()
        (tmp_path / "secrets" / "postgres_password").touch()
        done = compose(project, env, "run", "--rm", "-T", "postgres", check=False)
        assert (done.returncode, _said(done.stderr, "postgres:")) == (
            1,
            [f"postgres: the secret postgres_password is empty or {REFUSED.replace(' and no secret', '')}"],
        )
    finally:
        compose(project, env, "down", "--volumes", check=False)


def test_without_secrets_compose_says_what_to_do(tmp_path: Path) -> None:
    empty = tmp_path / ".env"
    empty.touch()
    done = compose("attache-test-none", empty, "up", check=False)
    assert done.returncode != 0
    assert done.stderr.strip().endswith("run make secrets once, it writes deploy/secrets and .env")
    assert len(done.stderr.strip().splitlines()) == 1


def _said(text: str, by: str) -> list[str]:
    """The lines that one program said, among those that Compose says of its progress."""
    return [line.strip() for line in text.splitlines() if line.startswith(by)]


def _get(url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False, timeout=60)


def _inside(container: str, path: str) -> list[Any]:
    done = subprocess.run(
        ["docker", "exec", container, "python", "-c", INSIDE, "127.0.0.1", path],
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[Any] = json.loads(done.stdout)
    return found


def _raw(port: int, path: str, token: str) -> int:
    """The status of a request whose path no client has put in order."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as wire:
        wire.sendall(f"GET {path} HTTP/1.0\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        return int(wire.makefile("rb").readline().split()[1])

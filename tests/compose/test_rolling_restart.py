"""Each service restarted and replaced under steady polling: no answer but 2xx or 3xx, and nothing acknowledged lost.

The form that every run takes replaces each service, and restarts two replicas of notifications one after the other;
`make compose-test` does the rest as well.
"""

import json
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.compose.polling import Answer, Ask, Caller, Polling
from tests.compose.running_stack import ROOT, Stack, engine_answers, started

SERVICES = ("schedule", "participants", "notifications")
PATIENCE_SECONDS = 120.0
PROXY_SECONDS = max(
    int(seconds) for seconds in re.findall(r"import to \w+ \d+ (\d+)s", (ROOT / "deploy/proxy/Caddyfile").read_text())
)
"""How long the proxy tries."""
TRIES = 3
NUMBERS = count(1)

pytestmark = pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers here")
long = pytest.mark.skipif(not os.environ.get("ATTACHE_TEST_DRILLS"), reason="a minute more: make compose-test runs it")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A stack with the demo trip, and what is asked for there."""

    stack: Stack
    trip: str
    delegation: str
    feeds: list[str]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with started(tmp_path_factory.mktemp("stack")) as stack:
        told: dict[str, Any] = json.loads(stack.demo("--json"))
        with httpx.Client(base_url=stack.base, headers=_planner(stack), trust_env=False, timeout=60) as client:
            listed = client.get(f"/participants/trips/{told['trip']}/delegations").raise_for_status().json()
        yield Scene(
            stack=stack,
            trip=told["trip"],
            delegation=listed["items"][0]["id"],
            feeds=[httpx.URL(feed["url"]).path for feed in told["feeds"]],
        )


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_replaced_and_every_answer_is_fine(scene: Scene, service: str) -> None:
    def replace() -> None:
        before = _running(scene.stack, service)
        scene.stack.compose("up", "--detach", "--wait", "--force-recreate", "--no-deps", service)
        assert before.keys().isdisjoint(_running(scene.stack, service))

    _check(scene, _polled(scene, service, replace))


@long
@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_restarted_and_every_answer_is_fine(scene: Scene, service: str) -> None:
    def restart() -> None:
        before = _running(scene.stack, service)
        scene.stack.compose("restart", service)
        _wait_until_healthy(scene.stack, service)
        assert set(before.values()).isdisjoint(_running(scene.stack, service).values())

    _check(scene, _polled(scene, service, restart))


@pytest.mark.parametrize("service", [pytest.param("schedule", marks=long), "notifications"])
def test_two_replicas_are_restarted_in_turn_and_every_answer_is_fine(scene: Scene, service: str) -> None:
    scene.stack.compose("up", "--detach", "--wait", "--no-deps", "--no-recreate", "--scale", f"{service}=2", service)
    with _polling(scene, service) as polling:
        polling.until_each_was_answered()
        before = _running(scene.stack, service)
        for container in before:
            subprocess.run(["docker", "restart", "--time", "45", container], capture_output=True, check=True)
            _wait_until_healthy(scene.stack, service)
        polling.until_each_was_answered()
        after = _running(scene.stack, service)
        assert (len(after), set(before.values()) & set(after.values())) == (2, set())
    _check(scene, polling)


def _polled(scene: Scene, service: str, act: Callable[[], None]) -> Polling:
    """What was answered while the only process of a service went and another one came.

    The proxy waits for that for a while; where the machine takes longer there is nothing to be seen, and it is done
    again.
    """
    for _ in range(TRIES):
        with _polling(scene, service) as polling:
            polling.until_each_was_answered()
            began = time.monotonic()
            act()
            took = time.monotonic() - began
            polling.until_each_was_answered()
        if took < PROXY_SECONDS or not _odd(polling):
            break
    return polling


def _odd(polling: Polling) -> list[tuple[str, str, int | str]]:
    return [(answer.client, answer.ask.path, answer.status) for answer in polling.answers if not answer.fine]


def _polling(scene: Scene, service: str) -> Polling:
    """Feeds and reads with connections kept and new, the proxy's own pages, and commands of each service."""
    planner = _planner(scene.stack)
    reads = (
        Ask(path=f"/schedule/trips/{scene.trip}", headers=planner),
        Ask(path=f"/participants/trips/{scene.trip}/delegations", headers=planner),
        Ask(path=f"/notifications/trips/{scene.trip}/feed-links", headers=planner),
    )
    probes = [Ask(path=path) for path in ("/healthz", "/", "/robots.txt", *(f"/{one}/healthz" for one in SERVICES))]
    callers = {
        "feeds": _in_turn(*(Ask(path=path) for path in scene.feeds)),
        "feeds, new connections": _in_turn(*(Ask(path=path) for path in scene.feeds)),
        "feeds, If-None-Match": _again(scene.feeds),
        "reads": _in_turn(*reads),
        "reads, new connections": _in_turn(*reads),
        "probes": _in_turn(*probes),
        **{f"commands, {one}": _commands(scene, one, keyed=True) for one in SERVICES},
        "commands, new connections": _commands(scene, service, keyed=True),
        "commands without a key": _commands(scene, service, keyed=False),
    }
    return Polling(scene.stack.port, callers, [name for name in callers if name.endswith("new connections")])


def _check(scene: Scene, polling: Polling) -> None:
    """Commands without a key may fail: what has been sent is not sent again. But what is answered is there, once."""
    print(polling.told())
    assert [one for one in _odd(polling) if one[0] != "commands without a key"] == [], polling.told()
    acknowledged = {answer.ask.named: 1 for answer in polling.answers if answer.fine and answer.ask.named}
    found = _recorded(scene.stack)
    assert {name: found[name] for name in acknowledged} == acknowledged


def _in_turn(*asks: Ask) -> Caller:
    while True:
        for ask in asks:  # noqa: UP028  a tuple is not sent answers
            yield ask


def _again(paths: list[str]) -> Caller:
    """Calendars that hold the last bytes."""
    tags: dict[str, str] = {}
    while True:
        for path in paths:
            answer: Answer = yield Ask(path=path, headers={"If-None-Match": tags.get(path, '"none"')})
            tags[path] = answer.tag or tags.get(path, '"none"')


def _commands(scene: Scene, service: str, *, keyed: bool) -> Caller:
    while True:
        name = f"rolling-{next(NUMBERS)}-"
        headers = {**_planner(scene.stack), "Content-Type": "application/json"}
        if keyed:
            headers["Idempotency-Key"] = str(uuid4())
        path, body = _command(scene, service, name)
        yield Ask(method="POST", path=path, headers=headers, body=json.dumps(body), named=name)


def _command(scene: Scene, service: str, name: str) -> tuple[str, Mapping[str, Any]]:
    """Something new, which no rule refuses."""
    if service == "schedule":
        home = {"place": "Washington", "zone": "America/New_York"}
        dates = {"starts_on": "2023-11-02", "ends_on": "2023-11-10"}
        return "/schedule/trips", {"title": name, "principals": ["Secretary"], "home": home, **dates}
    if service == "participants":
        return f"/participants/trips/{scene.trip}/delegations", {"name": name, "kind": "press"}
    link = {"delegation": scene.delegation, "level": "delegation", "label": name}
    return f"/notifications/trips/{scene.trip}/feed-links", link


def _planner(stack: Stack) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {stack.secret('planner_token')}"}


def _recorded(stack: Stack) -> Counter[str]:
    """How many events of the three logs have each command's name in them."""
    query = "SELECT substring(data::text FROM 'rolling-[0-9]+-') FROM events WHERE data::text LIKE '%rolling-%'"
    found: Counter[str] = Counter()
    for service in SERVICES:
        done = stack.compose("exec", "-T", "postgres", "psql", "-U", "postgres", "-d", service, "-Atc", query)
        found.update(done.stdout.split())
    return found


def _running(stack: Stack, service: str) -> Mapping[str, str]:
    """Since when each container of a service runs, by its id."""
    return {container: _told(container, "{{.State.StartedAt}}") for container in stack.containers(service)}


def _wait_until_healthy(stack: Stack, service: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while any(_told(container, "{{.State.Health.Status}}") != "healthy" for container in stack.containers(service)):
        assert time.monotonic() < end, f"{service} does not become healthy"


def _told(container: str, what: str) -> str:
    done = subprocess.run(["docker", "inspect", "-f", what, container], capture_output=True, text=True, check=True)
    return done.stdout.strip()

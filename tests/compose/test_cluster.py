"""Three brokers, two of them killed one after the other under steady writes: first the controllers' leader.

What was acknowledged is on the topics, once for each number and in order of its key, and in the feeds.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.compose.polling import Answer, Ask, Caller, Polling
from tests.compose.running_stack import ROOT, Stack, engine_answers, started

BROKERS = ("kafka", "kafka-2", "kafka-3")
TOPIC = "attache.schedule.cleared"
WRITERS = 3
PATIENCE_SECONDS = 300.0
NUMBERS = count(1)
NAME = re.compile(r"cluster-\d+-")

pytestmark = [
    pytest.mark.skipif(not os.environ.get("ATTACHE_TEST_DRILLS"), reason="two minutes: make compose-test runs it"),
    pytest.mark.skipif(not engine_answers(), reason="no Docker engine answers here"),
]


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A trip that one client plans, and the feed that shows it."""

    trip: str
    stop: str
    delegation: str
    feed: str


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    cluster = (ROOT / "deploy" / "cluster.env").read_text(encoding="utf-8")
    with started(tmp_path_factory.mktemp("stack"), settings=cluster) as found:
        yield found


def test_a_broker_killed_and_then_another_lose_nothing_that_was_acknowledged(stack: Stack) -> None:
    with httpx.Client(base_url=stack.base, headers=_planner(stack), trust_env=False, timeout=60) as client:
        writers = [_writer(client, number) for number in range(WRITERS)]
    callers = {f"writer {number}": _meetings(stack, writer) for number, writer in enumerate(writers)}
    with Polling(stack.port, callers) as polling:
        polling.until_each_was_answered(30)
        leader = _controller(stack)
        _killed_and_started(stack, leader, polling)
        _killed_and_started(stack, next(one for one in BROKERS if one not in (leader, "kafka")), polling)
    print(polling.told())
    acknowledged = sorted(answer.ask.named or "" for answer in polling.answers if answer.fine)
    assert acknowledged == sorted(set(acknowledged))
    _until(lambda: _in_feeds(stack, writers) == acknowledged, "all that was acknowledged in the feeds")
    told = _on_topic(stack)
    assert sorted(name for _, _, name in told if name) == acknowledged
    for writer in writers:
        numbers = [number for key, number, _ in told if key == writer.trip]
        assert numbers == list(range(1, len(numbers) + 1))


def _killed_and_started(stack: Stack, broker: str, polling: Polling) -> None:
    """Killed as by a power cut, away while all write on, back; returns when every copy is in step again."""
    stack.compose("kill", "--signal", "KILL", broker)
    polling.until_each_was_answered(60)
    stack.compose("start", broker)
    polling.until_each_was_answered(30)
    _until(lambda: not _under_replicated(stack), f"the copies of {broker}")


def _meetings(stack: Stack, writer: Writer) -> Caller:
    """New meetings; what was not acknowledged is sent again under its key."""
    headers = {**_planner(stack), "Content-Type": "application/json"}
    while True:
        name = f"cluster-{next(NUMBERS)}-"
        meeting = {"stop": writer.stop, "title": name, "kind": "bilateral", "duration": "PT45M"}
        body = json.dumps({**meeting, "start": "2023-11-07T18:25:00", "delegations": [writer.delegation]})
        path, key = f"/schedule/trips/{writer.trip}/meetings", str(uuid4())
        ask = Ask(method="POST", path=path, headers={**headers, "Idempotency-Key": key}, body=body, named=name)
        answer: Answer = yield ask
        while not answer.fine:
            answer = yield ask


def _writer(client: httpx.Client, number: int) -> Writer:
    home = {"place": "Washington", "zone": "America/New_York"}
    dates = {"starts_on": "2023-11-07", "ends_on": "2023-11-08"}
    trip = _made(client, "/schedule/trips", title=f"Trip {number}", principals=["Secretary"], home=home, **dates)["id"]
    stay = {"arrives": "2023-11-07T09:00:00", "departs": "2023-11-08T18:00:00"}
    tokyo = {"place": "Tokyo", "country": "Japan", "zone": "Asia/Tokyo"}
    stop = _made(client, f"/schedule/trips/{trip}/stops", **tokyo, **stay)["id"]
    delegation = _made(client, f"/participants/trips/{trip}/delegations", name="Hosts", kind="host")["id"]
    wanted = {"delegation": delegation, "level": "delegation", "label": "phones"}
    link = _made(client, f"/notifications/trips/{trip}/feed-links", **wanted)
    return Writer(trip=trip, stop=stop, delegation=delegation, feed=link["url"])


def _made(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    """What a command made; one that waits for what another service has told is sent again."""
    end = time.monotonic() + PATIENCE_SECONDS
    while (answer := client.post(path, json=body)).status_code == 409 and answer.json()["slug"] == "not-yet-known":
        assert time.monotonic() < end, answer.text
    made: dict[str, Any] = answer.raise_for_status().json()
    return made


def _in_feeds(stack: Stack, writers: Sequence[Writer]) -> list[str]:
    bodies = [httpx.get(writer.feed, trust_env=False, timeout=60).text for writer in writers]
    return sorted({name for body in bodies for name in NAME.findall(body.replace("\r\n ", ""))})


def _on_topic(stack: Stack) -> list[tuple[str, int, str]]:
    """The topic as its partitions hold it, without copies: key, number, and the meeting's title if there is one."""
    read = ("--bootstrap-server", "kafka:9092", "--topic", TOPIC, "--from-beginning", "--timeout-ms", "10000")
    shown = ("--property", "print.key=true", "--property", "print.headers=true")
    said = stack.compose("exec", "-T", "kafka", "/opt/kafka/bin/kafka-console-consumer.sh", *read, *shown).stdout
    found: dict[tuple[str, int], str] = {}
    for line in filter(lambda one: one.count("\t") >= 2, said.splitlines()):  # among what the tool says of itself
        headers, key, value = line.split("\t", 2)
        number = int(re.findall(r"ce_sequence:(\d+)", headers)[0])
        name = (NAME.findall(value) or [""])[0]
        assert found.setdefault((key, number), name) == name
    return [(key, number, name) for (key, number), name in found.items()]


def _controller(stack: Stack) -> str:
    tool = ("/opt/kafka/bin/kafka-metadata-quorum.sh", "--bootstrap-server", "kafka:9092")
    said = stack.compose("exec", "-T", "kafka", *tool, "describe", "--status").stdout
    return BROKERS[int(re.findall(r"LeaderId:\s+(\d+)", said)[0]) - 1]


def _under_replicated(stack: Stack) -> str:
    tool = ("/opt/kafka/bin/kafka-topics.sh", "--bootstrap-server", "kafka:9092")
    said = stack.compose("exec", "-T", "kafka", *tool, "--describe", "--under-replicated-partitions", check=False)
    return said.stdout.strip() or ("nothing answers" if said.returncode else "")


def _planner(stack: Stack) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {stack.secret('planner_token')}"}


def _until(holds: Any, what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE_SECONDS:g} s"
        time.sleep(0.2)

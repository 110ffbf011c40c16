"""The tests in several processes at once (`-n auto`): how many, what they share, and what must not run beside what.

Most of a test is waiting, so there are twice as many workers as cores. Each has a PostgreSQL of its own, which starts
in a second; the one Kafka is started here, before the workers, which find it by ATTACHE_TEST_KAFKA.
"""

import fcntl
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from deploy import kafka_node
from deploy.kafka_node import NodeUnable
from tests.kafka_fixture import shared_kafka

GROUPS = {
    "second_kafka": "breaking Kafka",
    "running": "make run",
    "demo": "demo",
    "kafka_in_container": "containers",
}
"""By the fixture, and its name is that of a session's: what costs seconds to make, or what only one test may have at a
time. All that ask for it run on one worker, one after the other."""
ALONE = (Path(__file__).parent / "compose", Path(__file__).parent / "chaos")
"""Folders of tests that bring up much: one at a time."""
SHARED = "ATTACHE_TEST_SHARED"
"""The folder of what one worker makes for all."""

PARTS = 17
"""So many processes can have ports of their own: more than there are workers, and who starts them."""

T = TypeVar("T")
_shared = ExitStack()


def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means."""
    return 2 * max(2, min(len(os.sched_getaffinity(0)), 4))


def pytest_configure(config: pytest.Config) -> None:
    """No two processes are given one port: it looks free until who has it listens, and while that is restarted."""
    number = int(getattr(config, "workerinput", {"workerid": "gw-1"})["workerid"].removeprefix("gw"))
    kafka_node.PORTS = kafka_node.PORTS[(number + 1) % PARTS :: PARTS]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A worker takes the longest tests first, and tells which belong together."""
    if not hasattr(config, "workerinput"):
        return
    items.sort(key=lambda item: "loaded" not in getattr(item, "fixturenames", ()))
    groups = {item.nodeid: group for item in items if (group := _group(item))}
    told = Path(tempfile.mkstemp(dir=os.environ[SHARED])[1])
    told.write_text(json.dumps(groups), encoding="utf-8")
    told.replace(_groups_file())  # all workers tell the same


class Grouped(LoadScopeScheduling):  # type: ignore[misc]  # xdist is untyped
    """Hands out tests one by one, but those of a group to one worker. (xdist's own `loadgroup` needs pytest 8.)"""

    def _split_scope(self, nodeid: str) -> str:
        return _groups().get(nodeid, nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Grouped:
    """What `-n` goes by."""
    return Grouped(config, log)


def pytest_sessionstart(session: pytest.Session) -> None:
    """One Kafka for all workers, begun before them; a worker waits for it when a test asks."""
    if not session.config.getoption("tx", None) or hasattr(session.config, "workerinput"):
        return
    os.environ[SHARED] = _shared.enter_context(tempfile.TemporaryDirectory(prefix="attache-test-shared-"))
    _shared.callback(os.environ.pop, SHARED)
    Path(os.environ[SHARED]).chmod(0o711)
    if "ATTACHE_TEST_KAFKA" not in os.environ:
        try:
            os.environ["ATTACHE_TEST_KAFKA"] = _shared.enter_context(shared_kafka())
        except NodeUnable:
            return  # each test that needs it says so
        _shared.callback(os.environ.pop, "ATTACHE_TEST_KAFKA")


def pytest_sessionfinish() -> None:
    """What all shared goes last."""
    _shared.close()


@contextmanager
def made_once(name: str, make: Callable[[Path], T]) -> Iterator[T]:
    """What `make(folder)` answers, made by the first worker that asks; others wait for it. The folder goes at the end.

    PostgreSQL can use the folder, also when root runs the tests.
    """
    if SHARED not in os.environ:
        with tempfile.TemporaryDirectory(prefix=f"attache-test-{name}-") as alone:
            Path(alone).chmod(0o711)
            yield make(Path(alone))
        return
    base = Path(os.environ[SHARED])
    kept = base / f"{name}.made"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=base))
            folder.chmod(0o711)
            kept.write_bytes(pickle.dumps(make(folder)))
    yield pickle.loads(kept.read_bytes())  # noqa: S301  another worker of this very run has written it


def _groups_file() -> Path:
    return Path(os.environ[SHARED]) / "groups.json"


@cache
def _groups() -> dict[str, str]:
    found: dict[str, str] = json.loads(_groups_file().read_text(encoding="utf-8"))
    return found


def _group(item: pytest.Item) -> str | None:
    """The first that fits; a fixture of the same name that each test has for itself groups nothing."""
    for folder in ALONE:
        if folder in item.path.parents:
            return folder.name
    if isinstance(item, pytest.Function) and "make_trio" in item.fixturenames and "[kafka]" in item.name:
        return "services on Kafka"  # on the one broker their topics and groups have the same names
    for fixture, group in GROUPS.items():
        found = item._fixtureinfo.name2fixturedefs.get(fixture) if isinstance(item, pytest.Function) else None
        if found and found[-1].scope == "session":
            return group
    return None

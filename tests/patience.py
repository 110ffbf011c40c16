"""A machine that stands still for some seconds is no fault of the program: what it bounds by seconds has minutes here.

A test that tries such a bound sets it itself.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from services.notifications import api, feeds
from shared import database

SECONDS = 120.0
PLUMBING: Mapping[str, object] = {
    "shared.bus_kafka.REPORT_SECONDS": 60.0,
    "shared.bus_kafka_clients.BEGIN_SECONDS": 60.0,
    "shared.bus_kafka_clients.REASON_MILLISECONDS": 60_000,
    "shared.bus_local_member.QUERY_SECONDS": 60.0,
    "shared.command.WAIT_SECONDS": 60.0,
    "shared.consumer.LEARN_SECONDS": 60.0,
    "shared.database.CONNECT_TIMEOUT": 60.0,
    "shared.database.POOL_TIMEOUT": 60.0,
    "shared.readiness.PRODUCERS_SECONDS": 60.0,
    "shared.readiness.STORE_SECONDS": 60.0,
}
"""What the plumbing gives up after seconds, by name; the bounds of locks are as shipped."""


@contextmanager
def patient() -> Iterator[None]:
    """The engines that are made meanwhile, and the feeds that are asked for, have patience."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CONNECT_TIMEOUT", "POOL_TIMEOUT"):
            patch.setattr(database, name, SECONDS)
        patch.setattr(database.make_engine, "__kwdefaults__", {"pool_size": 10, "command_timeout": SECONDS})
        for name in ("LOCK_TIMEOUT", "IDLE_IN_TRANSACTION_TIMEOUT"):
            patch.setattr(database, name, f"{SECONDS:.0f}s")
        for module, name in ((feeds, "UNKNOWN_SECONDS"), (feeds, "FIRST_BODY_SECONDS"), (api, "FIRST_BODY_SECONDS")):
            patch.setattr(module, name, SECONDS)
        yield


@pytest.fixture
def patience() -> Iterator[None]:
    """The program's bounds are no test's."""
    with patient():
        yield

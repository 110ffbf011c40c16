"""The short form of `make chaos`: real processes, a real Kafka and a real PostgreSQL, broken under load."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.kafka_node import JARS, NodeUnable, check_java, fetch_jars
from tests.chaos.campaign import Row, staged, suffer, table
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.scene import Scene
from tests.kafka_fixture import unavailable

SHORT = [fault for fault in FAULTS if fault.short]


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """All of it, once for the module: each fault leaves it whole."""
    try:
        check_java()
        fetch_jars(JARS)
    except NodeUnable as unable:
        unavailable(f"no Kafka that can be broken: {unable}")
    folder = Path(tempfile.mkdtemp(prefix="attache-chaos-"))
    folder.chmod(0o711)
    with staged(folder, seed=1, long=False) as scene:
        yield scene
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Row]]:
    """What is printed at the end."""
    rows: list[Row] = []
    yield rows
    print(f"\n{table(rows)}")


@pytest.mark.parametrize("fault", SHORT, ids=[fault.name for fault in SHORT])
def test_nothing_is_lost_doubled_or_out_of_order_and_feeds_answer_when(
    fault: Fault, scene: Scene, rows: list[Row]
) -> None:
    rows.append(suffer(scene, fault, print))
    assert rows[-1].wrong == []
    assert rows[-1].feed_answers > 0

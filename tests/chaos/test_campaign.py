"""The campaign itself: a fault that cannot begin on whole surroundings is not begun, and the reason is said."""

from pathlib import Path
from random import Random

import pytest

from deploy.kafka_node import KafkaNode
from services.embedded import CannotStart, EmbeddedPostgres
from tests.chaos.campaign import suffer
from tests.chaos.faults import Fault
from tests.chaos.load import Load
from tests.chaos.scene import Scene
from tests.chaos.surroundings import Broken, Surroundings


class PastMending(Surroundings):
    """Its database does not start any more."""

    def mend(self) -> None:
        raise CannotStart("PostgreSQL did not start: no word")


def test_fault_is_not_begun_on_what_cannot_be_mended(tmp_path: Path) -> None:
    done: list[Scene] = []
    around = PastMending(
        folder=tmp_path,
        postgres=EmbeddedPostgres(tmp_path),
        kafka=KafkaNode(tmp_path / "kafka", 9),
        ports={},
        token="",
        environment={},
    )
    scene = Scene(surroundings=around, load=Load(around, 1), random=Random(1), long=False)
    with pytest.raises(Broken) as refused:
        suffer(scene, Fault(name="poison on a topic", do=done.append), print)
    assert str(refused.value) == (
        "'poison on a topic' was not begun: something was broken before it, and could not be mended: "
        "PostgreSQL did not start: no word"
    )
    assert done == []

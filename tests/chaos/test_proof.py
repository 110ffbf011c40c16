"""The proof itself can fail: what is lost, doubled or out of order on a topic is found, and copies are only counted."""

import pytest

from tests.chaos.proof import Findings, compare_topic
from tests.chaos.topics import Told

TOLD = [Told("trip-1", 1, "a"), Told("trip-2", 1, "b"), Told("trip-1", 2, "c"), Told("trip-1", 3, "d")]
A, B, C, D = TOLD


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        ([A, B, C, D], (0, 0, 0, 0)),
        ([B, A, C, D], (0, 0, 0, 0)),  # keys know no order among each other
        ([A, B, C, A, C, D, B], (3, 0, 0, 0)),
        ([A, B, D], (0, 1, 0, 0)),
        ([A, B, D, C], (0, 0, 0, 1)),
        ([A, B, C, D, Told("trip-1", 3, "e")], (0, 0, 1, 0)),
        ([A, B, C, D, Told("trip-3", 1, "e")], (0, 0, 1, 0)),
        ([A, B, C, Told("trip-1", 4, "d")], (0, 1, 0, 0)),
        ([], (0, 4, 0, 0)),
    ],
)
def test_a_topic_is_compared_with_its_log(found: list[Told], counts: tuple[int, int, int, int]) -> None:
    findings = Findings()
    compare_topic(findings, "topic", TOLD, found, set(), set())
    assert (findings.duplicates, findings.lost, findings.doubled, findings.out_of_order) == counts
    assert bool(findings.wrong) == any(counts[1:])


def test_what_was_withheld_may_lack_or_come_late_and_poison_is_no_fact_of_the_log() -> None:
    for found in ([A, B, D], [A, B, D, C], [A, B, Told("trip-1", 2, "poison"), C, D]):
        findings = Findings()
        compare_topic(findings, "topic", TOLD, found, {"poison"}, {"c"})
        assert findings == Findings()

"""Fault after fault: breaking, waiting until all is healed, proving, and a row of the table for each."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from deploy.kafka_node import NodeUnable
from services.embedded import CannotStart
from tests.chaos import proof
from tests.chaos.faults import Fault
from tests.chaos.load import ANSWER_SECONDS, Load
from tests.chaos.proof import Findings
from tests.chaos.scene import CannotBeHad, Scene
from tests.chaos.surroundings import SERVICES, Broken, surroundings

COLUMNS = (
    *("fault", "events before", "after", "commands", "retried", "copies on the bus", "lost", "doubled"),
    *("out of order", "feed answers", "feed errors", "healed in s"),
)


SHORT_FEED_SECONDS = 60.0
SHORT_PATIENCE = 2
"""A test's machine may stand still for longer than the long form waits for a feed, and for all to be healed."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault's line of the table. `wrong` says in words all that did not hold."""

    fault: str
    before: int
    commands: int
    retried: int
    feed_answers: int
    feed_errors: int
    healed: float
    copies: int
    findings: Findings
    wrong: Sequence[str]

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        found = self.findings
        counts = (self.before, found.events, self.commands, self.retried, self.copies)
        faults = (found.lost, found.doubled, found.out_of_order, self.feed_answers, self.feed_errors)
        return (self.fault, *map(str, counts), *map(str, faults), f"{self.healed:.1f}")


@contextmanager
def staged(folder: Path, seed: int, *, long: bool) -> Iterator[Scene]:
    """Everything started, the first trips planned, readers and writers at work."""
    with surroundings(folder) as around:
        load = Load(around, seed, feed_seconds=ANSWER_SECONDS if long else SHORT_FEED_SECONDS)
        load.start()
        load.resume()
        try:
            around.until(lambda: len(load.trips) >= 2, 240, "the first trips to be planned")
            yield Scene(surroundings=around, load=load, random=Random(seed), long=long)
        finally:
            load.stop()


def suffer(scene: Scene, fault: Fault, say: Callable[[str], None]) -> Row:
    """One fault, and the proof that nothing of it is left. Raises `CannotBeHad`, `Broken`."""
    _mend_before(scene, fault)
    tally = scene.load.tally
    known = len(tally.acknowledged), tally.retried, tally.feed_answers, len(tally.feed_errors), len(tally.odd)
    before, copies, scene.wrong = _events(scene), scene.copies, []
    scene.load.resume()
    try:
        scene.go_on(0.5, 1.5)
        fault.do(scene)
    finally:
        scene.surroundings.mend()
    ended = time.monotonic()
    left = scene.quiet(fault.healed_within * (1 if scene.long else SHORT_PATIENCE))
    healed = time.monotonic() - ended
    say(f"{fault.name}: {f'not healed in {healed:.0f} s' if left else f'healed in {healed:.1f} s'}, proving")
    findings = asyncio.run(proof.look(scene.surroundings, scene.load, scene.poison, scene.withheld))
    scene.copies = findings.duplicates
    errors, odd = tally.feed_errors[known[3] :], tally.odd[known[4] :]
    return Row(
        fault=fault.name,
        before=before,
        commands=len(tally.acknowledged) - known[0],
        retried=tally.retried - known[1],
        feed_answers=tally.feed_answers - known[2],
        feed_errors=len(errors),
        healed=healed,
        # a broker that lost its volume has lost its earlier copies too
        copies=findings.duplicates - copies if findings.duplicates >= copies else findings.duplicates,
        findings=findings,
        wrong=[*left, *findings.wrong, *errors, *odd, *scene.wrong, *_verify(scene, fault)],
    )


def _mend_before(scene: Scene, fault: Fault) -> None:
    """A fault that left something broken is not blamed on the next one. Raises `Broken`."""
    try:
        scene.surroundings.mend()
    except (Broken, CannotStart, NodeUnable) as unable:
        what = "something was broken before it, and could not be mended"
        raise Broken(f"{fault.name!r} was not begun: {what}: {unable}") from unable


def _verify(scene: Scene, fault: Fault) -> list[str]:
    """In the short form only after the fault that is about it: each takes a new process for every service."""
    if not (scene.long or fault.verify):
        return []
    done = scene.surroundings.command("verify", *SERVICES)
    return [f"verify of {name} ended with {code}: {printed}" for name, (code, printed) in done.items() if code]


def _events(scene: Scene) -> int:
    return sum(int(scene.rows(name, "SELECT count(*) FROM events")[0][0]) for name in SERVICES)


def table(rows: Sequence[Row]) -> str:
    """The rows as a table of Markdown, its columns in line."""
    lines = [COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(COLUMNS))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return f"| {' | '.join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)])} |"

    ruler = f"|{'|'.join(['-' * (widths[0] + 2), *('-' * (width + 1) + ':' for width in widths[1:])])}|"
    return "\n".join([line(COLUMNS), ruler, *map(line, lines[1:])])


__all__ = ["CannotBeHad", "Row", "staged", "suffer", "table"]

"""`make chaos`: break everything under load, and print for each fault what became of it.

    python -m tests.chaos [--only WORD ...] [--minutes N] [--seed N] [--short] [--list]

Exit code 0 if nothing was lost, doubled or out of order and all else held; 1 if not; 2 if it could not be run.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.kafka_node import NodeUnable
from services.embedded import CannotStart
from shared.logs import set_up
from tests.chaos.campaign import CannotBeHad, Row, staged, suffer, table
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.scene import Scene
from tests.chaos.surroundings import Broken


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    chosen = _parser().parse_args(arguments)
    set_up("chaos", log_format="console", level="warning")  # else 90 lines a second while Kafka is away
    faults = [fault for fault in FAULTS if fault.short or not chosen.short]
    faults = [fault for fault in faults if not chosen.only or any(word in fault.name for word in chosen.only)]
    if chosen.list or not faults:
        print("\n".join(fault.name for fault in FAULTS))
        return 0 if chosen.list else 2
    folder = Path(tempfile.mkdtemp(prefix="attache-chaos-"))
    folder.chmod(0o711)
    said = _Said()
    said(f"seed {chosen.seed}, all that is said by services is in {folder}")
    rows: list[Row] = []
    try:
        with staged(folder, chosen.seed, long=not chosen.short) as scene:
            said("all is up: two replicas of notifications, one of each other service, PostgreSQL, Kafka")
            for fault in _in_turn(faults, chosen.minutes, scene):
                _one(scene, fault, rows, said)
    except (NodeUnable, CannotStart, Broken) as unable:
        print(unable, file=sys.stderr)
        _conclude(rows)
        return 2
    except KeyboardInterrupt:
        print("stopped by hand")
    return _conclude(rows)


class _Said:
    """Progress, each line with the seconds since the start."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"{time.monotonic() - self._began:6.0f} s  {line}", flush=True)


def _in_turn(faults: Sequence[Fault], minutes: float, scene: Scene) -> Iterator[Fault]:
    """Each fault once, and then again in any order until the time is over."""
    end = time.monotonic() + minutes * 60
    yield from faults
    while time.monotonic() < end:
        yield scene.random.choice(faults)


def _one(scene: Scene, fault: Fault, rows: list[Row], said: _Said) -> None:
    said(f"{fault.name}: begins")
    try:
        row = suffer(scene, fault, said)
    except CannotBeHad as lacking:
        said(f"{fault.name}: left out: {lacking}")
        return
    rows.append(row)
    for wrong in row.wrong:
        said(f"  WRONG  {wrong}")
    said(f"{fault.name}: {'NOT as it should be' if row.wrong else 'all holds'}, {row.findings.events} events")


def _conclude(rows: Sequence[Row]) -> int:
    print(f"\n{table(rows)}\n")
    red = [row.fault for row in rows if row.wrong]
    print(f"not as it should be: {', '.join(red)}" if red else f"{len(rows)} faults, and all holds after each")
    return 1 if red else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="break everything under load")
    parser.add_argument("--only", action="append", metavar="WORD", help="faults whose name holds it; may be repeated")
    parser.add_argument("--minutes", type=float, default=0, help="go on for so long, in any order")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random (default: %(default)s)")
    parser.add_argument("--short", action="store_true", help="the form that the tests run")
    parser.add_argument("--list", action="store_true", help="say which faults there are")
    return parser


if __name__ == "__main__":
    sys.exit(main())

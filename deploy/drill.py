"""`python3 -m deploy.drill`: a backup of the running stack is restored where every volume is empty, and compared.

By itself it makes a second Compose project for that, with volumes and a port of its own, and removes it afterwards: the
running stack is only read. With `--here` it is the running stack that loses all of its volumes and is restored: for a
stack whose loss is no harm, or for a window of maintenance. Exit code 1 if anything differs.
"""

import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from deploy.backup import back_up
from deploy.backup_folder import check_files, check_target, read_backup
from deploy.drill_copy import copy_of
from deploy.drill_feeds import Door, Link, Served, unlike
from deploy.facts import Facts, differences, feed_differences, read_facts
from deploy.restore import asked, restore
from deploy.server import Server
from deploy.stack import (
    SERVICES,
    Parser,
    Stack,
    Unable,
    code_of,
    end_in_order,
    start_again,
    tell,
    undisturbed,
)

SETTLE_SECONDS = 300.0
STOPPED = ("proxy", *SERVICES)
"""What stands still while the backup of a drill on the running stack is taken."""
HEARD = {"schedule": ("participants", "notifications"), "participants": ("schedule", "notifications")}
"""Who listens to whom."""
_TOLD = """
SELECT (SELECT position FROM relay_cursor) - coalesce((SELECT max(position) FROM events), 0),
  coalesce(sum(cleared_sequence), 0), (SELECT epoch FROM relay_cursor) FROM heads
"""
_TAKEN = """
SELECT coalesce(sum(sequence), 0) FROM consumer_marks
WHERE topic = 'attache.{producer}.cleared' AND epoch = {epoch} AND waits_for IS NULL
"""


@dataclass(kw_only=True)
class Outcome:
    """What was there before and after, and what differs; `over_http` counts feeds that were fetched."""

    before: Facts
    after: Facts
    over_http: int
    http_lines: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """Each difference in one line."""
        return differences(self.before, self.after) + self.http_lines


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 only if all is as it was."""
    parser = Parser(prog="python3 -m deploy.drill", description=__doc__)
    parser.add_argument("--here", action="store_true", help="wipe and restore the running stack itself")
    parser.add_argument("--yes", action="store_true", help="with --here: its volumes may be wiped")
    parser.add_argument("--from", type=Path, dest="folder", help="a backup to try; else one is taken")
    parser.add_argument("--to", type=Path, help="with --here: a new folder for the backup (else one in ~)")
    parsed = parser.parse_args(arguments)
    if parsed.here and parsed.folder:
        parser.error("a drill on the running stack takes a backup of its own: leave FROM out")
    if parsed.to and not parsed.here:
        parser.error("the backup of a drill on a copy is not kept: make backup TO=folder keeps one")
    try:
        stack = Stack.here()
        outcome = drill_here(stack, parsed.to, yes=parsed.yes) if parsed.here else drill_copy(stack, parsed.folder)
    except (Unable, OSError) as error:
        print(f"drill: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interruption:
        print("drill: interrupted", file=sys.stderr)
        return code_of(interruption)
    return report(outcome)


def report(outcome: Outcome) -> int:
    """Print what came of it; returns the exit code, 1 if anything differs."""
    print("\n".join(table(outcome)))
    return 1 if outcome.lines else 0


def say(line: str) -> None:
    """A line of progress."""
    tell(f"drill: {line}")


def drill_copy(stack: Stack, folder: Path | None) -> Outcome:
    """Restore a backup into a second project and compare it with what the backup says. Raises `Unable`."""
    with _backup_of(stack, folder) as backup, copy_of(stack, say) as copy:
        before = read_backup(backup).facts
        _check_something(before)
        restore(copy, backup, "base", say, lambda _: True, nothing_lost=True)
        say(f"starting the copy, {copy.project}, without any of Kafka's volumes")
        copy.up()
        after = settled(copy)
        door = Door(copy)
        links: dict[str, Link] = {}
        refused = door.issue(before.feeds, links)
        served = door.fetch(links, before.feeds)
    return Outcome(
        before=before, after=after, over_http=len(served), http_lines=unlike(before.feeds, served), notes=refused
    )


def drill_here(stack: Stack, to: Path | None = None, *, yes: bool) -> Outcome:
    """Wipe every volume of the running stack, restore and compare. Raises `Unable`; the backup is never removed."""
    to = to or _at_home()
    check_target(to)
    if lacking := {"postgres", *STOPPED} - set(stack.running()):
        raise Unable(f"{' and '.join(sorted(lacking))} must run: start the stack first (make up)")
    what = f"drill: every volume of {stack.project} will be wiped and the databases restored from a backup"
    if not yes and not asked(what):
        raise Unable(f"every volume of {stack.project} would be wiped: say YES=1 if that is wanted")
    feeds = settled(stack).feeds
    with _passing_links(stack) as links:
        refused = Door(stack).issue(feeds, links)
        served = Door(stack).fetch(links, settled(stack).feeds)
        ran = Ran(stack)
        with _stopped(stack):
            before = _whole_backup(stack, to)
        try:
            after, again = _wiped(stack, to, ran, links)
        except BaseException:
            again_by = f"make restore FROM={to.absolute()} NOTHING_LOST=1 YES=1, then {stack.make_up}"
            tell(f"drill: the backup is kept: {again_by}", aside=True)
            raise
    say(f"the backup is kept in {to.absolute()}")
    lines = unlike(before.feeds, again) + _changed(served, again)
    return Outcome(before=before, after=after, over_http=len(again), http_lines=lines, notes=refused)


def _at_home() -> Path:
    try:
        return Path.home() / f"attache-drill-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    except RuntimeError:
        raise Unable("there is no home folder: say where the backup goes with TO=folder") from None


class Ran:
    """What ran before, to be started again: the services, and how many of those that there may be more of."""

    def __init__(self, stack: Stack) -> None:
        self.services = stack.running()
        self.scale = {name: number for name in SERVICES if (number := len(stack.containers(name))) > 1}


@contextlib.contextmanager
def _passing_links(stack: Stack) -> Iterator[dict[str, Link]]:
    """Links for the drill by their audience, to be filled in here: whatever happens, they end, or are named."""
    links: dict[str, Link] = {}
    try:
        yield links
    finally:
        with undisturbed():
            try:
                if links:
                    say("revoking the links of the drill, a signal waits for that")
                    Door(stack).revoke(links)
            except (Unable, OSError) as error:
                ids = " ".join(link.id for link in links.values())
                how = "POST /notifications/feed-links/ID/revoke when the stack runs"
                tell(f"drill: these links of the drill still stand: {ids} ({error}): {how}", aside=True)


@contextlib.contextmanager
def _stopped(stack: Stack) -> Iterator[None]:
    """Nobody writes in here. Whatever goes wrong, what was stopped is started again."""
    containers = stack.containers(*STOPPED)
    try:
        stack.compose("stop", *STOPPED)
        yield
    except BaseException as error:
        with undisturbed():
            say("nothing was wiped; starting again what was stopped, a signal waits for that")
            start_again(containers, error)
        raise


def _whole_backup(stack: Stack, to: Path) -> Facts:
    """A backup that was read once more after it was written, and what is in it. Raises `Unable`; then none is left.

    It is for a while the only copy of all that there is: so not where what is temporary stands, often in memory alone.
    """
    say(f"the backup comes to {to.absolute()}")
    before = back_up(stack, to, say).facts
    try:
        _check_something(before)
        check_files(to, read_backup(to))
    except BaseException:
        with undisturbed():
            shutil.rmtree(to, ignore_errors=True)
        raise
    return before


def _wiped(stack: Stack, folder: Path, ran: Ran, links: dict[str, Link]) -> tuple[Facts, dict[str, Served]]:
    """The part without a way back but the backup: the facts, and the feeds at their old addresses."""
    say(f"wiping every volume of {stack.project}")
    stack.compose("--profile", "*", "down", "--volumes")
    restore(stack, folder, "base", say, lambda _: True, nothing_lost=True)
    stack.up(*ran.services, scale=ran.scale)
    after = settled(stack)
    return after, Door(stack).fetch(links, after.feeds)


def settled(stack: Stack) -> Facts:
    """What the stack holds once everything was told, taken in and rendered. Raises `Unable` if that does not come."""
    container = stack.container("postgres")
    if container is None:
        raise Unable("postgres does not run")
    server = Server(container=container)
    until = time.monotonic() + SETTLE_SECONDS
    while waits := _unsettled(server):
        if time.monotonic() > until:
            raise Unable(f"after {SETTLE_SECONDS:.0f} s {waits}")
        time.sleep(0.5)
    return read_facts(server)


def _unsettled(server: Server) -> str:
    """What is still under way, in words; empty when nothing is."""
    for producer in SERVICES:
        untold, told, epoch = next(iter([*server.rows(producer, _TOLD)]))
        if int(untold) < 0:
            return f"{producer} has not told everything"
        for consumer in HEARD.get(producer, ()):
            if server.value(consumer, _TAKEN.format(producer=producer, epoch=epoch)) != told:
                return f"{consumer} has not taken in all that {producer} told"
    pending = server.value("notifications", "SELECT count(*) FROM marks")
    return "feeds are still to be rendered" if pending != "0" else ""


@contextlib.contextmanager
def _backup_of(stack: Stack, folder: Path | None) -> Iterator[Path]:
    """The backup that was named, or a fresh one, gone afterwards."""
    if folder is not None:
        yield folder
        return
    beside = Path(tempfile.mkdtemp(prefix="attache-drill-"))
    try:
        back_up(stack, beside / "backup", say)
        yield beside / "backup"
    finally:
        with undisturbed():
            shutil.rmtree(beside)


def _check_something(before: Facts) -> None:
    if not any(log.events for log in before.logs.values()):
        raise Unable("there is no event to compare: load something first (docker compose run --rm -T demo)")


def _changed(before: dict[str, Served], after: dict[str, Served]) -> list[str]:
    return [
        f"feed {audience}: answered otherwise than before"
        for audience in before
        if before[audience] != after.get(audience)
    ]


def table(outcome: Outcome) -> list[str]:
    """What is printed at the end."""
    before, after = outcome.before, outcome.after
    counts = f"{'events':>8}{'after':>8}{'last position':>15}{'after':>8}"
    lines = [f"{'service':<14}{counts}  {'log':<8}{'epoch':>11}{'after':>11}"]
    for name, log in before.logs.items():
        now = after.logs[name]
        same = "equal" if log.sha256 == now.sha256 else "differs"
        lines.append(
            f"{name:<14}{log.events:>8}{now.events:>8}{log.last_position:>15}{now.last_position:>8}  {same:<8}"
            f"{log.epoch:>11}{now.epoch:>11}"
        )
    feeds = len(before.feeds)
    lines.append(f"feeds equal in the database: {feeds - len(feed_differences(before.feeds, after.feeds))} of {feeds}")
    wrong = len({line.split(":")[0] for line in outcome.http_lines})
    lines.append(f"feeds equal over HTTP, bytes and ETag: {outcome.over_http - wrong} of {outcome.over_http}")
    return [*lines, *outcome.notes, *outcome.lines, "all is as it was" if not outcome.lines else "NOT as it was"]


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())

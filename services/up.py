"""`python -m services up`: everything on one machine without containers, in one process behind one address.

A real PostgreSQL from a wheel, three services, the demo trip loaded through the public API, and one folder (`DATA`)
that holds all of it: databases, secrets, how far the load came, and `run.json` for scripts while it is ready. Here is
what comes before `services.serving`: the folder, the port, the broker.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

from services.data_folder import Log
from services.embedded import EmbeddedPostgres
from services.stopping import Signals
from services.surroundings import check_kafka, forget_the_shell, listen, say

CLAIM_SECONDS = 2.0
"""How long to wait for the one before, that may be stopping just now."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What was asked for on the command line."""

    port: int
    data: Path
    bus: str
    play: bool


def up(wanted: Wanted, signals: Signals) -> int:
    """Run until Ctrl-C or SIGTERM; returns the exit code. Raises CannotStart, CannotGoOn, OSError for the folder."""
    try:
        _run(wanted, signals)
    except (KeyboardInterrupt, asyncio.CancelledError):
        if not signals.asked:
            raise
    return 0


def _run(wanted: Wanted, signals: Signals) -> None:
    forget_the_shell()
    postgres = EmbeddedPostgres(wanted.data)
    postgres.claim(CLAIM_SECONDS)
    run_file = wanted.data / "run.json"
    run_file.unlink(missing_ok=True)
    with listen(wanted.port) as listening, Log(wanted.data / "services.log") as lines:
        if wanted.bus == "kafka":
            check_kafka()
        say(f"data in {wanted.data.resolve()}; the log is {wanted.data / 'services.log'}")
        from services.serving import Start, run  # a second's work, for what may run alone

        start = Start(
            data=wanted.data,
            bus=wanted.bus,
            play=wanted.play,
            postgres=postgres,
            listening=listening,
            run_file=run_file,
        )
        run(start, cast(TextIO, lines), signals)

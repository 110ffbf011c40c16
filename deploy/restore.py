"""`python3 -m deploy.restore --from FOLDER`: put a backup in the place of what the stack's databases hold.

The new data are made beside the present ones, in the same volume: unpacked, checked, started, compared with what the
backup says, and told (`python -m services restored`) before they take the place in one step. Whatever goes wrong
before that leaves the present data as they are. A marker keeps PostgreSQL from starting meanwhile, and after a restore
that was killed; running it again goes on from any state. What Kafka holds does not matter.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from deploy.backup_folder import BASE, DUMPS, Backup, check_files, major, read_backup
from deploy.facts import Facts, differences, read_facts, read_log
from deploy.server import HOME, LENT_DATA, Server, lent, megabytes, passing
from deploy.stack import (
    BROKERS,
    ROOT,
    SERVICES,
    Parser,
    Say,
    Stack,
    Unable,
    code_of,
    end_in_order,
    start_again,
    tell,
    undisturbed,
)

REPLACED = f"{HOME}/replaced"
MARKER = f"{HOME}/restore-unfinished"
"""deploy/postgres/start.sh starts nothing while it is there. In it: the epoch above which the restored ones go."""
KEPT = "nothing later was shown: feeds keep every byte"
TOLD_ANEW = (
    "calendars may have seen what came later: each entry is told anew with a higher SEQUENCE (NOTHING_LOST=1 keeps "
    "every byte of the feeds)"
)

Agree = Callable[[str], bool]
"""Asked whether what is there may be replaced."""

_PASSWORDS = r"""
set -euo pipefail
for name in postgres schedule participants notifications; do
  file=/run/secrets/${name}_database_url
  [ $name != postgres ] || file=/run/secrets/postgres_password
  password=$(cat "$file")
  case $password in *://*) password=${password#*://*:} password=${password%%@*} ;; esac
  printf "\\\\set password '%s'\nALTER ROLE %s PASSWORD :'password';\n" "$password" "$name"
done | psql -XAtq -v ON_ERROR_STOP=1 -U postgres -h "$0" -d postgres
"""
_NEW_CLUSTER = r"""
set -euo pipefail
initdb -D "$0" -U postgres --pwfile=/run/secrets/postgres_password $POSTGRES_INITDB_ARGS
printf '\nhost all all all scram-sha-256\n' >>"$0/pg_hba.conf"
"""
_ROLES = """
set -euo pipefail
export PGHOST=$0
. /docker-entrypoint-initdb.d/10-services.sh
"""
_SWAP = """
set -euo pipefail
new=$0 old=$1 replaced=$2
rm -rf "$replaced"
mkdir -p -m 0700 "$(dirname "$old")"
[ ! -e "$old" ] || mv "$old" "$replaced"
mv "$new" "$old"
sync
"""
_TIDY = """
set -euo pipefail
new=$0 old=$1 replaced=$2
[ -e "$old" ] || [ ! -e "$replaced" ] || mv "$replaced" "$old"
rm -rf "$new" "$replaced"
"""


class Present(NamedTuple):
    """What stands in the volume: in words (none for nothing), its highest epoch, and its facts if they can be read."""

    words: str
    epoch: int = 0
    facts: Facts | None = None


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code; what cannot be done is said in one line."""
    parser = Parser(prog="python3 -m deploy.restore", description=__doc__)
    parser.add_argument("--from", type=Path, required=True, dest="folder", help="a folder that make backup wrote")
    parser.add_argument(
        "--kind", choices=("base", "dump"), default="base", help="from which of its files (%(default)s)"
    )
    parser.add_argument(
        "--nothing-lost", action="store_true", help="no calendar saw anything later: feeds keep every byte"
    )
    parser.add_argument("--yes", action="store_true", help="what is there may be replaced")
    parsed = parser.parse_args(arguments)
    try:
        stack = Stack.here()
        backup = restore(
            stack,
            parsed.folder,
            parsed.kind,
            say,
            lambda what: parsed.yes or asked(what),
            nothing_lost=parsed.nothing_lost,
        )
    except (Unable, OSError) as error:
        print(f"restore: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interruption:
        print("restore: interrupted; run it again, or start the stack with what it had (make up)", file=sys.stderr)
        return code_of(interruption)
    say(f"done; go on with {go_on(stack, backup)}")
    return 0


def say(line: str) -> None:
    """A line of progress."""
    tell(f"restore: {line}")


def asked(what: str) -> bool:
    """Whether somebody at the terminal types yes."""
    try:
        return sys.stdin.isatty() and input(f"{what}\nType yes to replace it: ").strip().lower() == "yes"
    except EOFError:
        return False


def restore(stack: Stack, folder: Path, kind: str, say: Say, agree: Agree, *, nothing_lost: bool = False) -> Backup:
    """Replace the stack's databases by a backup. Raises `Unable`, OSError; then what was there is there still.

    Each calendar entry is told anew as a newer one, unless nothing is lost, that is nobody was shown anything since:
    where what is there is what the backup says, that is found out here.
    """
    check_stopped(stack)
    backup = read_backup(folder)
    check_revisions(backup)
    say(f"the backup of {backup.taken_at}: reading all of it")
    check_files(folder, backup)
    start_brokers(stack, backup, say)
    with _postgres_stopped(stack, say), lent(stack) as server:
        check_version(server, backup, kind)
        data = server.run("printenv", "PGDATA").strip()
        above, same = _agreed(server, data, backup, agree)
        nothing_lost = nothing_lost or same
        say(KEPT if nothing_lost else TOLD_ANEW)
        server.run("bash", "-c", 'echo "$1" >"$0"', MARKER, str(above))
        try:
            _fill(server, folder, backup, kind, say)
            _tell(stack, server, ["--above", str(above), *(["--nothing-lost"] if nothing_lost else [])], say)
        except BaseException:
            with undisturbed(), contextlib.suppress(Unable):
                server.run("bash", "-c", f"rm -rf {LENT_DATA} {MARKER}")
            raise
        server.run("bash", "-c", _SWAP, LENT_DATA, data, REPLACED)
        server.run("rm", "-rf", MARKER, REPLACED)
    return backup


def go_on(stack: Stack, backup: Backup) -> str:
    """The words that start the stack afterwards."""
    if backup.brokers == 1 or len(stack.brokers) > 1 or _has_kafka(stack):
        return stack.make_up
    return "make up CLUSTER=1, as where the backup is from (make up: with one broker)"


def check_stopped(stack: Stack) -> None:
    """Raises `Unable` while a service runs."""
    if running := [name for name in stack.running() if name in SERVICES]:
        names = " and ".join(running)
        raise Unable(f"{names} must not run meanwhile: docker compose stop proxy {' '.join(SERVICES)}")


def check_revisions(backup: Backup) -> None:
    """Raises `Unable` for a schema that this release does not know."""
    for name, log in backup.facts.logs.items():
        files = (ROOT / "services" / name / "migrations" / "versions").glob("*.py")
        if not any(f'\nrevision = "{log.revision}"\n' in file.read_text(encoding="utf-8") for file in files):
            raise Unable(f"the schema of {name} is of a later release (revision {log.revision}): restore with that one")


def check_version(server: Server, backup: Backup, kind: str) -> None:
    """Raises `Unable` where this PostgreSQL cannot read what is to be restored."""
    here = major(server.run("postgres", "--version").split()[2])
    if kind == "base" and here != backup.major:
        raise Unable(f"the base backup is of PostgreSQL {backup.major}, this is {here}: say KIND=dump")
    if here < backup.major:
        raise Unable(f"the backup is of PostgreSQL {backup.major}, this is {here}: use postgres:{backup.major}")


def start_brokers(stack: Stack, backup: Backup, say: Say) -> None:
    """So that the highest epoch that was told can be read there; without a broker the relays look later.

    Where no Kafka is and there were more brokers than these settings say, whoever starts the stack decides: a volume
    that one broker has made is of no use to three.
    """
    try:
        if brokers := [name for name in stack.made() if name in BROKERS]:
            stack.compose("start", *brokers)
        elif (brokers := stack.brokers) and (backup.brokers <= len(brokers) or _has_kafka(stack)):
            stack.up(*brokers)
    except Unable as error:
        say(f"Kafka does not start ({error}); going on without")


def _has_kafka(stack: Stack) -> bool:
    return "kafka" in stack.made() or stack.has_volume("kafka")


@contextlib.contextmanager
def _postgres_stopped(stack: Stack, say: Say) -> Iterator[None]:
    """The stack's own server ends, and comes back where nothing came of it."""
    ran = stack.containers("postgres") if "postgres" in stack.running() else []
    try:
        stack.compose("stop", "postgres")
        yield
    except BaseException as error:
        if ran:
            with undisturbed():
                say("starting the database again; a signal waits for that")
                start_again(ran, error)
        raise


def _agreed(server: Server, data: str, backup: Backup, agree: Agree) -> tuple[int, bool]:
    """Look at what is there and ask. Raises `Unable`.

    Returns the highest epoch that is known there, and whether what is there is what the backup has.
    """
    server.run("bash", "-c", _TIDY, LENT_DATA, data, REPLACED)
    there = _present(server, data)
    above = max([there.epoch, *(log.epoch for log in backup.facts.logs.values())])
    with contextlib.suppress(Unable, ValueError):
        above = max(above, int(server.run("cat", MARKER)))  # what one saw that was killed
    if there.words and not agree(f"restore: {there.words} will be replaced by the backup of {backup.taken_at}"):
        words = f"{there.words} would be replaced by the backup of {backup.taken_at}"
        raise Unable(f"{words}: say YES=1 if that is wanted")
    needed = 2 * backup.unpacked_bytes
    if (free := server.free_bytes()) < needed:
        raise Unable(f"Docker has room for {megabytes(free)}, and up to {megabytes(needed)} are needed")
    return above, there.facts is not None and is_what(backup.facts, there.facts)


def is_what(backup: Facts, there: Facts) -> bool:
    """Whether nothing was written since a backup, and its feeds are at no other epoch: it was not put back itself."""
    name = "notifications"
    return not differences(backup, there) and backup.logs[name].epoch == there.logs[name].epoch


def _present(server: Server, data: str) -> Present:
    try:
        server.run("test", "-e", f"{data}/PG_VERSION")
    except Unable:
        return Present("")
    try:
        server.run_data(data)
    except Unable as error:
        return Present(f"a database that does not start ({error})")
    try:
        logs = {name: read_log(server, name) for name in SERVICES}
        words = ", ".join(f"{log.events} events of {name}" for name, log in logs.items() if log.events)
        with contextlib.suppress(Unable):  # feeds of another schema
            return Present(words, max(log.epoch for log in logs.values()), read_facts(server))
        return Present(words, max(log.epoch for log in logs.values()))
    except Unable as error:
        return Present(f"a database that cannot be read ({error})")
    finally:
        server.stop_data(data)


def _fill(server: Server, folder: Path, backup: Backup, kind: str, say: Say) -> None:
    """Make the new data, start the server on them, and compare. Raises `Unable`."""
    if kind == "base":
        say(f"unpacking {megabytes(backup.unpacked_bytes)} beside what is there, and checking each file")
        server.unpack(folder / BASE, LENT_DATA)
    else:
        say("making a new cluster beside what is there")
        _new_cluster(server)
    server.run_data(LENT_DATA, "*")
    if kind == "dump":
        server.run("bash", "-c", _ROLES, server.socket)
        for name in SERVICES:
            say(f"  {DUMPS[name]}")
            _load(server, folder, name)
    server.run("bash", "-c", _PASSWORDS, server.socket)
    if lines := differences(backup.facts, read_facts(server)):
        raise Unable(f"what was restored is not what the backup says: {'; '.join(lines[:3])}")
    say("events, positions and feeds are as the backup says")


def _new_cluster(server: Server) -> None:
    """As the image's entry point does at a first start; it could not be had without starting a server of its own."""
    server.run("bash", "-c", _NEW_CLUSTER, LENT_DATA)


def _load(server: Server, folder: Path, name: str) -> None:
    how = ["--no-owner", f"--role={name}", "--exit-on-error", "--single-transaction"]
    server.read_from(folder / DUMPS[name], ["pg_restore", "-U", "postgres", "-h", server.socket, "-d", name, *how])


def _tell(stack: Stack, server: Server, what: Sequence[str], say: Say) -> None:
    """Bring the schema to this release and raise the epochs, by the services' own jobs; then stop the server."""
    with passing(f"{stack.project}-telling") as name:
        run: Sequence[str] = ("--progress", "quiet", "run", "--rm", "--no-deps", "-T", "--name", name)
        job = ("migrate", "python", "-m", "services")
        stack.compose(*run, *job, "migrate")
        for line in stack.compose(*run, *job, "restored", *what).splitlines():
            say(f"  {line}")
    server.stop_data(LENT_DATA)


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())

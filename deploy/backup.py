"""`python3 -m deploy.backup --to FOLDER`: the three databases of the running stack at one moment, in one folder.

The services go on meanwhile. The base backup is unpacked and started in a container of its own at once: a backup that
does not start is none. What is counted and dumped is read there, so that base, dumps and counts are of the same moment
and the running server works once.
"""

import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from deploy.backup_folder import BASE, DUMPS, MANIFEST, Backup, check_room, check_target, new_folder, write_manifest
from deploy.facts import read_facts
from deploy.server import LENT_DATA, LIVE_SOCKET, Server, held_wal, megabytes, scratch
from deploy.stack import BROKERS, SERVICES, Parser, Say, Stack, Unable, code_of, docker, end_in_order, tell

_SIZE = "SELECT sum(pg_database_size(oid)) FROM pg_database"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code; what cannot be done is said in one line."""
    parser = Parser(prog="python3 -m deploy.backup", description=__doc__)
    parser.add_argument("--to", type=Path, required=True, help="a new folder")
    parsed = parser.parse_args(arguments)
    try:
        backup = back_up(Stack(), parsed.to, say)
    except (Unable, OSError) as error:
        print(f"backup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interruption:
        kept = f"{parsed.to} is whole" if (parsed.to / MANIFEST).exists() else "nothing was kept"
        tell(f"backup: interrupted; {kept}", aside=True)
        return code_of(interruption)
    size = sum(int(file["bytes"]) for file in backup.files.values())
    events = sum(log.events for log in backup.facts.logs.values())
    say(f"{parsed.to} is whole: {events} events, {len(backup.facts.feeds)} feeds, {megabytes(size)}")
    say("not in it: the folder of secrets and .env; keep a copy of them in a place of their own")
    return 0


def say(line: str) -> None:
    """A line of progress."""
    tell(f"backup: {line}")


def back_up(stack: Stack, to: Path, say: Say) -> Backup:
    """Write a backup of the running stack to a folder. Raises `Unable`, OSError; then nothing is left."""
    check_target(to)
    container = stack.container("postgres")
    if container is None:
        raise Unable("postgres does not run: start the stack first (make up)")
    server = Server(container=container)
    size = int(server.value("postgres", _SIZE))
    check_room(to, 2 * size)
    if (free := server.free_bytes()) < 2 * size:
        raise Unable(f"Docker has room for {megabytes(free)}, and the check needs up to {megabytes(2 * size)}")
    with new_folder(to) as folder:
        brokers = len(set(BROKERS) & set(stack.made())) or 1
        backup = replace(_write(server, folder, size, say), brokers=brokers)
        write_manifest(folder, backup)
    return backup


def _write(server: Server, folder: Path, size: int, say: Say) -> Backup:
    say(f"base backup of {megabytes(size)}; the services go on")
    with held_wal(server):
        command = ["pg_basebackup", "-U", "postgres", "-h", LIVE_SOCKET, "-D", "-", "-Ft", "-X", "fetch"]
        base = server.write_to(folder / BASE, [*command, "-c", "fast", "--compress=client-gzip:1"], say)
    taken_at = datetime.now(UTC)
    say(f"  {BASE}: {megabytes(int(base['bytes']))}; starting it in a container of its own")
    image = docker("inspect", "--format", "{{.Image}}", server.container).strip()
    with scratch(image) as copy:
        copy.unpack(folder / BASE, LENT_DATA)
        unpacked = int(copy.run("du", "-s", "-B1", LENT_DATA).split()[0])
        copy.run_data(LENT_DATA)
        facts = read_facts(copy)
        files = {BASE: base, **{DUMPS[name]: _dump(copy, name, folder, say) for name in SERVICES}}
        version = copy.value("postgres", "SHOW server_version").split()[0]
    return Backup(
        taken_at=taken_at.isoformat(timespec="seconds"),
        postgres=version,
        unpacked_bytes=unpacked,
        facts=facts,
        files=files,
    )


def _dump(copy: Server, name: str, folder: Path, say: Say) -> dict[str, str | int]:
    path = folder / DUMPS[name]
    command = ["pg_dump", "-U", "postgres", "-h", copy.socket, "--format=custom", "--no-password", name]
    written = copy.write_to(path, command, say)
    copy.read_from(path, ["pg_restore", "--list"])
    say(f"  {path.name}: {megabytes(int(written['bytes']))}")
    return written


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())

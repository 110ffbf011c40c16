"""The Compose stack as the host's programs see it: `docker compose` for one project, and its refusals in one line.

Standard library alone: backup, restore and drill run where nothing but Python and Docker is installed.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from deploy.env_file import in_force, read_env

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("schedule", "participants", "notifications")
"""Each has a database and a role of its own name."""
BROKERS = ("kafka", "kafka-2", "kafka-3")
CLUSTER = ROOT / "deploy" / "cluster.env"
"""What `make up CLUSTER=1` says besides."""

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
END_SECONDS = 30.0
"""So long may a program that is asked to end go on."""

Say = Callable[[str], None]
"""Where a line of progress goes."""


class Unable(Exception):
    """What cannot be done, and what to do about it: one readable line."""


class Parser(argparse.ArgumentParser):
    """One that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.rpartition('.')[2]}: {message}\n")


def tell(line: str, *, aside: bool = False) -> None:
    """Print a line, on standard error if it is `aside`. That nobody hears it any more stops nothing."""
    stream = sys.stderr if aside else sys.stdout
    try:
        print(line, file=stream, flush=True)
    except OSError:
        with contextlib.suppress(OSError):  # what it still holds would fail again at the program's end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def end_in_order() -> None:
    """Let SIGTERM and a terminal that goes away end this program as Ctrl-C does: what was begun is taken back.

    The first of them does, and all that come then wait for it.
    """
    _hear(_interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    _hear(lambda *_: None)
    raise KeyboardInterrupt(number)


def _hear(handler: Callable[[int, FrameType | None], object]) -> None:
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, handler)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """In here something is taken back: what would end this program waits, and counts if nothing else ends it."""
    if threading.current_thread() is not threading.main_thread():  # signals never come to another one
        yield
        return
    came: list[int] = []
    heard = [number for number in ENDING if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, lambda got, _: came.append(got)) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came and sys.exc_info()[0] is None:
        _interrupt(came[0], None)


def code_of(interruption: KeyboardInterrupt) -> int:
    """The exit code, as a shell has it."""
    return 128 + int(next(iter(interruption.args), signal.SIGINT))


class Stack:
    """One project. `environment` is laid over the own one, so that a copy can have another port and image."""

    def __init__(self, project: str | None = None, environment: Mapping[str, str] | None = None) -> None:
        self.environment = {**os.environ, **(environment or {})}
        if project is not None:
            self.environment["COMPOSE_PROJECT_NAME"] = project
        self._config: dict[str, Any] | None = None
        self.make_up = "make up"
        """The words that start it."""

    @classmethod
    def here(cls) -> "Stack":
        """The one that is here, as it was started: where it has more brokers than its settings say, as a cluster."""
        stack = cls()
        made = set(BROKERS) & set(stack.made())
        cluster = made - {"kafka"} if made else stack.has_volume("kafka-2")  # make down leaves the volumes
        if not cluster or len(stack.brokers) > 1:
            return stack
        given = in_force(read_env(CLUSTER))
        profiles = f"{os.environ.get('COMPOSE_PROFILES', '')},cluster"
        stack = cls(environment={**given, "COMPOSE_PROFILES": profiles.strip(",")})
        stack.make_up = "make up CLUSTER=1"
        return stack

    @property
    def config(self) -> dict[str, Any]:
        """The whole of what Compose would start."""
        if self._config is None:
            self._config = json.loads(self.compose("--profile", "*", "config", "--format", "json"))
        return self._config

    @property
    def project(self) -> str:
        """The project's name, which begins the names of its containers and volumes."""
        return str(self.config["name"])

    @property
    def brokers(self) -> list[str]:
        """Those that Compose would start."""
        return [name for name in self.compose("config", "--services").split() if name in BROKERS]

    def has_volume(self, volume: str) -> bool:
        """Whether it is there. Docker's own filter by name takes each that has a name somewhere in its own."""
        name = (self.config.get("volumes") or {}).get(volume, {}).get("name")
        return name is not None and name in docker("volume", "ls", "--quiet").split()

    def compose(self, *arguments: str) -> str:
        """The output of `docker compose ARGUMENTS`. Raises `Unable` with its last line where it fails."""
        return docker("compose", *arguments, environment=self.environment)

    def running(self) -> list[str]:
        """The services of which a container runs. (`--status` would count those of `docker compose run` too.)"""
        return sorted(self.compose("ps", "--services").split())

    def made(self) -> list[str]:
        """The services of which there is a container, running or not."""
        return sorted(self.compose("ps", "--all", "--services").split())

    def container(self, service: str) -> str | None:
        """The id of a service's running container."""
        return next(iter(self.containers(service)), None) if service in self.made() else None

    def containers(self, *services: str) -> list[str]:
        """The ids of all running containers of services that there are, without those of `docker compose run`."""
        return self.compose("ps", "--quiet", *services).split()

    def up(self, *services: str, scale: Mapping[str, int] | None = None) -> None:
        """Start these, or all, and wait until they are healthy; nothing is built. `scale` says how many of which."""
        scales = [f"--scale={name}={number}" for name, number in (scale or {}).items()]
        self.compose("up", "--detach", "--wait", "--no-build", *scales, *services)

    def secret(self, name: str) -> str:
        """What stands in the file of a secret. Raises `Unable`."""
        try:
            return Path(self.config["secrets"][name]["file"]).read_text(encoding="utf-8").strip()
        except (OSError, KeyError) as error:
            raise Unable(f"the secret {name} cannot be read ({error}): run make secrets") from None


def docker(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """The output of a `docker` command. Raises `Unable` with its last line where it fails."""
    done = start(arguments, environment=environment, stdin=subprocess.DEVNULL)
    output, errors = finished(done)
    if done.returncode:
        raise Unable(last_line(errors) or f"docker {' '.join(arguments)} ended with {done.returncode}")
    return output.decode()


def start(
    arguments: Sequence[str], *, environment: Mapping[str, str] | None = None, stdin: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    """A `docker` command that goes on by itself, with pipes. Raises `Unable` where there is no such program.

    It has a session of its own: a terminal's Ctrl-C comes to this program alone, which knows what has to end.
    """
    try:
        return subprocess.Popen(
            ["docker", *arguments],
            cwd=ROOT,
            env=environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise Unable("there is no program docker: install Docker with Compose v2") from None


def finished(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    """All that it puts out, when it has ended. An interruption ends it first: it does not go on beside what follows."""
    try:
        return process.communicate()
    except BaseException:
        with undisturbed():
            _end(process)
        raise


def start_again(containers: Sequence[str], error: BaseException) -> None:
    """Start what an error left stopped, or half way there. Raises `Unable` where that fails too.

    The engine goes on stopping what it has begun to stop, also after a start: so they stop to the end first.
    """
    with undisturbed():
        with contextlib.suppress(Unable):
            docker("stop", *containers)
        try:
            docker("start", *containers)
        except Unable as other:
            what = error if isinstance(error, Exception) else "interrupted"
            raise Unable(f"{what}; and it does not start again: {other} (docker compose start)") from error


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)  # Compose is a child of docker's
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=END_SECONDS)
            return


def last_line(output: bytes) -> str:
    """The last line that says something: the reason, as a rule."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""

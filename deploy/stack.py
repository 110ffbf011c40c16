"""The Compose stack as the host's programs see it: `docker compose` for one project, and its refusals in one line.

Standard library alone: backup, restore and drill run where nothing but Python and Docker is installed.
"""

import argparse
import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("schedule", "participants", "notifications")
"""Each has a database and a role of its own name."""
BROKERS = ("kafka", "kafka-2", "kafka-3")

Say = Callable[[str], None]
"""Where a line of progress goes."""


class Unable(Exception):
    """What cannot be done, and what to do about it: one readable line."""


class Parser(argparse.ArgumentParser):
    """One that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog.rpartition('.')[2]}: {message}\n")


def end_in_order() -> None:
    """Let SIGTERM and a terminal that goes away end this program as Ctrl-C does: what was begun is taken back."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)


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

    def volume(self, name: str) -> str:
        """The whole name of a volume. Docker's own filter by name takes each that has it somewhere in its own."""
        return str(self.config["volumes"][name]["name"])

    def compose(self, *arguments: str) -> str:
        """The output of `docker compose ARGUMENTS`. Raises `Unable` with its last line where it fails."""
        return docker("compose", *arguments, environment=self.environment)

    def running(self) -> list[str]:
        """The services of which a container runs."""
        return sorted(self.compose("ps", "--services", "--status", "running").split())

    def made(self) -> list[str]:
        """The services of which there is a container, running or not."""
        return sorted(self.compose("ps", "--all", "--services").split())

    def container(self, service: str) -> str | None:
        """The id of a service's running container."""
        found = self.compose("ps", "--quiet", "--status", "running", service).split() if service in self.made() else []
        return found[0] if found else None

    def up(self, *services: str) -> None:
        """Start these, or all, and wait until they are healthy; nothing is built."""
        self.compose("up", "--detach", "--wait", "--no-build", *services)

    def secret(self, name: str) -> str:
        """What stands in the file of a secret. Raises `Unable`."""
        try:
            return Path(self.config["secrets"][name]["file"]).read_text(encoding="utf-8").strip()
        except (OSError, KeyError) as error:
            raise Unable(f"the secret {name} cannot be read ({error}): run make secrets") from None


def docker(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """The output of a `docker` command. Raises `Unable` with its last line where it fails."""
    done = start(arguments, environment=environment, stdin=subprocess.DEVNULL)
    output, errors = done.communicate()
    if done.returncode:
        raise Unable(last_line(errors) or f"docker {' '.join(arguments)} ended with {done.returncode}")
    return output.decode()


def start(
    arguments: Sequence[str], *, environment: Mapping[str, str] | None = None, stdin: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    """A `docker` command that goes on by itself, with pipes. Raises `Unable` where there is no such program."""
    try:
        return subprocess.Popen(
            ["docker", *arguments],
            cwd=ROOT,
            env=environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    except FileNotFoundError:
        raise Unable("there is no program docker: install Docker with Compose v2") from None


def last_line(output: bytes) -> str:
    """The last line that says something: the reason, as a rule."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else ""

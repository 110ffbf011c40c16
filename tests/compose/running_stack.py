"""A Compose project for tests: a name, a port and secrets of its own, up for as long as it is asked for."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

from deploy.kafka_node import free_port
from deploy.make_secrets import make

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A project that is up."""

    project: str
    env: Path
    port: int

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def compose(self, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """One command of Compose's for this project."""
        return compose(self.project, self.env, *words, check=check)

    def demo(self, *words: str) -> str:
        """What the demo prints on standard output."""
        return self.compose("run", "--rm", "-T", "demo", *words).stdout

    def containers(self, service: str) -> Sequence[str]:
        """The ids of a service's containers."""
        return self.compose("ps", "-q", service).stdout.split()

    def secret(self, name: str) -> str:
        """What stands in one of the secrets' files."""
        return (self.env.parent / "secrets" / name).read_text(encoding="utf-8").strip()


def compose(project: str, env: Path, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """One command of Compose's; with `check`, one that has to succeed.

    No override beside the file is read: what that names may be somebody's, and goes with the volumes.
    """
    file = str(ROOT / "docker-compose.yml")
    done = subprocess.run(
        ["docker", "compose", "--file", file, "--project-name", project, "--env-file", str(env), *words],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "ATTACHE_IMAGE": "attache/compose-test"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def engine_answers() -> bool:
    """Whether a Docker engine is there."""
    if shutil.which("docker") is None:
        return False
    try:
        return not subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=120).returncode
    except subprocess.TimeoutExpired:
        return False


@contextmanager
def started(folder: Path, *words: str, settings: str = "") -> Iterator[Stack]:
    """The stack, up and healthy, at a free port; its secrets are in the folder. It goes with its volumes.

    `settings` are lines of its `.env`.
    """
    port = free_port()  # it stays free while the image is built
    env = secrets_in(folder, f"{settings}PORT={port}\n")
    found = Stack(project=f"attache-test-{token_hex(4)}", env=env, port=port)
    try:
        found.compose("up", "--build", "--wait", *words)
        yield found
    finally:
        found.compose("--profile", "*", "down", "--volumes", "--timeout", "5", check=False)


def secrets_in(folder: Path, lines: str = "") -> Path:
    """Make secrets in a folder; returns the file of settings that names them."""
    folder.chmod(0o755)
    env = folder / ".env"
    # the whole path: Compose reads a relative one from where docker-compose.yml stands
    env.write_text(f"{lines}ATTACHE_SECRETS={folder / 'secrets'}\n", encoding="utf-8")
    make(env, {})
    return env

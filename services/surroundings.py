"""What a start finds around it and cannot choose: the shell's variables, ports, a broker, the disk."""

import contextlib
import errno
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import structlog

from services.embedded import CannotStart

FULL_BYTES = 1_000_000

log = structlog.get_logger()


class CannotGoOn(Exception):
    """What was running has to stop, for the reason that the text says in one line."""


def forget_the_shell() -> None:
    """Everything is on this machine and its address known: neither a proxy nor libpq's variables are to be heeded."""
    for name in list(os.environ):
        if name.startswith("PG") or name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            del os.environ[name]
    os.environ["PGSSLMODE"] = "disable"  # nor certificates, looked for in a home that may be closed


@contextlib.contextmanager
def explained(data: Path, readable: tuple[type[Exception], ...]) -> Iterator[None]:
    """Whatever fails inside, fails with one line; for what is not `readable`, the log has the rest."""
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or (data.exists() and shutil.disk_usage(data).free < FULL_BYTES):
            raise CannotGoOn(f"{data}: the disk is full") from error
        if isinstance(error, CannotStart | CannotGoOn):
            raise
        if isinstance(error, readable):
            raise CannotGoOn(str(error)) from error
        log.exception("up.failed")
        raise CannotGoOn(f"{line_of(error)} ({data / 'services.log'} has the whole)") from error


def listen(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen(256)
    except OSError as error:
        listening.close()
        raise CannotStart(
            f"cannot listen on port {port}: {error.strerror}; name another: make run PORT=8090"
        ) from error
    return listening


def kafka_bootstrap() -> str:
    return os.environ.get("KAFKA_BOOTSTRAP") or "127.0.0.1:9092"


def check_kafka() -> None:
    host, _, port = kafka_bootstrap().split(",")[0].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except (OSError, ValueError, OverflowError) as error:
        raise CannotStart(
            f"no Kafka answers at {kafka_bootstrap()}: start one in another terminal: make kafka"
        ) from error


def line_of(error: BaseException) -> str:
    """The type of an error and the first line of what it says."""
    said = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def say(line: str) -> None:
    """What people are told; stdout is for what they asked for."""
    print(line, file=sys.stderr, flush=True)

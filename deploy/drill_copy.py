"""A second Compose project beside a stack, with the same image and secrets, that shares nothing it could harm.

An override file or an `.env` may name volumes, networks or a Kafka outright: both projects would have the same ones.
"""

import contextlib
import secrets
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from deploy.env_file import read_env
from deploy.stack import CLUSTER, Say, Stack, Unable, docker, undisturbed

KAFKA = "kafka:9092"
_ELSE = "leave that out for a drill on a copy (COMPOSE_FILE=docker-compose.yml make drill), or drill on another machine"


@contextlib.contextmanager
def copy_of(stack: Stack, say: Say) -> Iterator[Stack]:
    """A project of its own, begun with nothing and removed with all that it held. Raises `Unable`."""
    environment = {
        **stack.environment,  # where the secrets are may be said there alone, and not in an .env
        **dict.fromkeys(read_env(CLUSTER), ""),  # one broker is enough, and never a Kafka that the stack shares
        "PORT": str(_free_port()),
        "BIND": "127.0.0.1",
        "ATTACHE_IMAGE": stack.config["services"]["schedule"]["image"],
    }
    for project in _left(stack):
        how = f"docker compose -p {project} --profile '*' down --volumes"
        say(f"{project} is there, of a drill that was killed or still runs: {how} removes it")
    # nobody has a project of this name, so nothing is there to be removed first
    copy = Stack(f"{stack.project}-drill-{secrets.token_hex(4)}", environment)
    if lines := shared(stack.config, copy.config) + _databases(copy):
        raise Unable(f"the copy would work on what is not its own, {'; '.join(lines)}: {_ELSE}")
    try:
        yield copy
    finally:
        with undisturbed():
            say(f"removing the copy, {copy.project}; a signal waits for that")
            copy.compose("--profile", "*", "down", "--volumes")


def shared(stack: Mapping[str, Any], copy: Mapping[str, Any]) -> list[str]:
    """What two projects would both work on, by what Compose would start, each in a few words."""
    return [
        *(f"the {kind} {name}" for kind in ("volume", "network") for name in _not_own(stack, copy, f"{kind}s")),
        *(
            f"{mount['source']} of {name}"
            for name, service in copy.get("services", {}).items()
            for mount in service.get("volumes", [])
            if mount["type"] == "bind" and not mount.get("read_only")
        ),
        *(
            f"the {what} of {name}"
            for name, service in copy.get("services", {}).items()
            for what in _elsewhere(service)
        ),
    ]


def _elsewhere(service: Mapping[str, Any]) -> list[str]:
    """What a service would reach by an address of its own, which may be told with a prefix too; none holds a secret."""
    told = {name: value for name, value in (service.get("environment") or {}).items() if value}
    kafkas = [where for name, where in told.items() if name.endswith("KAFKA_BOOTSTRAP") and where != KAFKA]
    return [
        *(f"Kafka {where}" for where in kafkas),
        *(name for name in told if name.endswith(("DATABASE_URL", "BUS_URL"))),
        *(["network of the host"] if service.get("network_mode") else []),
    ]


def _databases(copy: Stack) -> list[str]:
    """The secrets that name another server than the copy's own."""
    names = [name for name in copy.config.get("secrets") or {} if name.endswith("_database_url")]
    return [f"the server in the secret {name}" for name in names if urlsplit(copy.secret(name)).hostname != "postgres"]


def _not_own(stack: Mapping[str, Any], copy: Mapping[str, Any], kind: str) -> list[str]:
    names = {one.get("name") for one in (stack.get(kind) or {}).values()}
    return [
        str(one.get("name"))
        for one in (copy.get(kind) or {}).values()
        if one.get("external") or one.get("name") in names or "device" in (one.get("driver_opts") or {})
    ]


def _left(stack: Stack) -> list[str]:
    """Projects that look like copies of this one. Their names say nothing of whose they are: they are only told."""
    label = "com.docker.compose.project"
    listed = docker("volume", "ls", "--filter", f"label={label}", "--format", f'{{{{.Label "{label}"}}}}')
    return sorted({name for name in listed.split() if name.startswith(f"{stack.project}-drill")})


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])

"""docker-compose.yml as data: as Compose itself reads it, or, where there is no Docker, as YAML with its variables."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy.env_file import read_env

ROOT = Path(__file__).resolve().parents[2]
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])((?:[^{}]|\$\{[^{}]*\})*))?\}")
GIVEN = {"ATTACHE_SECRETS": "./deploy/secrets", "KAFKA_CLUSTER_ID": "0123456789abcdefghijkl"}
Project = dict[str, Any]


def compose_answers() -> bool:
    """Whether `docker compose` is there; it needs no engine to read a file."""
    return (
        shutil.which("docker") is not None
        and not subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    )


def by_compose(extra: Mapping[str, str]) -> Project:
    """All profiles, in Compose's own normal form."""
    found = subprocess.run(
        ["docker", "compose", "--env-file", os.devnull, "--profile", "*", "config", "--format", "json"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **GIVEN, **extra},
        capture_output=True,
        text=True,
        check=True,
    )
    project: Project = json.loads(found.stdout)
    return project


def by_yaml(extra: Mapping[str, str]) -> Project:
    """The same from the file alone."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    project: Project = yaml.safe_load(_filled(text, {**GIVEN, **extra}))
    for service in project["services"].values():
        for name in ("networks", "depends_on"):
            if isinstance(service.get(name), list):
                service[name] = {one: {} for one in service[name]}
        for name, target in (("volumes", "target"), ("secrets", "source")):
            service[name] = [_long(one, target) for one in service.get(name, [])]
    without_aliases: Project = json.loads(json.dumps(project))
    return without_aliases


def cluster() -> Mapping[str, str]:
    """What deploy/cluster.env says."""
    return read_env(ROOT / "deploy" / "cluster.env")


def _filled(text: str, given: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        return given.get(found[1]) or (_filled(found[3], given) if found[2] == "-" else "")

    return VARIABLE.sub(value, text)


def _long(one: Any, target: str) -> Any:
    if isinstance(one, str):
        return {"target": one.split(":")[1]} if target == "target" else {"source": one}
    return one

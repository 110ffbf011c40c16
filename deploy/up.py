"""`make up`: secrets if they lack, then Compose until all is healthy; what fails is told in the words of the one that

failed. `python3 -m deploy.up [--cluster] [compose's own options of "up"]`, with the standard library alone.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from deploy.env_file import WrongEnv, in_force, read_env, referred
from deploy.make_secrets import CannotMake, make

ROOT = Path(__file__).resolve().parent.parent
ENV = ROOT / ".env"
CLUSTER = ROOT / "deploy" / "cluster.env"
COMPOSE = ("docker", "compose")


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    try:
        made = make(ENV)
    except (OSError, CannotMake, WrongEnv) as error:
        return _fail(str(error))
    for path in made:
        print(f"made {path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}")
    for line in strangers(ENV):
        _fail(line)
    compose = [*COMPOSE, *(_cluster() if "--cluster" in arguments else ())]
    options = [word for word in arguments if word != "--cluster"]
    if made and "--no-recreate" not in options:
        options.append("--force-recreate")  # a container that is there goes on with the secrets that it began with
    try:
        code = subprocess.run([*compose, "up", "--build", "--wait", *options], cwd=ROOT, check=False).returncode
    except FileNotFoundError:
        return _fail("docker is not installed")
    except KeyboardInterrupt:
        return 130
    if code:
        for line in last_words(compose):
            _fail(line)
        return code
    port = _published(compose)
    print(f"Attaché is at http://{port}/" if port else "Attaché is up")
    print("the demo trip: docker compose run --rm -T demo")
    return 0


def _cluster() -> list[str]:
    """The options of a cluster. All profiles are named: one that is hides what COMPOSE_PROFILES asks for."""
    asked = [one.strip() for one in in_force(read_env(ENV)).get("COMPOSE_PROFILES", "").split(",")]
    profiles = [*(one for one in asked if one not in ("", "cluster")), "cluster"]
    named = [word for profile in profiles for word in ("--profile", profile)]
    return ["--env-file", str(ENV), "--env-file", str(CLUSTER), *named]


def strangers(env: Path) -> list[str]:
    """A line for each variable in `.env` that means nothing to Compose: it would be ignored in silence."""
    said = read_env(env)
    if not said or "COMPOSE_FILE" in in_force(said):
        return []  # others' files, with variables of their own
    files = [file.read_text(encoding="utf-8") for file in ROOT.glob("docker-compose*.y*ml")]
    known = frozenset([*re.findall(r"\$\{(\w+)", "".join(files)), *referred(env)])
    names = [name for name in said if name not in known and not name.startswith(("COMPOSE_", "DOCKER_"))]
    return [f".env: {name} is no setting of docker-compose.yml and does nothing{_near(name, known)}" for name in names]


def _near(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f" (near it: {near[0]})" if near else ""


def last_words(compose: Sequence[str]) -> list[str]:
    """Of each container that ended with a failure or is not healthy: its name, and the last line that it said."""
    told = subprocess.run(
        [*compose, "ps", "--all", "--format", "json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return [
        f"{one['Service']}: {_last_line(compose, one['Service'])}"
        for one in _containers(told.stdout)
        if one["ExitCode"] or one.get("Health") == "unhealthy" or one["State"] == "restarting"
    ]


def _containers(told: str) -> list[dict[str, Any]]:
    """One object a line, as Compose writes since 2.21, or one array of them as before."""
    if told.lstrip().startswith("["):
        listed: list[dict[str, Any]] = json.loads(told)
        return listed
    return [json.loads(line) for line in told.splitlines() if line.startswith("{")]


def _last_line(compose: Sequence[str], service: str) -> str:
    """Without the name of who says it, which most begin with."""
    said = subprocess.run(
        [*compose, "logs", "--no-log-prefix", "--no-color", "--tail", "1", service],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = said.stdout.strip().splitlines()
    return lines[-1].removeprefix("attache: ").removeprefix(f"{service}: ") if lines else "it said nothing"


def _published(compose: Sequence[str]) -> str:
    told = subprocess.run([*compose, "port", "proxy", "8080"], cwd=ROOT, capture_output=True, text=True, check=False)
    return told.stdout.strip()


def _fail(line: str) -> int:
    print(f"attache: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    os.environ.setdefault("COMPOSE_PROGRESS", "plain" if not sys.stderr.isatty() else "auto")
    sys.exit(main(sys.argv[1:]))

"""`python -m bench.stack`: what the Compose stack takes on this machine, from empty volumes to a rest.

It builds the image, brings a project of its own up (free port, its own image, secrets and volumes, gone afterwards;
nothing of this checkout's `.env`), loads the demo trip, and watches the containers while nobody asks anything: seconds
to healthy, memory and share of a core by service, size of the image above its base. Exit code 1 where healthy took more
than 90 s or a rest more than 2 GB, 2 where it could not be tried.
"""

import argparse
import json
import re
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from deploy.env_file import WrongEnv, line_of
from deploy.kafka_node import free_port
from deploy.make_secrets import CannotMake, make
from deploy.stack import ROOT, Stack, Unable, code_of, docker, end_in_order, undisturbed

HEALTHY_SECONDS = 90.0
IDLE_MB = 2000.0
UNITS: Mapping[str, float] = {"B": 1e-6, "kB": 1e-3, "KiB": 1.024e-3, "MB": 1.0, "MiB": 1.048576, "GiB": 1073.741824}


class Apart(Stack):
    """A project that sees its own `.env` alone, nothing of this checkout's and no setting of the environment."""

    def __init__(self, project: str, env: Path) -> None:
        super().__init__(project)
        asked = re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
        self.environment = {
            name: value
            for name, value in self.environment.items()
            if name == "COMPOSE_PROJECT_NAME" or not (name in asked or name.startswith("COMPOSE_"))
        }
        self._env = env

    def compose(self, *arguments: str) -> str:
        # no override beside it: what that names may be somebody's, and goes with the volumes
        file = str(ROOT / "docker-compose.yml")
        return super().compose("--file", file, "--env-file", str(self._env), *arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.stack", description=__doc__)
    parser.add_argument("--samples", type=int, default=15, help="of the rest, about two seconds each")
    chosen = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="attache-bench-") as folder, _project(Path(folder)) as stack:
            return _measured(stack, chosen.samples)
    except (OSError, CannotMake, Unable, WrongEnv) as wrong:
        print(f"stack: {wrong}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print("stack: interrupted", file=sys.stderr)
        return code_of(interruption)


@contextmanager
def _project(folder: Path) -> Iterator[Stack]:
    """A project that nothing else has; nothing of it is left."""
    env, name = folder / ".env", f"attache-bench-{secrets.token_hex(4)}"
    # the whole path: Compose reads a relative one from where docker-compose.yml stands
    given = {"PORT": str(free_port()), "ATTACHE_SECRETS": str(folder / "secrets"), "ATTACHE_IMAGE": f"attache/{name}"}
    env.write_text("".join(line_of(*one) for one in given.items()), encoding="utf-8")
    make(env, {})
    folder.chmod(0o755)
    stack = Apart(name, env)
    try:
        yield stack
    finally:
        with undisturbed():
            stack.compose("--profile", "*", "down", "--volumes", "--timeout", "5")
            with suppress(Unable):  # it was not built
                docker("image", "rm", given["ATTACHE_IMAGE"])


def _measured(stack: Stack, samples: int) -> int:
    built = _seconds(stack, "build")
    healthy = _seconds(stack, "up", "--detach", "--wait", "--no-build")
    print(f"image: built in {built:.0f} s, {_above_base(stack):.0f} MB above its base", flush=True)
    print(f"healthy: {healthy:.0f} s from empty volumes (bound {HEALTHY_SECONDS:.0f})", flush=True)
    stack.compose("run", "--rm", "-T", "demo", "--json")
    rest = _rest(stack, samples)
    for name, (memory, cpu) in sorted(rest.items()):
        print(f"  {name:<16}{memory:>8.0f} MB {cpu:>7.1f} % of a core")
    total = sum(memory for memory, _ in rest.values())
    print(f"at rest: {total:.0f} MB (bound {IDLE_MB:.0f}), {sum(cpu for _, cpu in rest.values()):.1f} % of a core")
    return int(healthy > HEALTHY_SECONDS or total > IDLE_MB)


def _seconds(stack: Stack, *words: str) -> float:
    began = time.monotonic()
    stack.compose(*words)
    return time.monotonic() - began


def _above_base(stack: Stack) -> float:
    """MB of the layers that the project's image has over those of the base that its Dockerfile ends with."""
    ours, base = (
        json.loads(docker("image", "inspect", image))[0]
        for image in (stack.config["services"]["schedule"]["image"], _base())
    )
    return float(ours["Size"] - base["Size"]) / 1e6


def _base() -> str:
    lines = (Path(__file__).parents[1] / "deploy" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    stages = {words[3]: words[1] for line in lines if (words := line.split())[:1] == ["FROM"] and len(words) == 4}
    last = next(line.split()[1] for line in reversed(lines) if line.startswith("FROM"))
    return stages.get(last, last)


def _rest(stack: Stack, samples: int) -> dict[str, tuple[float, float]]:
    """MB and percent of a core of each container, medians of memory and means of work."""
    ids = stack.compose("ps", "--quiet").split()
    seen: dict[str, list[tuple[float, float]]] = {}
    for _ in range(samples):
        for line in docker("stats", "--no-stream", "--format", "{{json .}}", *ids).splitlines():
            one = json.loads(line)
            name = one["Name"].removeprefix(f"{stack.project}-")
            seen.setdefault(name, []).append((_mb(one["MemUsage"].split("/")[0]), float(one["CPUPerc"].rstrip("%"))))
    return {
        name: (statistics.median(memory for memory, _ in all_), statistics.mean(cpu for _, cpu in all_))
        for name, all_ in seen.items()
    }


def _mb(text: str) -> float:
    number = text.strip().rstrip("BKMGik")
    return float(number) * UNITS[text.strip()[len(number) :]]


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())

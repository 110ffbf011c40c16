"""The locked requirements: `python -m deploy.lock` writes them anew, `check` says whether they fit pyproject.toml.

Three files, each holding the one before: what the image installs, what `make run` needs (its own PostgreSQL), what
testing and checking need. One lock serves every Python from 3.11 on. Each file's first line keeps a digest of the
tables that it was made from, so that the check needs no network. Installing with `--require-hashes` proves the rest.
"""

import hashlib
import json
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "deploy/requirements.txt"
APP = "requirements.txt"
DEV = "requirements-dev.txt"
EXTRAS: dict[str, tuple[str, ...]] = {IMAGE: (), APP: ("run",), DEV: ("run", "dev")}
COMPILE = [
    *(sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--quiet"),
    *("--universal", "--python-version", "3.11", "--generate-hashes", "--no-emit-index-url", "--no-header"),
]


def main(arguments: list[str]) -> int:
    """`check` alone changes nothing; other arguments go to uv (`--upgrade`, `--upgrade-package NAME`)."""
    if arguments == ["check"]:
        problems = find_problems(ROOT)
        for problem in problems:
            print(f"{problem}: run make lock", file=sys.stderr)
        return 1 if problems else 0
    write(arguments)
    return 0


def write(arguments: list[str]) -> None:
    """Resolve the locks; pins that still fit are kept unless uv is told to upgrade."""
    before: list[str] = []
    for name, extras in EXTRAS.items():
        asked = [*before, *(word for extra in extras for word in ("--extra", extra))]
        subprocess.run([*COMPILE, *asked, "--output-file", name, *arguments], cwd=ROOT, check=True)
        path = ROOT / name
        path.write_text(f"{first_line(ROOT)}\n{path.read_text()}")
        before = ["--constraint", name]


def find_problems(root: Path) -> list[str]:
    """What is wrong with the locks in a folder, each in a few words; empty when all is well."""
    problems = []
    pins = {}
    for name in EXTRAS:
        text = (root / name).read_text() if (root / name).exists() else ""
        if text.partition("\n")[0] != first_line(root):
            problems.append(f"{name} is not in step with pyproject.toml")
        if "://" in text:
            problems.append(f"{name} holds an address")
        pins[name] = {line.split(" \\")[0] for line in text.splitlines() if "==" in line and not line.startswith("#")}
    for smaller, larger in pairwise(EXTRAS):
        if strays := sorted(pins[smaller] - pins[larger]):
            problems.append(f"{larger} differs from {smaller} in {', '.join(strays)}")
    return problems


def first_line(root: Path) -> str:
    """The line that names what a lock was made from."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    tables = [project["requires-python"], project["dependencies"], project["optional-dependencies"]]
    digest = hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()
    return f"# Locked by make lock from pyproject.toml; its tables of dependencies: sha256 {digest[:32]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Makes what `docker compose up` wants to find: `python3 -m deploy.make_secrets`, with the standard library alone.

A folder with one secret a file, `deploy/secrets` (or the one that ATTACHE_SECRETS names), and `.env`, which says where
it is. What is there is never overwritten, so it may be run again; what lacks is made. The files are for all to read,
because a container's user is nobody here; the folder is for its owner alone.
"""

import argparse
import hashlib
import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from deploy.env_file import WrongEnv, in_force, read_env

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("schedule", "participants", "notifications")
TOKENS: Mapping[str, tuple[str, str]] = {
    **{f"{name}_service_token": (name, "service") for name in SERVICES},
    "planner_token": ("planner", "planner,staff"),
    "operator_token": ("operator", "operator"),
}
"""The file that holds a token's secret, and its line in the token file: name and scopes."""
PASSWORDS = ("postgres_password", "grafana_password")


class CannotMake(Exception):
    """What is there does not fit together; the text is one line that says what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code; what cannot be done is said in one line."""
    parser = argparse.ArgumentParser(prog="python3 -m deploy.make_secrets", description=__doc__)
    parser.add_argument("--env", type=Path, default=ROOT / ".env", help="the file that Compose reads (%(default)s)")
    parsed = parser.parse_args(arguments)
    try:
        made = make(parsed.env)
    except (OSError, CannotMake, WrongEnv) as error:
        print(f"secrets: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"made {path}" for path in made) or "all secrets are there")
    return 0


def make(env: Path) -> list[Path]:
    """Make what lacks beside and below an `.env`; returns what was made. Raises CannotMake, WrongEnv, OSError."""
    made: list[Path] = []
    said = read_env(env)
    given = in_force(said)
    folder = env.parent / (given.get("ATTACHE_SECRETS") or "deploy/secrets")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in PASSWORDS:
        made += _secret(folder / name, secrets.token_hex(24))
    for name in SERVICES:
        url = f"postgresql+asyncpg://{name}:{secrets.token_hex(24)}@postgres/{name}"
        made += _secret(folder / f"{name}_database_url", url)
    made += _tokens(folder)
    lines = {
        "ATTACHE_SECRETS": _named(folder, env.parent),
        "KAFKA_CLUSTER_ID": given.get("KAFKA_CLUSTER_ID") or cluster_id(),
    }
    if lacking := {name: value for name, value in lines.items() if not said.get(name)}:
        _append(env, "".join(f"{name}={value}\n" for name, value in lacking.items()))
        made.append(env)
    return made


def cluster_id() -> str:
    """A Kafka cluster's id: 16 random bytes in 22 characters of base64url, and no hyphen first (a shell's option)."""
    while (made := secrets.token_urlsafe(16)).startswith("-"):
        pass
    return made


def _tokens(folder: Path) -> list[Path]:
    """The tokens' secrets, and beside them the file with their hashes, that the services read."""
    hashes = folder / "tokens"
    if hashes.exists() and (lacking := [name for name in TOKENS if not (folder / name).exists()]):
        return _more_tokens(folder, hashes, lacking)
    made = [path for name in TOKENS for path in _secret(folder / name, new_token())]
    if not hashes.exists():
        made += _secret(hashes, "\n".join(_line(folder, name) for name in TOKENS))
    return made


def _more_tokens(folder: Path, hashes: Path, lacking: list[str]) -> list[Path]:
    """Tokens that were taken away get new ones; the old hashes are left out, so that the old secrets end.

    The hashes first: where it ends in between, the secrets still lack, and the next run begins anew.
    """
    new = {name: new_token() for name in lacking}
    gone = {TOKENS[name][0] for name in lacking}
    lines = hashes.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.split() or line.split()[-1] not in gone]
    _replace(hashes, "\n".join([*kept, *(_hashed(name, token) for name, token in new.items())]))
    return [*(path for name, token in new.items() for path in _secret(folder / name, token)), hashes]


def new_token() -> str:
    """As `python -m services token` makes one."""
    return f"attache_{secrets.token_urlsafe(32)}"


def _line(folder: Path, name: str) -> str:
    token = (folder / name).read_text(encoding="utf-8").strip()
    if not token:
        raise CannotMake(f"{folder / name} is empty: remove it, and run this again")
    return _hashed(name, token)


def _hashed(name: str, token: str) -> str:
    caller, scopes = TOKENS[name]
    return f"{hashlib.sha256(token.encode()).hexdigest()} {scopes} {caller}"


def _secret(path: Path, content: str) -> list[Path]:
    if path.exists():
        return []
    _replace(path, content)
    return [path]


def _replace(path: Path, content: str) -> None:
    """Whole or not at all, and for the containers' users to read."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444), "w", encoding="utf-8") as file:
        file.write(f"{content}\n")
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
    beside.replace(path)


def _append(path: Path, lines: str) -> None:
    before = path.read_bytes() if path.exists() else b""
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if before and not before.endswith(b"\n") else "") + lines)


def _named(folder: Path, beside: Path) -> str:
    """As Compose reads it: relative to where `.env` stands, with the `./` that makes it no volume's name."""
    try:
        return f"./{folder.resolve().relative_to(beside.resolve())}"
    except ValueError:
        return str(folder.resolve())


if __name__ == "__main__":
    sys.exit(main())

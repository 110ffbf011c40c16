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

from deploy.env_file import WrongEnv, in_force, line_of, read_env

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("schedule", "participants", "notifications")
TOKENS: Mapping[str, tuple[str, str]] = {
    **{f"{name}_service_token": (name, "service") for name in SERVICES},
    "planner_token": ("planner", "planner,staff"),
    "operator_token": ("operator", "operator"),
}
"""The file that holds a token's secret, and its line in the token file: name and scopes."""
PASSWORDS = ("postgres_password", "grafana_password")
WRITTEN = ("ATTACHE_SECRETS", "KAFKA_CLUSTER_ID")
"""What is written into `.env`."""
FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
"""What Compose takes for no."""


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


def make(env: Path, environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Make what lacks beside and below an `.env`; returns what was made. Raises CannotMake, WrongEnv, OSError.

    `environment` is the one that Compose is to be started in.
    """
    made: list[Path] = []
    _check(environment)
    said = read_env(env, environment)
    given = in_force(said, environment)
    folder = _folder(env, given.get("ATTACHE_SECRETS") or "deploy/secrets", environment.get("HOME"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in PASSWORDS:
        made += _secret(folder / name, secrets.token_hex(24))
    for name in SERVICES:
        url = f"postgresql+asyncpg://{name}:{secrets.token_hex(24)}@postgres/{name}"
        made += _secret(folder / f"{name}_database_url", url)
    made += _tokens(folder)
    values = dict(
        zip(WRITTEN, (_named(folder, env.parent), given.get("KAFKA_CLUSTER_ID") or cluster_id()), strict=True)
    )
    if lacking := [line_of(name, value) for name, value in values.items() if not said.get(name)]:
        _append(env, "".join(lacking))
        made.append(env)
    return made


def _check(environment: Mapping[str, str]) -> None:
    """That the environment lets Compose read what is written into `.env`."""
    if environment.get("COMPOSE_ENV_FILES") or environment.get("COMPOSE_DISABLE_ENV_FILE", "0") not in FALSE:
        name = "COMPOSE_ENV_FILES" if environment.get("COMPOSE_ENV_FILES") else "COMPOSE_DISABLE_ENV_FILE"
        raise CannotMake(f"Compose does not read .env, because {name} is set in the environment: unset it")
    for name in WRITTEN:
        if environment.get(name) == "":
            raise CannotMake(f"{name} is empty in the environment, which goes before what .env says: unset it")


def _folder(env: Path, said: str, home: str | None) -> Path:
    """Where Compose looks for secrets: from beside `.env`, and with a `~` below the home folder."""
    if not said.isprintable():
        raise CannotMake("ATTACHE_SECRETS has a character in it that cannot be printed: name another folder")
    if home and said.startswith("~"):
        return Path(home, said[1:].lstrip("/"))
    return env.parent / said


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

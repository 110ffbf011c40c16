"""Who calls: bearer tokens, kept as hashes in one file that all services read (`TOKENS_FILE`).

A line each, `sha256hex scopes name`, the scopes joined by commas; empty lines and lines that begin with `#` are
comments. A token is 256 random bits, so its plain SHA-256 is enough: there is nothing to guess. The secret begins
with `attache_`, so that `shared.logs` (and other people's scanners) know one where they see it.
"""

import fcntl
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal, get_args

import structlog

Scope = Literal["planner", "staff", "service", "operator"]
SCOPES: Final[frozenset[str]] = frozenset(get_args(Scope))
PREFIX: Final = "attache_"

_LOG = structlog.stdlib.get_logger(__name__)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_Signature = tuple[int, int, int]


class WrongToken(ValueError):
    """A line of the token file, or a wish for a new token, that makes no sense. The text never holds a secret."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a token belongs to. `name` is the actor of every event that the caller causes."""

    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        """Whether the caller holds `scope`; a planner may read what staff may read."""
        return scope in self.scopes or (scope == "staff" and "planner" in self.scopes)


class TokenFile:
    """The callers of a token file, read again when the file changes.

    The file is looked at once a second at most, at a call. While it is broken or away, the callers of its last good
    state stay, and one line is logged for each such change.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._callers: Mapping[str, Caller] = {}
        self._signature: _Signature | None = (0, 0, 0)
        self._looked = clock()
        self._look()

    def caller(self, bearer: str) -> Caller | None:
        """The caller who holds the secret `bearer`, or None. Looked up by hash: no secret is compared to a secret."""
        now = self._clock()
        if now - self._looked >= 1.0:
            self._looked = now
            self._look()
        return self._callers.get(_hash_of(bearer))

    def _look(self) -> None:
        signature = _signature_of(self._path)
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._callers = _parsed(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            _LOG.warning("tokens.kept", path=str(self._path), error=_said(error), callers=len(self._callers))
        else:
            _LOG.info("tokens.read", path=str(self._path), callers=len(self._callers))


def callers_of(path: Path) -> TokenFile:
    """A token file as it stands. Raises WrongToken for one that cannot be read, is broken or names nobody."""
    try:
        callers = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WrongToken(f"{path}: {_said(error)}") from None
    if not callers:
        raise WrongToken(f"{path}: the token file is empty: nobody could call")
    return TokenFile(path)


def scopes_in(path: Path) -> frozenset[str]:
    """All scopes that somebody in a token file holds. Raises WrongToken for a file that cannot be read or is broken."""
    try:
        callers = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WrongToken(f"{path}: {_said(error)}") from None
    return frozenset(scope for caller in callers.values() for scope in caller.scopes)


def add_token(path: Path, name: str, scopes: Collection[str]) -> str:
    """Writes a new token's hash to the file (made with mode 0600) and gives its secret, which is stored nowhere.

    Two at once wait for each other; a reader sees the whole line or none. Raises WrongToken for an unknown scope or
    a name that is not 1 to 64 of `A-Za-z0-9._@-`.
    """
    if not _NAME.fullmatch(name):
        raise WrongToken("a token's name is 1 to 64 letters, digits and . _ @ -, beginning with a letter or digit")
    wanted = _known(scopes)
    secret = PREFIX + secrets.token_urlsafe(32)
    line = f"{_hash_of(secret)} {','.join(sorted(wanted))} {name}\n"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        size = os.fstat(handle).st_size
        unended = size > 0 and os.pread(handle, 1, size - 1) != b"\n"  # an editor that leaves out the last line's end
        os.write(handle, (("\n" if unended else "") + line).encode())
        os.fsync(handle)
    finally:
        os.close(handle)
    return secret


def _known(scopes: Collection[str]) -> frozenset[str]:
    """The scopes, if there is at least one and each is known."""
    wanted = frozenset(scopes)
    if not wanted:
        raise WrongToken(f"a token needs a scope: {', '.join(sorted(SCOPES))}")
    if unknown := wanted - SCOPES:
        raise WrongToken(f"unknown scope {', '.join(sorted(unknown))}; there are {', '.join(sorted(SCOPES))}")
    return wanted


def _parsed(text: str) -> dict[str, Caller]:
    """The callers by hash. A file with one wrong line is wrong whole: half of it would shut callers out unseen."""
    callers: dict[str, Caller] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = line.split()
        if len(words) != 3 or not _HASH.fullmatch(words[0]) or not _NAME.fullmatch(words[2]):
            raise WrongToken(f"line {number} is not `sha256hex scopes name`")
        if words[0] in callers:
            raise WrongToken(f"line {number} repeats the hash of an earlier line")
        try:
            callers[words[0]] = Caller(words[2], _known(words[1].split(",")))
        except WrongToken as error:
            raise WrongToken(f"line {number}: {error}") from None
    return callers


def _hash_of(secret: str) -> str:
    return sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def _signature_of(path: Path) -> _Signature | None:
    """What changes when the file does; None while there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _said(error: Exception) -> str:
    """What went wrong, without a word of the file's content (UnicodeDecodeError would quote it)."""
    if isinstance(error, WrongToken):
        return str(error)
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__

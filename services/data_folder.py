"""What lies in `DATA` beside the databases: the demo's secrets, the log, and `run.json` for scripts.

`bus.json` tells the doctor which bus it is. The program itself keeps hashes only, so what the demo has to know again
(tokens, feed addresses) is kept here, for its owner alone.
"""

import io
import os
import secrets
from pathlib import Path
from typing import IO

from services.embedded import CannotStart
from shared.tokens import TokenFile, add_token

LOG_BYTES = 20_000_000
TOKENS = {"demo": ("planner", "staff", "operator"), "services": ("service",)}


class Log(io.TextIOBase):
    """A log file that does not grow without end: when it is full it becomes `<name>.before`, and a new one begins.

    A full disk loses lines, and stops nothing.
    """

    def __init__(self, path: Path, limit: int = LOG_BYTES) -> None:
        self._path = path
        self._limit = limit
        self._file = self._open()
        self._size = os.fstat(self._file.fileno()).st_size

    def write(self, text: str) -> int:
        line = text.encode("utf-8", "backslashreplace")
        try:
            if self._size + len(line) > self._limit:
                self._file.close()
                self._path.replace(self._path.with_name(f"{self._path.name}.before"))
                self._file, self._size = self._open(), 0
            self._file.write(line)
        except (OSError, ValueError):
            return 0
        self._size += len(line)
        return len(text)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _open(self) -> IO[bytes]:
        return os.fdopen(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "wb", buffering=0)


def tokens(data: Path) -> dict[str, str]:
    """The demo's own tokens by name, made where they lack. Raises CannotStart for a broken token file."""
    found = {}
    for name, scopes in TOKENS.items():
        kept = data / "secrets" / f"token-{name}"
        if not kept.exists() or not _is_known(data, kept.read_text(encoding="utf-8").strip()):
            write_secret(kept, add_token(data / "tokens", name, scopes))
        found[name] = kept.read_text(encoding="utf-8").strip()
        if not _is_known(data, found[name]):
            raise CannotStart(f"{data / 'tokens'} is not a token file that can be read: mend it, or remove it")
    return found


def write_secret(path: Path, content: str) -> None:
    """For its owner alone, and whole or not at all."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(content + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _is_known(data: Path, token: str) -> bool:
    return TokenFile(data / "tokens").caller(token) is not None

"""Secret files: there, none a sample, none to be written by others; and a token file in which somebody may do each."""

import contextlib
import stat
from collections.abc import Sequence
from pathlib import Path

from services.doctor.findings import Finding, fail, in_thread, ok
from shared.settings import is_sample, unread
from shared.tokens import SCOPES, WrongToken, scopes_in


async def secret_files(paths: Sequence[Path], trusted: Sequence[Path] = ()) -> list[Finding]:
    """A line for each that is wrong, or one for all; none where there is no file.

    `trusted` are those by which somebody is let in or believed; one that is not there is told elsewhere.
    """
    return await in_thread(
        lambda: _of_files(paths, [path for path in trusted if path not in paths and _is_there(path)])
    )


def _of_files(paths: Sequence[Path], trusted: Sequence[Path]) -> list[Finding]:
    found = [one for one in [*map(_wrong, paths), *map(_wrong_trusted, trusted)] if one is not None]
    if found or not (paths or trusted):
        return found
    number = len(paths) + len(trusted)
    return [ok("secrets", f"{number} files, none empty, none a sample, none writable by others")]


def _is_there(path: Path) -> bool:
    """Or may be: what a closed folder hides is not known not to be there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _wrong_trusted(path: Path) -> Finding | None:
    name, do = f"secret {path.name}", "put the right one there, for this user to read"
    try:
        content = path.read_bytes()
    except OSError as error:
        return fail(name, unread(error)[0], do)
    return _open(path) if content.strip() else fail(name, "is empty", do)


def _wrong(path: Path) -> Finding | None:
    name = f"secret {path.name}"
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        return fail(name, *unread(error))
    if not text:
        return fail(name, "is empty", "remove it, and make secrets makes another")
    if is_sample(text):
        return fail(name, "holds a sample and no secret", "put a real one there")
    return _open(path)


def _open(path: Path) -> Finding | None:
    """One that others may write to."""
    with contextlib.suppress(OSError):
        if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return fail(f"secret {path.name}", "others may write to it", f"chmod go-w {path}")
    return None


async def tokens(path: Path) -> list[Finding]:
    """The token file: readable, and each scope held by somebody."""
    try:
        scopes = await in_thread(lambda: scopes_in(path))
    except WrongToken as error:
        return [fail("tokens", str(error), "mend the line, or put the file back, for all to read")]
    if lacking := sorted(SCOPES - scopes):
        do = f"python -m services token NAME {lacking[0]} --file {path}"
        return [fail("tokens", f"nobody has the scope {' or '.join(lacking)}", do)]
    return [ok("tokens", "each scope has a holder")]

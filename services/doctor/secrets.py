"""Secret files: there, none a sample, none to be written by others; and a token file in which somebody may do each."""

import stat
from collections.abc import Sequence
from pathlib import Path

from services.doctor.findings import Finding, fail, in_thread, ok
from shared.settings import is_sample, unread
from shared.tokens import SCOPES, WrongToken, scopes_in


async def secret_files(paths: Sequence[Path]) -> list[Finding]:
    """A line for each that is wrong, or one for all."""
    found = await in_thread(lambda: [one for path in paths if (one := _wrong(path))])
    return found or [ok("secrets", f"{len(paths)} files, none empty, none a sample, none writable by others")]


def _wrong(path: Path) -> Finding | None:
    name = f"secret {path.name}"
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        return fail(name, *unread(error))
    if not text:
        return fail(name, "is empty", "remove it, and make secrets makes another")
    if is_sample(text):
        return fail(name, "holds a sample and no secret", "put a real one there")
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        return fail(name, "others may write to it", f"chmod go-w {path}")
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

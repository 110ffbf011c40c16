"""An `.env` as Docker Compose reads it, with the standard library alone.

Names may follow an `export`; a value in single quotes is literal, one in double quotes knows escapes, and a comment
begins at ` #` or behind the closing quote. `$NAME` is the environment's before the file's own.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

_LINE = re.compile(
    r"""^[^\S\n]*(?:export[^\S\n]+)?(?P<name>[\w.\-\[\]]+)[^\S\n]*[=:][^\S\n]*
    (?:'(?P<literal>(?:\\'|[^'])*)'|"(?P<quoted>(?:\\.|[^"\\])*)"|(?P<plain>.*))""",
    re.MULTILINE | re.VERBOSE,
)
_ESCAPED = re.compile(r"""\\([nrt"$\\])""")
_MEANT = {"n": "\n", "r": "\r", "t": "\t", "$": "$$"}
"""Of an escape; a dollar is doubled, so that it begins no name."""
_VARIABLE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)(?:(:?[-+?])([^{}]*))?\})")


def read_env(env: Path) -> dict[str, str]:
    """The variables of an `.env`; none where there is no such file. Which of them count: `in_force`."""
    if not env.exists():
        return {}
    found: dict[str, str] = {}
    for line in _LINE.finditer(env.read_text(encoding="utf-8-sig")):
        found[line["name"]] = _value(line, found)
    return found


def in_force(said: Mapping[str, str]) -> dict[str, str]:
    """What counts, as for Compose: the environment before what an `.env` says, even where it says that it is empty."""
    return {**said, **os.environ}


def _value(line: "re.Match[str]", before: Mapping[str, str]) -> str:
    if line["literal"] is not None:
        return line["literal"].replace("\\'", "'")
    known = in_force(before)
    if line["quoted"] is not None:
        return _filled(_ESCAPED.sub(lambda one: _MEANT.get(one[1], one[1]), line["quoted"]), known)
    return _filled(line["plain"].partition(" #")[0].rstrip(), known)


def _filled(text: str, known: Mapping[str, str]) -> str:
    def value(found: "re.Match[str]") -> str:
        dollar, bare, name, how, other = found.groups()
        if dollar:
            return "$"
        given = known.get(bare or name)
        lacks = not given if (how or "").startswith(":") else given is None
        if how and how[-1] == "+":
            return "" if lacks else other
        return other if lacks and how and how[-1] == "-" else given or ""

    return _VARIABLE.sub(value, text)

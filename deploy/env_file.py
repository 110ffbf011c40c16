r"""An `.env` as Docker Compose reads it, with the standard library alone.

Names may follow an `export`; a value in single quotes is literal, one in double quotes knows escapes, and a comment
begins at ` #` or behind the closing quote. `$NAME` is the environment's before the file's own. What Compose refuses is
refused here too, in one line that never holds a value.
"""

import os
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path

_SPACE = r"[\t\v\f\r \x85\xa0]"
_BETWEEN = re.compile(r"(?:\s|#.*)*")
_BEGUN = re.compile(
    rf"(?:export(?=\s){_SPACE}*)?(?P<name>(?:[\w.\-\[\]]|{_SPACE})*)(?P<end>[=:\n]|\Z){_SPACE}*",
)
_VALUE = re.compile(
    r"""'(?P<literal>(?:\\.|[^'\\])*)'|"(?P<quoted>(?:\\.|[^"\\])*)"|(?P<plain>(?!['"])[^\n]*)""", re.DOTALL
)
_ESCAPED_QUOTE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPE = re.compile(r'\\(?:([abfnrtv$"\\])|0([0-9]{0,3}))')
_MEANT = {**dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True)), '"': '"', "\\": "\\", "$": "$$"}
"""Of an escape; a dollar is doubled, so that it begins no name."""
_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|(?P<bare>[_A-Za-z][_A-Za-z0-9]*)"
    r"|\{(?P<name>[_A-Za-z][_A-Za-z0-9]*)(?:(?P<how>:?[-+?])(?P<other>.*))?\}|(?P<wrong>\{))"
)
_BRACE = re.compile(r"\{.?|\}")
"""What follows an opening one is passed over: Compose counts so."""


class WrongEnv(Exception):
    """Compose would refuse the file; the text is one line."""


def read_env(env: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of an `.env`, or none; which of them count says `in_force`. Raises WrongEnv."""
    try:
        return parsed(_text(env), environment)
    except WrongEnv as wrong:
        raise WrongEnv(f"{env}: {wrong}") from None


def in_force(said: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What counts, as for Compose: the environment before what an `.env` says, even where it says that it is empty."""
    return {**said, **environment}


def referred(env: Path) -> set[str]:
    """The names of variables that values of an `.env` are made of. Raises WrongEnv."""
    made_of = (
        (value["plain"] or "").partition(" #")[0] + (value["quoted"] or "") for _, value in _statements(_text(env))
    )
    return {found for one in made_of for found in re.findall(r"\$\{?([_A-Za-z][_A-Za-z0-9]*)", one)}


def line_of(name: str, value: str) -> str:
    """The line by which Compose reads just this value: as it is, or else in quotes."""
    literal, quoted = value.replace("'", r"\'"), re.sub(r'([\\"$])', r"\\\1", value)
    for said in (value, f"'{literal}'"):
        line = f"{name}={said}\n"
        try:
            if parsed(line, {}) == {name: value}:
                return line
        except WrongEnv:
            continue
    return f'{name}="{quoted}"\n'


def parsed(text: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of such a text. Raises WrongEnv."""
    found: dict[str, str] = {}
    known = ChainMap(dict(environment), found)
    for name, value in _statements(text):
        try:
            found[name] = _meant(value, known)
        except WrongEnv as wrong:
            raise WrongEnv(f"{name}: {wrong}") from None
    return found


def _text(env: Path) -> str:
    """Bytes that are no UTF-8 are kept as they are, as file names have them: they may stand in a comment."""
    try:
        return env.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""


def _statements(text: str) -> Iterator[tuple[str, "re.Match[str]"]]:
    """Each name with its value as it is written; a name alone says nothing."""
    at = 0
    while (at := _after(_BETWEEN.match(text, at))) < len(text):
        begun = _BEGUN.match(text, at)
        name = begun["name"].rstrip() if begun else " "
        if begun is None or (" " in name and begun["end"]) or not (name or begun["end"]):
            raise WrongEnv(f"line {_line(text, at)} begins with no name of a variable")
        at = begun.end()
        if begun["end"] not in ("=", ":"):
            continue
        value = _VALUE.match(text, at)
        if value is None:
            raise WrongEnv(f"line {_line(text, at)}: the quotes of {name} are not closed")
        yield name, value
        at = value.end()


def _after(found: "re.Match[str] | None") -> int:
    assert found is not None  # it matches nothing at least
    return found.end()


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _meant(value: "re.Match[str]", known: Mapping[str, str]) -> str:
    if (literal := value["literal"]) is not None:
        return _ESCAPED_QUOTE.sub(lambda one: "'" if one[1] == "'" else one[0], literal)
    if (quoted := value["quoted"]) is not None:
        inner = _ESCAPED_QUOTE.sub(lambda one: '"' if one[1] == '"' else one[0], quoted)
        return _filled(_ESCAPE.sub(_character, inner), known)
    return _filled(value["plain"].partition(" #")[0].rstrip(), known)


def _character(escape: "re.Match[str]") -> str:
    letter, digits = escape.groups()
    if letter is not None:
        return _MEANT[letter]
    return chr(int(digits, 8)) if re.fullmatch("[0-3][0-7]{2}", digits) else f"\\{digits}"


def _filled(text: str, known: Mapping[str, str]) -> str:
    """With each variable's value in its place."""
    filled, at = "", 0
    while (found := _VARIABLE.search(text, at)) is not None:
        filled, at = filled + text[at : found.start()], found.end()
        if found["wrong"]:
            raise WrongEnv("${ begins no variable")
        if found["how"]:
            end = _closing(text, found.start("other"), at - 1)
            filled += _chosen(found, _filled(text[found.start("other") : end], known), known)
            at = end + 1
        else:
            filled += "$" if found["dollar"] else known.get(found["bare"] or found["name"], "")
    return filled + text[at:]


def _closing(text: str, start: int, last: int) -> int:
    """Where a default ends, which may hold others: at the brace that closes it, or else at the line's last."""
    depth = 1
    for brace in _BRACE.finditer(text, start, last):
        depth += -1 if brace[0] == "}" else 1
        if not depth:
            return brace.start()
    return last


def _chosen(found: "re.Match[str]", other: str, known: Mapping[str, str]) -> str:
    """What `${NAME:-other}` and its like come to."""
    given, how = known.get(found["name"]), found["how"]
    lacks = not given if how.startswith(":") else given is None
    if how.endswith("+"):
        return "" if lacks else other
    if how.endswith("?") and lacks:
        raise WrongEnv(f"needs {found['name']}, which is not set")
    return other if lacks else given or ""

"""An `.env` means to us what it means to Compose, which reads each line here too, where there is one."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from deploy.env_file import WrongEnv, in_force, line_of, parsed, read_env, referred
from tests.deploy.compose_file import compose_answers

LINES = r"""
# PORT=1
PLAIN=a b
  SPACES =  a\t
export EXPORTED=a=b
COLON: a
COMMENT=a # b
NO_COMMENT=a#b
ONLY_A_COMMENT= # a
EMPTY=
DOUBLE="a # b" # c
SINGLE='a # $PLAIN' # c
BEHIND="a"b
INNER=it's "so"
ESCAPES="a\tb\\n\"c\" \x \$PLAIN"
LITERAL='Let\'s \n'
LONG="a
b=c"
NAME=$PLAIN-${PLAIN}-$$PLAIN
GIVEN=file
WHICH=$GIVEN
DEFAULT=${NOWHERE:-d}${EMPTY-e}${EMPTY:-f}${PLAIN:+g}${NOWHERE+h}
BLANKED=file
TWICE=1
TWICE=2
NOTHING
DOTTED.NAME=a
NO_NAMES=pa$1x$é$(a)$
NESTED=${NOWHERE:-${NOTHING:-${PLAIN}}}/${NOWHERE:-a${PLAIN}b}c/${NOWHERE-{x}}/${PLAIN:+${GIVEN}}
REQUIRED=${PLAIN:?e}${EMPTY?e}
BROKEN="a\
b"
RARE="\v\a\b\f\0101\012\c"
PAIRS='a\\'
SAME="x" LINE="y"
"""
MEANT = {
    "PLAIN": "a b",
    "SPACES": r"a\t",
    "EXPORTED": "a=b",
    "COLON": "a",
    "COMMENT": "a",
    "NO_COMMENT": "a#b",
    "ONLY_A_COMMENT": "# a",
    "EMPTY": "",
    "DOUBLE": "a # b",
    "SINGLE": "a # $PLAIN",
    "BEHIND": "a",
    "INNER": 'it\'s "so"',
    "ESCAPES": 'a\tb\\n"c" \\x $PLAIN',
    "LITERAL": r"Let's \n",
    "LONG": "a\nb=c",
    "NAME": "a b-a b-$PLAIN",
    "GIVEN": "file",
    "WHICH": "environment",
    "DEFAULT": "dfg",
    "BLANKED": "file",
    "TWICE": "2",
    "DOTTED.NAME": "a",
    "NO_NAMES": "pa$1x$é$(a)$",
    "NESTED": "a b/aa bbc/{x}/environment",
    "REQUIRED": "a b",
    "BROKEN": "a\\\nb",
    "RARE": "\v\a\b\fA\\12\\c",
    "PAIRS": "a\\\\",
    "SAME": "x",
    "LINE": "y",
}
GIVEN = {"GIVEN": "environment", "BLANKED": ""}


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (*MEANT, "NOWHERE", "NOTHING"):
        monkeypatch.delenv(name, raising=False)
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".env").write_text(LINES, encoding="utf-8")
    return tmp_path / ".env"


REFUSED = {
    "A='x": "line 1: the quotes of A are not closed",
    '\nA="x\\"\n': "line 2: the quotes of A are not closed",
    "A B=1": "line 1 begins with no name of a variable",
    "B=1\nA!=1": "line 2 begins with no name of a variable",
    "'A'=1": "line 1 begins with no name of a variable",
    "A=${NOWHERE:?e}": "A: needs NOWHERE, which is not set",
    "A=${EMPTY:?e}\n": "A: needs EMPTY, which is not set",
    "A=${PLAIN-${NOWHERE?}}": "A: needs NOWHERE, which is not set",
    "A=${PLAIN": "A: ${ begins no variable",
    'A="${PLAIN%x}"': "A: ${ begins no variable",
}
FOLDERS = (
    "/a b",
    "/a #b",
    "/pa$word",
    "/pa$$",
    "/it's",
    "/a'b $c",
    "/back\\",
    "/back\\' #",
    "'a'",
    '"a"',
    "/a\nb",
    " a ",
    "é",
)


def test_each_line_is_read_as_compose_does(env: Path) -> None:
    assert read_env(env) == MEANT
    assert {name: value for name, value in in_force(read_env(env)).items() if name in MEANT} == {**MEANT, **GIVEN}
    env.write_text("A=1\r\nB='2'\r\n", encoding="utf-8-sig")
    assert read_env(env) == {"A": "1", "B": "2"}
    assert read_env(env.with_name("none")) == {}


@pytest.mark.skipif(not compose_answers(), reason="docker compose is not here")
@pytest.mark.parametrize("name", sorted({*MEANT} - {"LONG", "BROKEN"}))  # it prints a line for each
def test_compose_says_the_same(name: str, env: Path) -> None:
    done = compose(env, "--environment")
    if "unknown flag" in done.stderr:
        pytest.skip("an older Compose does not print its environment")
    assert f"{name}={in_force(read_env(env))[name]}" in done.stdout.split("\n"), done.stderr


@pytest.mark.parametrize("text", REFUSED)
def test_what_compose_refuses_is_refused_in_one_line(text: str, env: Path) -> None:
    env.write_text(f"PLAIN=a\nEMPTY=\n{text}" if "$" in text else text, encoding="utf-8")
    with pytest.raises(WrongEnv) as refusal:
        read_env(env)
    assert str(refusal.value) == f"{env}: {REFUSED[text]}"
    if compose_answers():
        assert compose(env).returncode


def test_bytes_that_are_no_text_are_kept(env: Path) -> None:
    env.write_bytes("# é\nA=1\nB=ü\n".encode("latin-1"))
    assert read_env(env) == {"A": "1", "B": "\udcfc"}


@pytest.mark.parametrize("value", FOLDERS)
def test_a_value_is_written_so_that_it_is_read(value: str, env: Path) -> None:
    env.write_text(line_of("A", value), encoding="utf-8")
    assert parsed(line_of("A", value), {"word": "x"}) == {"A": value}
    if compose_answers():
        told = json.loads(compose(env, "--format", "json").stdout)
        assert told["services"]["one"]["environment"]["A"].replace("$$", "$") == value


def test_a_value_without_anything_special_is_written_as_it_is() -> None:
    assert [line_of("A", one) for one in ("./a/b", "/a b", "/a$b")] == ["A=./a/b\n", "A=/a b\n", "A='/a$b'\n"]


def test_what_values_are_made_of_stands_in_no_comment(env: Path) -> None:
    env.write_text("""# $NO\nA=$ONE # $NO\nB="${TWO:-${THREE}}" # $NO\nC='$NO'\nD=a$1\n""", encoding="utf-8")
    assert referred(env) == {"ONE", "TWO", "THREE"}


def compose(env: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """What Compose makes of an `.env`, and of none of the variables of who runs the tests but what it needs."""
    file = 'services: {one: {image: none, environment: {A: "${A-unset}"}}}'
    (env.parent / "compose.yml").write_text(file, encoding="utf-8")
    command = ["docker", "compose", "-f", "compose.yml", "config", *words]
    return subprocess.run(
        command,
        cwd=env.parent,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **GIVEN},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )

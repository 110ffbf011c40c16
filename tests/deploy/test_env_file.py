"""An `.env` means to us what it means to Compose, which reads each line here too, where there is one."""

import os
import subprocess
from pathlib import Path

import pytest

from deploy.env_file import in_force, read_env
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


def test_each_line_is_read_as_compose_does(env: Path) -> None:
    assert read_env(env) == MEANT
    assert {name: value for name, value in in_force(read_env(env)).items() if name in MEANT} == {**MEANT, **GIVEN}
    env.write_text("A=1\r\nB='2'\r\n", encoding="utf-8-sig")
    assert read_env(env) == {"A": "1", "B": "2"}
    assert read_env(env.with_name("none")) == {}


@pytest.mark.skipif(not compose_answers(), reason="docker compose is not here")
@pytest.mark.parametrize("name", sorted({*MEANT} - {"LONG"}))  # it prints a line for each
def test_compose_says_the_same(name: str, env: Path) -> None:
    (env.parent / "compose.yml").write_text("services: {one: {image: none}}", encoding="utf-8")
    command = ["docker", "compose", "-f", "compose.yml", "config", "--environment"]
    done = subprocess.run(command, cwd=env.parent, capture_output=True, text=True, check=False, env=dict(os.environ))
    if "unknown flag" in done.stderr:
        pytest.skip("an older Compose does not print its environment")
    assert f"{name}={in_force(read_env(env))[name]}" in done.stdout.split("\n"), done.stderr

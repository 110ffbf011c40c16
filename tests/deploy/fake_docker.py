"""A program `docker` for the host's programs to meet: it answers as it was told, and writes down what it was asked.

`answers` maps a part of a command line to what it prints and its exit code; a command that nobody thought of fails.
"""

import json
import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

PROGRAM = """#!{python}
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
asked = " ".join(sys.argv[1:])
with (here / "asked").open("a") as file:
    file.write(asked + "\\n")
with (here / "environments").open("a") as file:
    file.write(json.dumps(dict(os.environ)) + "\\n")
for part, (output, errors, code) in json.loads((here / "answers.json").read_text()).items():
    if part in asked:
        sys.stdout.write(output)
        sys.stderr.write(errors)
        sys.exit(code)
sys.exit(f"nobody told me of: {{asked}}")
"""
Answer = tuple[str, str, int]


class FakeDocker:
    """Stands first on PATH as long as the test lasts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        folder.mkdir()
        program = folder / "docker"
        program.write_text(PROGRAM.format(python=sys.executable))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        self.answer({})

    def answer(self, answers: Mapping[str, str | Answer]) -> None:
        """The first part that is found in a command line wins; a text alone is its output."""
        whole = {part: (answer, "", 0) if isinstance(answer, str) else answer for part, answer in answers.items()}
        (self._folder / "answers.json").write_text(json.dumps(whole))

    @property
    def asked(self) -> list[str]:
        """The command lines so far."""
        asked = self._folder / "asked"
        return asked.read_text().splitlines() if asked.exists() else []

    @property
    def environments(self) -> list[dict[str, str]]:
        """The environment of each of them."""
        environments = self._folder / "environments"
        return [json.loads(line) for line in environments.read_text().splitlines()] if environments.exists() else []

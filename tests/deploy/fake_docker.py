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
import json, os, pathlib, signal, sys, time
here = pathlib.Path(__file__).parent
asked = " ".join(sys.argv[1:])
def end(number=None, _=None):
    time.sleep({moment})
    with (here / "ended").open("a") as file:
        file.write(asked + "\\n")
    sys.exit(number and 128 + number)
signal.signal(signal.SIGINT, end)
with (here / "sessions").open("a") as file:
    file.write(str(os.getsid(0)) + "\\n")
with (here / "asked").open("a") as file:
    file.write(asked + "\\n")
with (here / "environments").open("a") as file:
    file.write(json.dumps(dict(os.environ)) + "\\n")
for part, (output, errors, code) in json.loads((here / "answers.json").read_text()).items():
    if part in asked:
        sys.stdout.write(output)
        sys.stderr.write(errors)
        if code == {echoes}:
            for line in sys.stdin.buffer:
                sys.stdout.buffer.write(line)
                sys.stdout.buffer.flush()
            end()
        if code == {lasts}:
            end()
        asker = os.getppid()
        while code == {hangs} and os.getppid() == asker:
            time.sleep(0.05)
        sys.exit(max(code, 0))
sys.exit(f"nobody told me of: {{asked}}")
"""
Answer = tuple[str, str, int]
ECHOES: Answer = ("", "", -1)
"""It gives back what comes in, as long as something may come."""
HANGS: Answer = ("", "", -2)
"""It does not end before the one that asked, or a moment after it was interrupted."""
LASTS: Answer = ("", "", -3)
"""It takes a moment."""
MOMENT_SECONDS = 0.5


class FakeDocker:
    """Stands first on PATH as long as the test lasts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        folder.mkdir()
        program = folder / "docker"
        codes = {"echoes": ECHOES[2], "hangs": HANGS[2], "lasts": LASTS[2]}
        program.write_text(PROGRAM.format(python=sys.executable, moment=MOMENT_SECONDS, **codes))
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
        return self._lines("asked")

    @property
    def ended(self) -> list[str]:
        """Those that did not end at once, and have ended since."""
        return self._lines("ended")

    @property
    def sessions(self) -> set[int]:
        """The sessions that they were in."""
        return {int(line) for line in self._lines("sessions")}

    @property
    def environments(self) -> list[dict[str, str]]:
        """The environment of each of them."""
        return [json.loads(line) for line in self._lines("environments")]

    def _lines(self, name: str) -> list[str]:
        file = self._folder / name
        return file.read_text().splitlines() if file.exists() else []

"""CI's second look: a few tests that failed once have to pass three times alone, and nothing else is let through."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "second_look"
MAKEFILE = f"test:\n\t@exec {sys.executable} -m pytest -q $(ARGS)\n"
TESTS = """
from pathlib import Path
import pytest

@pytest.mark.parametrize("name", {names!r})
def test_passes_from_the_time(name):
    count = Path(f"count {{hash(name)}}")
    tries = int(count.read_text()) if count.exists() else 0
    count.write_text(str(tries + 1))
    assert tries not in {red!r}

def test_passes():
    pass
"""
NAMES = ["plain", "a b [c]", "it's $HOME"]


@pytest.mark.parametrize(
    ("names", "red", "code", "runs"),
    [
        (NAMES, {0}, 0, 4),
        (NAMES, {0, 1}, 1, 2),
        (NAMES, {0, 3}, 1, 4),
        ([*NAMES, "one too many"], {0}, 1, 1),
    ],
)
def test_three_tests_at_most_have_to_pass_three_times(
    tmp_path: Path, names: list[str], red: set[int], code: int, runs: int
) -> None:
    (tmp_path / "test_it.py").write_text(TESTS.format(names=names, red=red))
    assert _looked_at(tmp_path) == code
    assert {count.read_text() for count in tmp_path.glob("count *")} == {str(runs)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("test_other.py", "def broken("),
        ("conftest.py", "def pytest_sessionfinish():\n    raise RuntimeError\n"),
        ("conftest.py", "raise RuntimeError\n"),
        ("pytest.ini", "[pytest]\naddopts = --maxfail=1\n"),
    ],
)
def test_a_run_that_broke_off_is_red_whatever_failed(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "test_it.py").write_text(TESTS.format(names=NAMES[:1], red={0}))
    (tmp_path / name).write_text(text)
    assert _looked_at(tmp_path) == 1
    assert {count.read_text() for count in tmp_path.glob("count *")} <= {"1"}


def _looked_at(folder: Path) -> int:
    """The exit code of the second look at a run that was red."""
    (folder / "Makefile").write_text(MAKEFILE)
    environment = {**{name: value for name, value in os.environ.items() if "PYTEST" not in name}, "PYTHONHASHSEED": "0"}
    first = subprocess.run(["make", "test"], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 2
    (folder / "log").write_text(first.stdout + first.stderr)
    looked = subprocess.run([SCRIPT, "log"], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return min(looked.returncode, 1)

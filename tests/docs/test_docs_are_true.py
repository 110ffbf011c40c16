"""What the documents promise is there: tables as the code has them, files that exist, commands that Make knows."""

import re
from pathlib import Path

from deploy.docs import written

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "DECISIONS.md", "CHANGELOG.md")
PATH = re.compile(r"`((?:services|shared|deploy|tests|schemas|bench)/[\w./-]*)`")


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_readme_tables_are_as_the_code_has_them() -> None:
    assert written(_text("README.md")) == _text("README.md")


def test_readme_can_be_read_in_one_sitting() -> None:
    assert len(_text("README.md").splitlines()) <= 200


def test_every_path_that_a_document_names_exists() -> None:
    named = {(document, path) for document in DOCUMENTS for path in PATH.findall(_text(document))}
    assert len(named) > 20
    assert sorted(one for one in named if not (ROOT / one[1]).exists()) == []


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

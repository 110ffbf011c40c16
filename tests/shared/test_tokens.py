"""The token file: made, read, read again, and never half believed."""

import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from shared.tokens import Caller, TokenFile, WrongToken, add_token


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def test_token_is_known_by_its_secret_alone(path: Path, clock: Clock) -> None:
    desk = add_token(path, "desk", ["planner", "operator"])
    reader = add_token(path, "wall-screen", ["staff"])
    tokens = TokenFile(path, clock=clock)
    assert tokens.caller(desk) == Caller("desk", frozenset({"planner", "operator"}))
    assert tokens.caller(reader) == Caller("wall-screen", frozenset({"staff"}))
    assert tokens.caller(sha256(desk.encode()).hexdigest()) is None
    assert tokens.caller("") is None
    assert tokens.caller("attache_\udcff") is None


def test_token_file_holds_hashes_scopes_and_names_and_is_for_its_owner_alone(path: Path) -> None:
    desk = add_token(path, "desk", ["planner", "operator"])
    assert path.read_text() == f"{sha256(desk.encode()).hexdigest()} operator,planner desk\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert desk.startswith("attache_")
    assert len(desk) == len("attache_") + 43


def test_new_token_begins_a_line_of_its_own(path: Path) -> None:
    path.write_text("# made by hand")
    desk = add_token(path, "desk", ["service"])
    assert path.read_text() == f"# made by hand\n{sha256(desk.encode()).hexdigest()} service desk\n"


def test_tokens_made_at_once_are_all_there(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: add_token(path, f"desk-{number}", ["staff"]), range(40)))
    tokens = TokenFile(path)
    assert [tokens.caller(secret) for secret in made] == [
        Caller(f"desk-{number}", frozenset({"staff"})) for number in range(40)
    ]


@pytest.mark.parametrize(
    ("name", "scopes", "said"),
    [
        ("desk", ["planer"], "unknown scope planer; there are operator, planner, service, staff"),
        ("desk", [], "a token needs a scope: operator, planner, service, staff"),
        (
            "two words",
            ["staff"],
            "a token's name is 1 to 64 letters, digits and . _ @ -, beginning with a letter or digit",
        ),
        ("#desk", ["staff"], "a token's name is 1 to 64 letters, digits and . _ @ -, beginning with a letter or digit"),
    ],
)
def test_senseless_token_is_refused_and_nothing_written(path: Path, name: str, scopes: list[str], said: str) -> None:
    with pytest.raises(WrongToken) as caught:
        add_token(path, name, scopes)
    assert str(caught.value) == said
    assert not path.exists()


def test_changed_file_is_read_again_after_a_second(path: Path, clock: Clock) -> None:
    first = add_token(path, "desk", ["staff"])
    tokens = TokenFile(path, clock=clock)
    second = add_token(path, "night-desk", ["planner"])
    assert tokens.caller(second) is None
    clock.now += 1.0
    assert tokens.caller(second) == Caller("night-desk", frozenset({"planner"}))
    path.write_text("\n".join(line for line in path.read_text().splitlines() if "night-desk" in line))
    clock.now += 1.0
    assert (tokens.caller(first), tokens.caller(second)) == (None, Caller("night-desk", frozenset({"planner"})))


@pytest.mark.parametrize(
    ("breaks", "said"),
    [
        (lambda path: path.write_text("no line of a token file\n"), "line 1 is not `sha256hex scopes name`"),
        (lambda path: path.write_text(f"# a\n\n{'a' * 64} staff,planer b\n"), "line 3: unknown scope planer"),
        (lambda path: path.write_text(f"{'a' * 64} staff b\n{'a' * 64} planner c\n"), "line 2 repeats the hash"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "UnicodeDecodeError"),
        (lambda path: path.unlink(), "No such file or directory"),
    ],
)
def test_broken_file_keeps_the_callers_and_logs_one_line(
    path: Path, clock: Clock, breaks: Callable[[Path], object], said: str
) -> None:
    desk = add_token(path, "desk", ["staff"])
    tokens = TokenFile(path, clock=clock)
    breaks(path)
    with capture_logs() as lines:
        for _ in range(3):
            clock.now += 1.0
            assert tokens.caller(desk) == Caller("desk", frozenset({"staff"}))
    assert [(line["event"], line["callers"]) for line in lines] == [("tokens.kept", 1)]
    assert said in lines[0]["error"]
    assert desk not in str(lines)


def test_file_that_comes_later_is_read(path: Path, clock: Clock) -> None:
    with capture_logs() as lines:
        tokens = TokenFile(path, clock=clock)
    assert [line["event"] for line in lines] == ["tokens.kept"]
    desk = add_token(path, "desk", ["service"])
    clock.now += 1.0
    assert tokens.caller(desk) == Caller("desk", frozenset({"service"}))


def test_planner_may_read_and_staff_may_not_plan() -> None:
    planner, staff = Caller("desk", frozenset({"planner"})), Caller("screen", frozenset({"staff"}))
    assert [planner.may(scope) for scope in ("planner", "staff", "service", "operator")] == [True, True, False, False]
    assert [staff.may(scope) for scope in ("planner", "staff", "service", "operator")] == [False, True, False, False]

"""A drill on the running stack: what ran before runs again, and nothing is wiped for a backup that is not whole."""

import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from deploy import drill
from deploy.backup_folder import BASE, Backup, check_files
from deploy.drill_feeds import Link, Served
from deploy.env_file import read_env
from deploy.facts import Facts
from deploy.stack import CLUSTER, ENDING, Say, Stack, Unable, end_in_order, undisturbed
from tests.deploy.fake_docker import HANGS, LASTS, Answer, FakeDocker
from tests.deploy.test_backup_end import until
from tests.deploy.test_backup_folder import BACKUP, FACTS, FEED, write_backup
from tests.deploy.test_backup_words import docker, refusal

__all__ = ["docker"]
SERVICES = "notifications\nparticipants\npostgres\nprometheus\nproxy\nschedule\n"
LINK = Link(id="l1", path="/feeds/x.ics")
SERVED = Served(status=200, etag=FEED.etag, last_modified="", sha256=FEED.sha256)
START = "start c1 c2 c3 c4 c5"
STOP_TO_THE_END = "stop c1 c2 c3 c4 c5"
STOP = "compose stop proxy schedule participants notifications"


class Door:
    """The stack's address, without a stack."""

    revoked: list[Link]

    def __init__(self, stack: Stack) -> None:
        """It needs nothing of the stack."""

    def issue(self, _feeds: object, links: dict[str, Link]) -> list[str]:
        links[FEED.audience] = LINK
        return []

    def fetch(self, links: Mapping[str, Link], _feeds: object) -> dict[str, Served]:
        return dict.fromkeys(links, SERVED)

    def revoke(self, links: Mapping[str, Link]) -> None:
        type(self).revoked += links.values()


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program without a server to ask; a backup is whole unless a test says else."""
    for name in ("COMPOSE_PROFILES", *read_env(CLUSTER)):
        monkeypatch.delenv(name, raising=False)
    Door.revoked = []
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "tmp"))
    monkeypatch.setattr(drill, "Door", Door)
    monkeypatch.setattr(drill, "settled", lambda _: FACTS)
    monkeypatch.setattr(drill, "back_up", lambda _stack, folder, _say: whole(folder))
    monkeypatch.setattr(drill, "restore", lambda *_, **__: None)


def whole(folder: Path) -> Backup:
    write_backup(folder)
    return BACKUP


def answers(brokers: str = "kafka\n") -> dict[str, str | Answer]:
    return {
        "config --services": "kafka\nproxy\n",
        "config": json.dumps({"name": "attache"}),
        "ps --all --services": SERVICES + brokers,
        "ps --services": SERVICES + brokers,
        "ps --quiet proxy": "c1\nc2\nc3\nc4\nc5\n",
        "ps --quiet schedule": "c2\n",
        "ps --quiet participants": "c3\n",
        "ps --quiet notifications": "c4\nc5\n",
        "compose stop": "",
        STOP_TO_THE_END: "",
        "down --volumes": "",
        "compose up": "",
        START: "",
    }


def brought_back(docker: FakeDocker) -> tuple[set[str], dict[str, str]]:
    """What was started at the end, and with which settings."""
    at = max(number for number, asked in enumerate(docker.asked) if asked.startswith("compose up"))
    return set(docker.asked[at].split()[2:]), docker.environments[at]


def test_three_brokers_come_back_with_the_settings_of_a_cluster(docker: FakeDocker) -> None:
    docker.answer(answers("kafka\nkafka-2\nkafka-3\n"))
    assert drill.main(["--here", "--yes"]) == 0
    words, environment = brought_back(docker)
    assert {"kafka", "kafka-2", "kafka-3", "prometheus", "--scale=notifications=2"} <= words
    assert read_env(CLUSTER).items() <= environment.items()
    assert Stack.here().make_up == "make up CLUSTER=1"


def test_one_broker_comes_back_as_one(docker: FakeDocker) -> None:
    docker.answer(answers())
    assert drill.main(["--here", "--yes"]) == 0
    words, environment = brought_back(docker)
    assert not {"kafka-2", "kafka-3"} & words
    assert "KAFKA_VOTERS" not in environment
    assert Stack.here().make_up == "make up"


def test_a_container_of_compose_run_is_none_of_a_service(docker: FakeDocker) -> None:
    once = answers()["ps --all --services"]
    assert isinstance(once, str)
    # with --status, Compose names those too
    docker.answer({"--services --status": f"doctor\n{once}", "--quiet --status": "c4\nc5\nc6\n", **answers()})
    stack = Stack()
    assert "doctor" not in stack.running()
    assert stack.containers("notifications") == ["c4", "c5"]


def test_own_settings_of_a_cluster_and_other_profiles_are_kept(
    docker: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker.answer(answers("kafka\nkafka-2\nkafka-3\n") | {"config --services": "kafka\nkafka-2\nkafka-3\n"})
    assert "KAFKA_VOTERS" not in Stack.here().environment  # they stand in .env
    docker.answer(answers("kafka\nkafka-2\nkafka-3\n"))
    monkeypatch.setenv("COMPOSE_PROFILES", "observability")
    monkeypatch.setenv("TOPIC_MIN_ISR", "3")
    environment = Stack.here().environment
    assert (environment["COMPOSE_PROFILES"], environment["TOPIC_MIN_ISR"]) == ("observability,cluster", "3")


def no_room(folder: Path) -> Backup:
    raise OSError(28, "No space left on device", str(folder))


def failing(folder: Path) -> Backup:
    raise Unable("base.tar.gz: pg_basebackup: error: the server went away")


def damaged(folder: Path) -> Backup:
    backup = whole(folder)
    (folder / BASE).write_bytes(b"BASE")
    return backup


def empty(folder: Path) -> Backup:
    logs = {name: replace(log, events=0) for name, log in FACTS.logs.items()}
    return replace(whole(folder), facts=Facts(logs=logs, feeds=[]))


@pytest.mark.parametrize(
    ("back_up", "line"),
    [
        (no_room, "[Errno 28] No space left on device: "),
        (failing, "base.tar.gz: pg_basebackup: error: the server went away"),
        (damaged, "is damaged: its sha256 is not that in backup.json"),
        (empty, "there is no event to compare"),
    ],
)
def test_a_backup_that_is_not_whole_wipes_nothing_and_what_was_stopped_is_started(
    back_up: Callable[[Path], Backup],
    line: str,
    docker: FakeDocker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def taken(_stack: Stack, folder: Path, _say: Say) -> Backup:
        assert docker.asked[-1] == STOP
        return back_up(folder)

    monkeypatch.setattr(drill, "back_up", taken)
    docker.answer(answers())
    assert line in refusal(drill.main, ["--here", "--yes"], capsys)
    assert docker.asked[-3:] == [STOP, STOP_TO_THE_END, START]
    assert not any("down" in asked for asked in docker.asked)
    assert Door.revoked == [LINK]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_does_not_come_to_rest_keeps_no_links_of_the_drill(
    docker: FakeDocker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rests = iter([FACTS])

    def settled(_: Stack) -> Facts:
        if facts := next(rests, None):
            return facts
        raise Unable("after 300 s feeds are still to be rendered")

    monkeypatch.setattr(drill, "settled", settled)
    docker.answer(answers())
    assert refusal(drill.main, ["--here", "--yes"], capsys) == "drill: after 300 s feeds are still to be rendered"
    assert STOP not in docker.asked
    assert Door.revoked == [LINK]


def test_what_cannot_be_stopped_is_started_again(docker: FakeDocker, capsys: pytest.CaptureFixture[str]) -> None:
    docker.answer(answers() | {"compose stop": ("", "the engine is busy\n", 1)})
    assert refusal(drill.main, ["--here", "--yes"], capsys) == "drill: the engine is busy"
    assert docker.asked[-1] == START


def test_what_does_not_start_again_is_told_in_the_same_line(
    docker: FakeDocker, capsys: pytest.CaptureFixture[str]
) -> None:
    docker.answer(answers() | {"compose stop": ("", "the engine is busy\n", 1), START: ("", "it is gone\n", 1)})
    assert refusal(drill.main, ["--here", "--yes"], capsys) == (
        "drill: the engine is busy; and it does not start again: it is gone (docker compose start)"
    )


def test_an_interrupted_backup_is_no_reason_to_leave_the_services_stopped(
    docker: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Backup:
        raise KeyboardInterrupt(15)

    monkeypatch.setattr(drill, "back_up", interrupted)
    docker.answer(answers())
    assert drill.main(["--here", "--yes"]) == 143
    assert docker.asked[-1] == START
    assert Door.revoked == [LINK]


def test_links_that_were_made_before_another_failed_end(docker: FakeDocker, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_way(_: object, _feeds: object, links: dict[str, Link]) -> list[str]:
        links[FEED.audience] = LINK
        raise KeyboardInterrupt(15)

    monkeypatch.setattr(Door, "issue", half_way)
    docker.answer(answers())
    assert drill.main(["--here", "--yes"]) == 143
    assert Door.revoked == [LINK]


def test_links_end_also_where_it_fails_after_the_stack_is_there_again(
    docker: FakeDocker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(_: object, links: Mapping[str, Link], _feeds: object) -> dict[str, Served]:
        if any("down" in asked for asked in docker.asked):
            raise Unable("the proxy does not answer")
        return dict.fromkeys(links, SERVED)

    monkeypatch.setattr(Door, "fetch", down)
    docker.answer(answers())
    assert drill.main(["--here", "--yes"]) == 1
    assert Door.revoked == [LINK]


@pytest.mark.parametrize(
    ("brokers", "words"), [("kafka\n", "make up"), ("kafka\nkafka-2\nkafka-3\n", "make up CLUSTER=1")]
)
def test_what_failed_after_the_wipe_says_how_to_go_on(
    brokers: str,
    words: str,
    docker: FakeDocker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise Unable("the server does not start")

    monkeypatch.setattr(drill, "restore", failing)
    docker.answer(answers(brokers))
    assert drill.main(["--here", "--yes"]) == 1
    (folder,) = (tmp_path / "tmp").iterdir()
    assert capsys.readouterr().err == (
        f"drill: the backup is kept: make restore FROM={folder} NOTHING_LOST=1 YES=1, then {words}\n"
        "drill: the server does not start\n"
    )


def test_the_backup_is_kept_where_it_was_wanted_and_else_at_home(
    docker: FakeDocker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docker.answer(answers())
    assert drill.main(["--here", "--yes", "--to", str(tmp_path / "kept")]) == 0
    check_files(tmp_path / "kept", BACKUP)
    assert f"drill: the backup comes to {tmp_path / 'kept'}\n" in capsys.readouterr().out
    assert list((tmp_path / "tmp").iterdir()) == []
    assert drill.main(["--here", "--yes"]) == 0
    (folder,) = (tmp_path / "tmp").iterdir()
    assert f"drill: the backup is kept in {folder}\n" in capsys.readouterr().out


def test_a_folder_with_something_in_it_is_refused_before_anything_stops(
    docker: FakeDocker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docker.answer(answers())
    assert "is not empty" in refusal(drill.main, ["--here", "--yes", "--to", str(tmp_path)], capsys)
    assert STOP not in docker.asked
    assert (tmp_path / "tmp").is_dir()


def test_links_that_cannot_be_revoked_are_named(
    docker: FakeDocker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise Unable("the proxy answers with 503")

    monkeypatch.setattr(Door, "revoke", refuse)
    docker.answer(answers())
    assert drill.main(["--here", "--yes"]) == 0
    assert capsys.readouterr().err == (
        "drill: these links of the drill still stand: l1 (the proxy answers with 503): "
        "POST /notifications/feed-links/ID/revoke when the stack runs\n"
    )


@pytest.fixture
def signalled(docker: FakeDocker) -> Iterator[Callable[..., None]]:
    """Has a signal come to this program as soon as docker is asked for something, and heard as the drill hears it."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end_in_order()
    senders = []

    def send(number: signal.Signals, when: str) -> None:
        def wait() -> None:
            until(lambda: when in docker.asked)
            os.kill(os.getpid(), number)

        senders.append(threading.Thread(target=wait))
        senders[-1].start()

    yield send
    for sender in senders:
        sender.join()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_stop_that_is_interrupted_has_ended_before_the_start(
    docker: FakeDocker, signalled: Callable[..., None]
) -> None:
    docker.answer(answers() | {"compose stop": HANGS})
    signalled(signal.SIGTERM, STOP)
    assert drill.main(["--here", "--yes"]) == 143
    assert docker.ended == [STOP]
    assert docker.asked[-2:] == [STOP_TO_THE_END, START]


def test_a_second_signal_waits_until_what_was_stopped_runs(
    docker: FakeDocker, signalled: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    docker.answer(answers() | {"compose stop": HANGS, START: LASTS})
    signalled(signal.SIGINT, STOP)
    signalled(signal.SIGTERM, STOP_TO_THE_END)
    signalled(signal.SIGHUP, START)
    assert drill.main(["--here", "--yes"]) == 130
    assert docker.ended == [STOP, START]
    assert "starting again what was stopped, a signal waits for that" in capsys.readouterr().out
    assert os.getsid(0) not in docker.sessions  # a terminal's Ctrl-C would come to all of its session


@pytest.mark.usefixtures("signalled")
def test_only_the_first_signal_interrupts() -> None:
    with pytest.raises(KeyboardInterrupt) as interrupted:
        signal.raise_signal(signal.SIGTERM)
    assert interrupted.value.args == (signal.SIGTERM,)
    others = []
    for number in ENDING:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            others.append(number)
    assert others == []


class Gone(io.TextIOWrapper):
    """A terminal that went away, or a program behind a pipe that has ended."""

    def write(self, _: str) -> int:
        raise BrokenPipeError


def test_what_was_stopped_is_started_also_where_nobody_hears_of_it(
    docker: FakeDocker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object) -> Backup:
        raise KeyboardInterrupt(1)

    monkeypatch.setattr(drill, "back_up", interrupted)
    docker.answer(answers())
    with (tmp_path / "out").open("wb") as out, Gone(out) as gone, monkeypatch.context() as patched:
        patched.setattr("sys.stdout", gone)
        assert drill.main(["--here", "--yes"]) == 129
    assert docker.asked[-2:] == [STOP_TO_THE_END, START]
    assert Door.revoked == [LINK]


def test_a_signal_that_comes_while_something_is_taken_back_counts_afterwards(signalled: Callable[..., None]) -> None:
    done = []

    def take_back() -> None:
        with undisturbed():
            signal.raise_signal(signal.SIGTERM)
            done.append("all")

    with pytest.raises(KeyboardInterrupt) as interrupted:
        take_back()
    assert done == ["all"]
    assert interrupted.value.args == (signal.SIGTERM,)
    with pytest.raises(Unable, match="the first"), undisturbed():
        raise Unable("the first")

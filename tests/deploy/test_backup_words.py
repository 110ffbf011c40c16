"""`backup`, `restore` and `drill`: what they refuse, each in one readable line that says what to do."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy import backup, drill, restore
from deploy.backup_folder import BASE
from deploy.drill import Outcome, table
from deploy.drill_copy import shared
from deploy.drill_feeds import Door, Link, Served, unlike
from deploy.env_file import read_env
from deploy.server import Server
from deploy.stack import BROKERS, CLUSTER, Stack, Unable
from tests.deploy.fake_docker import ECHOES, FakeDocker
from tests.deploy.test_backup_folder import BACKUP, FACTS, FEED, write_backup

Main = Callable[[list[str]], int]
RUNNING = {
    "config": json.dumps({"name": "attache"}),
    "ps --all --services": "postgres\nkafka\n",
    "ps --quiet postgres": "0123\n",
}

NOTHING = {"config": json.dumps({"name": "attache"}), "ps --all": ""}


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDocker:
    return FakeDocker(tmp_path / "bin", monkeypatch)


def refusal(main: Main, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a program ends."""
    with contextlib.suppress(SystemExit):
        assert main(arguments) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said.strip()


@pytest.mark.parametrize(
    ("main", "arguments", "line"),
    [
        (backup.main, [], "backup: the following arguments are required: --to"),
        (restore.main, [], "restore: the following arguments are required: --from"),
        (restore.main, ["--from", "x", "--kind", "files"], "restore: argument --kind: invalid choice: 'files'"),
        (drill.main, ["--to", "x"], "drill: the backup of a drill on a copy is not kept: make backup TO=folder"),
        (drill.main, ["--here", "--from", "x"], "drill: a drill on the running stack takes a backup of its own"),
    ],
)
def test_wrong_arguments_are_one_line(
    main: Main, arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1


def test_backup_into_a_folder_with_something_in_it_is_refused(
    tmp_path: Path, docker: FakeDocker, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "notes").write_text("mine")
    assert "is not empty: a backup gets a folder of its own" in refusal(
        backup.main, ["--to", str(tmp_path / "to")], capsys
    )
    assert "is no folder" in refusal(backup.main, ["--to", str(tmp_path / "to" / "notes")], capsys)
    assert docker.asked == []
    assert (tmp_path / "to" / "notes").read_text() == "mine"


def test_backup_of_a_stack_that_does_not_run_is_refused(
    tmp_path: Path, docker: FakeDocker, capsys: pytest.CaptureFixture[str]
) -> None:
    docker.answer({"ps --all --services": ""})
    line = refusal(backup.main, ["--to", str(tmp_path / "to")], capsys)
    assert line == "backup: postgres does not run: start the stack first (make up)"
    assert not (tmp_path / "to").exists()


def test_backup_without_room_is_refused(tmp_path: Path, docker: FakeDocker, capsys: pytest.CaptureFixture[str]) -> None:
    docker.answer({**RUNNING, "pg_database_size": f"{10**18}\n"})
    line = refusal(backup.main, ["--to", str(tmp_path / "to")], capsys)
    assert "and up to 2000000000067.1 MB are needed" in line
    docker.answer({**RUNNING, "pg_database_size": "7000000\n", "df --output": "Avail\n3000000\n"})
    line = refusal(backup.main, ["--to", str(tmp_path / "to")], capsys)
    assert line == "backup: Docker has room for 3.0 MB, and the check needs up to 14.0 MB"


def test_backup_that_fails_on_the_way_leaves_nothing(
    tmp_path: Path, docker: FakeDocker, capsys: pytest.CaptureFixture[str]
) -> None:
    docker.answer(
        {
            **RUNNING,
            "pg_database_size": "1000\n",
            "df --output": "Avail\n30000000\n",
            "pg_basebackup": ("half of it", "pg_basebackup: error: the server went away\n", 1),
            "exec --interactive": ECHOES,
        }
    )
    line = refusal(backup.main, ["--to", str(tmp_path / "to")], capsys)
    assert line == f"backup: {BASE}: pg_basebackup: error: the server went away"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bin"]


@pytest.mark.parametrize("main", [backup.main, drill.main])
def test_no_docker_is_one_line(
    main: Main, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    arguments = ["--to", str(tmp_path / "to")] if main is backup.main else []
    assert refusal(main, arguments, capsys).endswith("there is no program docker: install Docker with Compose v2")


def test_what_compose_refuses_is_said_in_its_own_words(
    tmp_path: Path, docker: FakeDocker, capsys: pytest.CaptureFixture[str]
) -> None:
    docker.answer(
        {"compose": ("", "warning\nrequired variable ATTACHE_SECRETS is missing: run make secrets once\n", 15)}
    )
    line = refusal(backup.main, ["--to", str(tmp_path / "to")], capsys)
    assert line == "backup: required variable ATTACHE_SECRETS is missing: run make secrets once"


def test_restore_while_services_run_is_refused_with_the_command_to_stop_them(
    tmp_path: Path, docker: FakeDocker, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_backup(tmp_path / "backup")
    docker.answer({**NOTHING, "ps --services": "kafka\nparticipants\npostgres\nschedule\n"})
    assert refusal(restore.main, ["--from", str(folder), "--yes"], capsys) == (
        "restore: participants and schedule must not run meanwhile: "
        "docker compose stop proxy schedule participants notifications"
    )


ONE = {
    "config --services": "kafka\nproxy\n",
    "config": json.dumps({"name": "attache", "volumes": {name: {"name": f"attache_{name}"} for name in BROKERS}}),
    "ps --all --services": "",
}
NO_KAFKA = "my-attache_kafka-2\nattache_kafka-20\nanother_kafka\n"


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of one broker."""
    for name in ("COMPOSE_PROFILES", *read_env(CLUSTER)):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_settings")
@pytest.mark.parametrize(
    ("there", "volumes", "words"),
    [
        ("", f"{NO_KAFKA}attache_kafka\n", "make up"),
        ("", f"{NO_KAFKA}attache_kafka\nattache_kafka-2\n", "make up CLUSTER=1"),  # after make down
        ("kafka\n", "attache_kafka\nattache_kafka-2\n", "make up"),  # one that was three
        ("kafka\nkafka-2\nkafka-3\n", "", "make up CLUSTER=1"),
    ],
)
def test_a_cluster_is_seen_by_its_containers_or_else_its_volumes(
    there: str, volumes: str, words: str, docker: FakeDocker
) -> None:
    docker.answer({**ONE, "ps --all --services": there, "volume ls": volumes})
    stack = Stack.here()
    assert stack.make_up == words
    assert ("KAFKA_VOTERS" in stack.environment) == (words != "make up")


UP = "compose up --detach --wait --no-build kafka"


@pytest.mark.parametrize(
    ("volumes", "brokers", "started", "words"),
    [
        (NO_KAFKA, 1, [UP], "make up"),
        (NO_KAFKA, 3, [], "make up CLUSTER=1, as where the backup is from (make up: with one broker)"),
        (f"{NO_KAFKA}attache_kafka\n", 3, [UP], "make up"),
    ],
)
def test_no_broker_is_made_where_the_backup_is_of_three(
    volumes: str, brokers: int, started: list[str], words: str, docker: FakeDocker
) -> None:
    docker.answer({**ONE, "volume ls": volumes, "up": ""})
    backup = replace(BACKUP, brokers=brokers)
    restore.start_brokers(Stack(), backup, pytest.fail)
    assert [asked for asked in docker.asked if " up " in asked] == started
    assert restore.go_on(Stack(), backup) == words


def test_what_is_there_is_the_backup_only_to_the_last_event_feed_and_epoch() -> None:
    assert restore.is_what(FACTS, FACTS)
    log, feed = FACTS.logs["notifications"], FACTS.feeds[0]
    for other in (
        replace(FACTS, logs={**FACTS.logs, "schedule": replace(FACTS.logs["schedule"], sha256="0" * 64)}),
        replace(FACTS, logs={**FACTS.logs, "notifications": replace(log, epoch=log.epoch + 1)}),
        replace(FACTS, feeds=[replace(feed, version=feed.version + 1), *FACTS.feeds[1:]]),
        replace(FACTS, feeds=FACTS.feeds[1:]),
    ):
        assert not restore.is_what(FACTS, other)


@pytest.mark.parametrize("damaged", ["backup.json", BASE])
def test_restore_of_what_is_damaged_touches_nothing(
    damaged: str, tmp_path: Path, docker: FakeDocker, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_backup(tmp_path / "backup")
    (folder / damaged).write_bytes(b"else")
    docker.answer({**NOTHING, "ps --services": "postgres\n"})
    assert str(folder / damaged) in refusal(restore.main, ["--from", str(folder), "--yes"], capsys)
    looked = ["compose ps --all --services", "compose --profile * config --format json", "compose ps --services"]
    assert docker.asked == looked


def test_backup_of_a_later_release_is_refused() -> None:
    restore.check_revisions(BACKUP)
    logs = {**FACTS.logs, "participants": replace(FACTS.logs["participants"], revision="9001")}
    with pytest.raises(Unable, match="the schema of participants is of a later release"):
        restore.check_revisions(replace(BACKUP, facts=replace(FACTS, logs=logs)))


@pytest.mark.parametrize(
    ("here", "kind", "refused"),
    [
        ("18.9", "base", None),
        ("19.0", "dump", None),
        ("19.0", "base", "the base backup is of PostgreSQL 18, this is 19: say KIND=dump"),
        ("17.2", "base", "the base backup is of PostgreSQL 18, this is 17: say KIND=dump"),
        ("17.2", "dump", "the backup is of PostgreSQL 18, this is 17: use postgres:18"),
    ],
)
def test_other_postgresql_is_refused_where_it_cannot_read_the_backup(
    here: str, kind: str, refused: str | None, docker: FakeDocker
) -> None:
    docker.answer({"postgres --version": f"postgres (PostgreSQL) {here}\n"})
    server = Server(container="0123")
    with pytest.raises(Unable) if refused else contextlib.nullcontext() as refusing:
        restore.check_version(server, BACKUP, kind)
    assert refused is None or str(getattr(refusing, "value", "")) == refused


def test_drill_on_the_running_stack_wants_a_yes(docker: FakeDocker, capsys: pytest.CaptureFixture[str]) -> None:
    docker.answer({**RUNNING, "ps --services": "postgres\nproxy\nschedule\nparticipants\nnotifications\n"})
    line = refusal(drill.main, ["--here"], capsys)
    assert line == "drill: every volume of attache would be wiped: say YES=1 if that is wanted"
    assert not any("down" in asked for asked in docker.asked)


def project_of(environment: dict[str, str]) -> str:
    return environment.get("COMPOSE_PROJECT_NAME", "")


def test_drill_gives_its_copy_the_environment_of_the_stack(
    tmp_path: Path, docker: FakeDocker, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {"name": "attache", "services": {"schedule": {"image": "attache:1"}}}
    docker.answer({"config": json.dumps(document), "volume ls": "attache-drill\nattache\n", "down --volumes": ""})
    given = {"ATTACHE_SECRETS": "/run/secrets", "COMPOSE_DISABLE_ENV_FILE": "1", "PORT": "8080"}
    given |= {"COMPOSE_PROFILES": "cluster", "KAFKA_VOTERS": "1@kafka:9093,2@kafka-2:9093", "TOPIC_REPLICATION": "2"}
    with pytest.raises(Unable, match="is no backup"):  # by then the copy is there
        drill.drill_copy(Stack("attache", given), tmp_path / "nothing")
    copies = [one for one in docker.environments if project_of(one).startswith("attache-drill-")]
    assert len(copies) > 1
    assert {one["ATTACHE_SECRETS"] for one in copies} == {"/run/secrets"}
    assert {one["COMPOSE_DISABLE_ENV_FILE"] for one in copies} == {"1"}
    assert {one["ATTACHE_IMAGE"] for one in copies} == {"attache:1"}
    # one broker of its own
    assert {one[name] for one in copies for name in ("COMPOSE_PROFILES", "KAFKA_VOTERS", "TOPIC_REPLICATION")} == {""}
    assert "8080" not in {one["PORT"] for one in copies}
    # a project that only looks like one of an earlier drill is told of and not touched
    assert "attache-drill" not in {project_of(one) for one in docker.environments}
    assert [asked for asked in docker.asked if "down" in asked] == ["compose --profile * down --volumes"]
    assert "drill: attache-drill is there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("own", "what"),
    [
        ({"volumes": {"postgres": {"name": "my_pg"}}}, "the volume my_pg"),
        ({"volumes": {"postgres": {"name": "other", "external": True}}}, "the volume other"),
        ({"volumes": {"kafka": {"name": "x", "driver_opts": {"device": "/srv/k", "o": "bind"}}}}, "the volume x"),
        ({"networks": {"app": {"name": "web", "external": True}}}, "the network web"),
        (
            {"services": {"postgres": {"volumes": [{"type": "bind", "source": "/srv/pg", "target": "/data"}]}}},
            "/srv/pg of postgres",
        ),
        (
            {"services": {"schedule": {"environment": {"KAFKA_BOOTSTRAP": "bus.example.org:9092"}}}},
            "the Kafka bus.example.org:9092 of schedule",
        ),
        (
            {"services": {"schedule": {"environment": {"SCHEDULE_KAFKA_BOOTSTRAP": "bus.example.org:9092"}}}},
            "the Kafka bus.example.org:9092 of schedule",
        ),
        (
            {"services": {"schedule": {"environment": {"SCHEDULE_DATABASE_URL": "postgresql://a:b@db.example.org/a"}}}},
            "the SCHEDULE_DATABASE_URL of schedule",
        ),
        ({"services": {"schedule": {"network_mode": "host"}}}, "the network of the host of schedule"),
    ],
)
def test_drill_on_a_copy_that_would_share_something_is_refused(
    own: dict[str, dict[str, dict[str, Any]]],
    what: str,
    tmp_path: Path,
    docker: FakeDocker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_backup(tmp_path / "backup")
    schedule = {"image": "attache:1", **own.get("services", {}).get("schedule", {})}
    document = {"name": "attache", **own, "services": {**own.get("services", {}), "schedule": schedule}}
    docker.answer({"config": json.dumps(document), "ps --all": "", "volume ls": ""})
    assert refusal(drill.main, ["--from", str(folder)], capsys) == (
        f"drill: the copy would work on what is not its own, {what}: leave that out for a drill on a copy "
        "(COMPOSE_FILE=docker-compose.yml make drill), or drill on another machine"
    )
    assert not any(word in asked for asked in docker.asked for word in (" down ", " up ", " run "))


def test_drill_on_a_copy_whose_secrets_name_another_server_is_refused(
    tmp_path: Path, docker: FakeDocker, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_backup(tmp_path / "backup")
    urls = {"schedule_database_url": "postgres", "participants_database_url": "db.example.org"}
    for name, host in urls.items():
        (tmp_path / name).write_text(f"postgresql+asyncpg://role:word@{host}/name\n", encoding="utf-8")
    document = {
        "name": "attache",
        "services": {"schedule": {"image": "attache:1"}},
        "secrets": {name: {"file": str(tmp_path / name)} for name in urls},
    }
    docker.answer({"config": json.dumps(document), "ps --all": "", "volume ls": ""})
    assert refusal(drill.main, ["--from", str(folder)], capsys).startswith(
        "drill: the copy would work on what is not its own, the server in the secret participants_database_url: "
    )


def test_what_compose_makes_for_a_project_is_its_own() -> None:
    def made(project: str) -> dict[str, Any]:
        mount = {"type": "bind", "source": "/srv/attache/Caddyfile", "read_only": True}
        return {
            "volumes": {"postgres": {"name": f"{project}_postgres"}},
            "networks": {"app": {"name": f"{project}_app", "ipam": {}}},
            "services": {
                "proxy": {"environment": None, "volumes": [mount]},
                "schedule": {"environment": {"KAFKA_BOOTSTRAP": "kafka:9092"}},
            },
        }

    assert shared(made("attache"), made("attache-drill-1")) == []


def test_drill_on_a_stack_that_lacks_a_service_is_refused(
    docker: FakeDocker, capsys: pytest.CaptureFixture[str]
) -> None:
    docker.answer({**NOTHING, "ps --services": "postgres\nproxy\nschedule\n"})
    line = refusal(drill.main, ["--here", "--yes"], capsys)
    assert line == "drill: notifications and participants must run: start the stack first (make up)"


SERVED = Served(status=200, etag="e4", last_modified="Wed, 06 May 2026 07:08:09 GMT", sha256="f4")


@pytest.mark.parametrize(
    ("served", "lines"),
    [
        (SERVED, []),
        (replace(SERVED, sha256="f5"), ["feed 7c0e: other bytes over HTTP"]),
        (replace(SERVED, etag="e5"), ["feed 7c0e: another ETag over HTTP"]),
        (replace(SERVED, status=410), ["feed 7c0e: answered with 410"]),
    ],
)
def test_feed_that_is_served_otherwise_is_found(served: Served, lines: list[str]) -> None:
    assert unlike([FEED], {"7c0e": served}) == lines


def test_feed_that_is_not_its_newest_body_yet_is_asked_for_again(
    docker: FakeDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker.answer({"port proxy": "127.0.0.1:9\n", "config": _planner(tmp_path)})
    served = iter([replace(SERVED, sha256="f3"), SERVED])
    monkeypatch.setattr(Door, "_get", lambda *_: next(served))
    links = {"7c0e": Link(id="l1", path="/feeds/x.ics")}
    assert Door(Stack()).fetch(links, [FEED]) == {"7c0e": SERVED}


def test_links_are_revoked_only_where_that_is_the_answer(
    docker: FakeDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker.answer({"port proxy": "127.0.0.1:9\n", "config": _planner(tmp_path)})
    links = {name: Link(id=name, path=f"/feeds/{name}.ics") for name in ("a", "b", "c", "d")}
    statuses = iter([200, 409, 503])
    monkeypatch.setattr(Door, "_post", lambda *_: (next(statuses), {}))
    with pytest.raises(Unable, match=r"^the proxy answers with 503$"):
        Door(Stack()).revoke(links)
    assert [*links] == ["c", "d"]


def test_what_was_made_before_it_failed_is_known(
    docker: FakeDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker.answer({"port proxy": "127.0.0.1:9\n", "config": _planner(tmp_path)})
    posted = iter([(201, {"id": "l1", "url": "https://example.org/feeds/x.ics"})])

    def post(*_: object) -> tuple[int, dict[str, str]]:
        if answer := next(posted, None):
            return answer
        raise Unable("the proxy does not answer")

    monkeypatch.setattr(Door, "_post", post)
    links: dict[str, Link] = {}
    with pytest.raises(Unable, match="does not answer"):
        Door(Stack()).issue([FEED, replace(FEED, audience="7c0f")], links)
    assert links == {"7c0e": Link(id="l1", path="/feeds/x.ics")}


def _planner(folder: Path) -> str:
    """What Compose says of a project with the planner's token."""
    token = folder / "token"
    token.write_text("attache_x\n", encoding="utf-8")
    return json.dumps({"name": "attache", "secrets": {"planner_token": {"file": str(token)}}})


def test_table_says_what_is_equal_and_what_is_not() -> None:
    same = Outcome(before=FACTS, after=FACTS, over_http=1, http_lines=[])
    assert table(same) == [
        "service         events   after  last position   after  log           epoch      after",
        "schedule           150     150            153     153  equal             1          1",
        "participants        98      98             99      99  equal             2          2",
        "notifications       10      10             11      11  equal             3          3",
        "feeds equal in the database: 1 of 1",
        "feeds equal over HTTP, bytes and ETag: 1 of 1",
        "all is as it was",
    ]
    logs = {**FACTS.logs, "schedule": replace(FACTS.logs["schedule"], events=149, sha256="a2")}
    less = replace(FACTS, logs=logs, feeds=[replace(FEED, sha256="f5")])
    other = Outcome(before=FACTS, after=less, over_http=1, http_lines=["feed 7c0e: other bytes over HTTP"])
    assert table(other)[1] == "schedule           150     149            153     153  differs           1          1"
    assert table(other)[4:] == [
        "feeds equal in the database: 0 of 1",
        "feeds equal over HTTP, bytes and ETag: 0 of 1",
        "schedule: events 149 instead of 150",
        "schedule: sha256 of the events a2 instead of a1",
        "feed 7c0e: version 4 instead of 4",
        "feed 7c0e: other bytes over HTTP",
        "NOT as it was",
    ]


@pytest.mark.parametrize(("lines", "code"), [([], 0), (["feed 7c0e: other bytes over HTTP"], 1)])
def test_drill_fails_if_anything_differs(lines: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert drill.report(Outcome(before=FACTS, after=FACTS, over_http=1, http_lines=lines)) == code
    assert capsys.readouterr().out.splitlines()[-1] == ("NOT as it was" if lines else "all is as it was")

"""A backup's folder: whole or not there, and refused where it is not as it was written."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deploy.backup_folder import (
    BASE,
    DUMPS,
    Backup,
    check_files,
    check_room,
    check_target,
    new_folder,
    read_backup,
    write_manifest,
)
from deploy.facts import Facts, Feed, Log, differences
from deploy.stack import Unable

CONTENT = {BASE: b"base", **{name: f"dump of {name}".encode() for name in DUMPS.values()}}
FEED = Feed(
    audience="7c0e", trip="11aa", delegation="22bb", level="full", alarm_seconds=900, version=4, etag="e4", sha256="f4",
    bytes=4321,
)  # fmt: skip
FACTS = Facts(
    logs={
        "schedule": Log(revision="0001", events=150, last_position=153, sha256="a1", epoch=1),
        "participants": Log(revision="0001", events=98, last_position=99, sha256="b2", epoch=2),
        "notifications": Log(revision="0002", events=10, last_position=11, sha256="c3", epoch=3),
    },
    feeds=[FEED],
)
BACKUP = Backup(
    taken_at="2026-05-06T07:08:09+00:00",
    postgres="18.6",
    unpacked_bytes=64_000_000,
    facts=FACTS,
    files={name: {"sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)} for name, body in CONTENT.items()},
)


def write_backup(folder: Path, backup: Backup = BACKUP) -> Path:
    """A whole backup, of files that nobody can restore."""
    folder.mkdir()
    for name, body in CONTENT.items():
        (folder / name).write_bytes(body)
    write_manifest(folder, backup)
    return folder


def test_backup_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = write_backup(tmp_path / "backup")
    assert read_backup(folder) == BACKUP
    check_files(folder, BACKUP)


def test_backup_of_three_brokers_is_read_as_one_and_an_older_one_as_of_one(tmp_path: Path) -> None:
    backup = replace(BACKUP, brokers=3)
    folder = write_backup(tmp_path / "backup", backup)
    assert read_backup(folder) == backup
    document = json.loads((folder / "backup.json").read_text())
    del document["brokers"]
    (folder / "backup.json").write_text(json.dumps(document))
    assert read_backup(folder) == BACKUP


def test_manifest_names_what_a_person_asks_for(tmp_path: Path) -> None:
    document = json.loads((write_backup(tmp_path / "backup") / "backup.json").read_text())
    assert document["postgres"] == "18.6"
    assert document["services"]["participants"] == {
        "revision": "0001",
        "events": 98,
        "last_position": 99,
        "sha256": "b2",
        "epoch": 2,
    }
    assert [(feed["version"], feed["sha256"], feed["etag"]) for feed in document["feeds"]] == [(4, "f4", "e4")]


@pytest.mark.parametrize("name", [*CONTENT])
@pytest.mark.parametrize("damage", [lambda body: body[:-1], lambda body: body[:-1] + b"!", lambda _: None])
def test_damaged_file_is_refused(tmp_path: Path, name: str, damage: Any) -> None:
    folder = write_backup(tmp_path / "backup")
    body = damage(CONTENT[name])
    (folder / name).unlink() if body is None else (folder / name).write_bytes(body)
    with pytest.raises(Unable, match=f"{name} is damaged"):
        check_files(folder, read_backup(folder))


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        (None, "is no backup: it has no backup.json"),
        ("", "cannot be read"),
        ("[]", "is no backup of Attaché"),
        ('{"format": "another"}', "is no backup of Attaché"),
        ('{"format": "attache-backup-1"}', "is damaged: KeyError"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_foreign_folder_is_refused(tmp_path: Path, content: str | bytes | None, refusal: str) -> None:
    if content is not None:
        (tmp_path / "backup.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Unable, match=refusal) as refused:
        read_backup(tmp_path)
    assert "\n" not in str(refused.value)


def test_manifest_that_names_other_files_is_refused(tmp_path: Path) -> None:
    files = {name: file for name, file in BACKUP.files.items() if name != BASE}
    with pytest.raises(Unable, match="is damaged"):
        read_backup(write_backup(tmp_path / "one", replace(BACKUP, files=files)))
    outside = {**BACKUP.files, "../elsewhere": BACKUP.files[BASE]}
    with pytest.raises(Unable, match="is damaged"):
        read_backup(write_backup(tmp_path / "two", replace(BACKUP, files=outside)))


def test_folder_is_there_only_when_all_was_written(tmp_path: Path) -> None:
    to = tmp_path / "backup"

    def write_and_fail() -> None:
        with new_folder(to) as folder:
            (folder / BASE).write_bytes(b"half")
            assert not to.exists()
            raise Unable("the disk is full")

    with pytest.raises(Unable):
        write_and_fail()
    assert [*tmp_path.iterdir()] == []
    with new_folder(to) as folder:
        (folder / BASE).write_bytes(b"whole")
    assert [*tmp_path.iterdir()] == [to]
    assert to.stat().st_mode & 0o777 == 0o700


def test_a_finished_folder_and_its_name_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def fsync(opened: int) -> None:
        synced.append((os.fstat(opened).st_ino, (tmp_path / "backup").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    with new_folder(tmp_path / "backup"):
        pass
    assert synced == [((tmp_path / "backup").stat().st_ino, False), (tmp_path.stat().st_ino, True)]


def test_a_disk_that_cannot_sync_folders_keeps_a_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    with new_folder(tmp_path / "backup"):
        pass
    assert [*tmp_path.iterdir()] == [tmp_path / "backup"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Unable, match="cannot be written: name another folder with TO="):
        check_target(tmp_path / "backup")


def test_what_a_killed_backup_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / ".backup.unfinished").mkdir()
    (tmp_path / ".backup.unfinished" / BASE).write_bytes(b"half")
    with new_folder(tmp_path / "backup") as folder:
        assert [*folder.iterdir()] == []
    assert [*tmp_path.iterdir()] == [tmp_path / "backup"]


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    with new_folder(tmp_path / "backup") as folder:
        (folder / BASE).write_bytes(b"whole")
    assert [file.name for file in (tmp_path / "backup").iterdir()] == [BASE]


def test_too_little_room_is_said(tmp_path: Path) -> None:
    check_room(tmp_path / "not" / "yet", 1)
    with pytest.raises(Unable, match=r"has room for .* MB, and up to .* MB are needed"):
        check_room(tmp_path / "not" / "yet", 10**18)


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"events": 97}, "participants: events 97 instead of 98"),
        ({"last_position": 100}, "participants: last position 100 instead of 99"),
        ({"sha256": "b3"}, "participants: sha256 of the events b3 instead of b2"),
    ],
)
def test_each_difference_of_a_log_is_found(changed: dict[str, Any], line: str) -> None:
    logs = {**FACTS.logs, "participants": replace(FACTS.logs["participants"], **changed)}
    assert differences(FACTS, replace(FACTS, logs=logs)) == [line]


def test_risen_epoch_and_newer_schema_are_no_differences() -> None:
    logs = {name: replace(log, epoch=9, revision="0009") for name, log in FACTS.logs.items()}
    assert differences(FACTS, replace(FACTS, logs=logs)) == []


@pytest.mark.parametrize(
    ("feeds", "line"),
    [
        ([replace(FEED, sha256="f5")], "feed 7c0e: version 4 instead of 4"),
        ([replace(FEED, etag="e5")], "feed 7c0e: version 4 instead of 4"),
        ([replace(FEED, version=5)], "feed 7c0e: version 5 instead of 4"),
        ([], "feed 7c0e: gone"),
        ([FEED, replace(FEED, audience="7c0f")], "feed 7c0f: was not there"),
    ],
)
def test_each_difference_of_a_feed_is_found(feeds: list[Feed], line: str) -> None:
    assert differences(FACTS, replace(FACTS, feeds=feeds)) == [line]

"""A backup on the disk: one folder with `backup.json`, which names each other file with its sha256 and size.

    base.tar.gz          the whole cluster at one moment, and the WAL that it needs (pg_basebackup)
    <service>.dump       the same moment of one database, for any later PostgreSQL too (pg_dump -Fc)

It is written under another name and renamed at the end, so a folder of this name is whole.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.facts import Facts, facts_of
from deploy.server import CHUNK, megabytes
from deploy.stack import SERVICES, Unable, undisturbed

FORMAT = "attache-backup-1"
MANIFEST = "backup.json"
BASE = "base.tar.gz"
DUMPS = {name: f"{name}.dump" for name in SERVICES}
SPARE = 64 * CHUNK


@dataclass(frozen=True, kw_only=True)
class Backup:
    """What backup.json says. `taken_at` is an instant in ISO 8601, `unpacked_bytes` what the base takes in a volume.

    `brokers` is how many of Kafka there were: of earlier releases' backups that is not known, and taken for one.
    """

    taken_at: str
    postgres: str
    unpacked_bytes: int
    facts: Facts
    files: dict[str, dict[str, str | int]]
    brokers: int = 1

    @property
    def major(self) -> int:
        """The major version of the PostgreSQL that it was taken from."""
        return major(self.postgres)


def major(version: str) -> int:
    """18 of 18.6."""
    return int(version.partition(".")[0])


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """A folder to write into, that becomes `to` if all goes well and is removed if not."""
    check_target(to)
    part = to.with_name(f".{to.name}.unfinished")
    shutil.rmtree(part, ignore_errors=True)  # of one that was killed
    part.mkdir(mode=0o700, parents=True)
    try:
        yield part
        _sync(part)
        part.rename(to)
    except BaseException:
        with undisturbed():
            shutil.rmtree(part, ignore_errors=True)
        raise
    _sync(to.parent)


def _sync(folder: Path) -> None:
    """A new name in a folder is on the disk when the folder is; some disks know of no such thing."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def check_target(to: Path) -> None:
    """Raises `Unable` for what is there and not an empty folder, and where none can be made."""
    if to.is_dir() and any(to.iterdir()):
        raise Unable(f"{to} is not empty: a backup gets a folder of its own")
    if to.exists() and not to.is_dir():
        raise Unable(f"{to} is no folder: name a new one")
    beside = _beside(to)
    if not os.access(beside, os.W_OK | os.X_OK):
        raise Unable(f"{beside} cannot be written: name another folder with TO=")


def _beside(to: Path) -> Path:
    """The nearest folder that is there."""
    return next(folder for folder in to.absolute().parents if folder.exists())


def check_room(to: Path, needed: int) -> None:
    """Raises `Unable` where the disk of a folder to be made has no room for so many bytes."""
    beside = _beside(to)
    free = shutil.disk_usage(beside).free
    if free < needed + SPARE:
        raise Unable(f"{beside} has room for {megabytes(free)}, and up to {megabytes(needed + SPARE)} are needed")


def write_manifest(folder: Path, backup: Backup) -> None:
    """Write backup.json, safe on the disk."""
    document = {
        "format": FORMAT,
        "taken_at": backup.taken_at,
        "postgres": backup.postgres,
        "unpacked_bytes": backup.unpacked_bytes,
        "brokers": backup.brokers,
        **backup.facts.as_json(),
        "files": backup.files,
    }
    with (folder / MANIFEST).open("x", encoding="utf-8") as file:
        json.dump(document, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def read_backup(folder: Path) -> Backup:
    """The backup in a folder, its files looked at and not yet read. Raises `Unable`."""
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Unable(f"{folder} is no backup: it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise Unable(f"{folder / MANIFEST} cannot be read: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Unable(f"{folder} is no backup of Attaché ({FORMAT}), or one of another release")
    try:
        return _backup_of(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unable(f"{folder / MANIFEST} is damaged: {error!r}") from None


def check_files(folder: Path, backup: Backup) -> None:
    """Compare each file with its digest. Raises `Unable` for the first that is not as it was written."""
    for name, known in backup.files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != known["bytes"]:
            raise Unable(f"{path} is damaged: it is not the {known['bytes']} bytes that were written")
        if _sha256(path) != known["sha256"]:
            raise Unable(f"{path} is damaged: its sha256 is not that in {MANIFEST}")


def _backup_of(document: dict[str, Any]) -> Backup:
    backup = Backup(
        taken_at=str(document["taken_at"]),
        postgres=str(document["postgres"]),
        unpacked_bytes=int(document["unpacked_bytes"]),
        facts=facts_of(document),
        files={name: {"sha256": file["sha256"], "bytes": file["bytes"]} for name, file in document["files"].items()},
        brokers=int(document.get("brokers", 1)),
    )
    if backup.major < 1 or backup.files.keys() != {BASE, *DUMPS.values()}:
        raise ValueError("files")
    return backup


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()

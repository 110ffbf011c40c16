"""What has to outlive a broken load: its id, and the secrets that the API gives once.

One JSON file, readable by its owner alone, rewritten whole (fsync, then rename) before the load goes on:

    {"load": "<id>", "of": "<external id of the trip>", "began": "<instant>", "reached": 7,
     "urls": {"<step>": "<url>"}, "loaded": null | {"trip": "<id>", "feeds": [...]}}

A load's id is in all of its idempotency keys: two loads of one file are two trips, one load taken up again is one.
"""

import json
import os
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, kw_only=True)
class FeedAddress:
    """A live feed link of a loaded trip. `delegation` is the name; the ids are those of the API."""

    delegation: str
    delegation_id: str
    kind: str
    level: str
    link: str
    url: str


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A loaded trip, as scripts are told of it."""

    trip: str
    feeds: tuple[FeedAddress, ...]

    def as_json(self) -> dict[str, Any]:
        """`{"trip": id, "feeds": [...]}`."""
        return {"trip": self.trip, "feeds": [asdict(feed) for feed in self.feeds]}

    def under(self, base: str) -> "Loaded":
        """The same where the services are reached at another base address than when the trip was loaded."""
        root = urlsplit(base)
        urls = [urlsplit(feed.url)._replace(scheme=root.scheme, netloc=root.netloc).geturl() for feed in self.feeds]
        return replace(self, feeds=tuple(replace(f, url=url) for f, url in zip(self.feeds, urls, strict=True)))


class LoadFileWrong(Exception):
    """The file of a load can't be read as one."""


class LoadFile:
    """The record of one load. Every method that changes it has written it when it returns; OSError if it can't."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._record: dict[str, Any] = _read(path)

    @property
    def path(self) -> Path:
        """Where the record stands."""
        return self._path

    @property
    def load(self) -> str:
        """The id of the load; the empty text before one began."""
        return str(self._record["load"])

    @property
    def of(self) -> str:
        """The external id of the trip that is loaded."""
        return str(self._record["of"])

    @property
    def began(self) -> datetime:
        """When the load began (aware)."""
        return datetime.fromisoformat(self._record["began"])

    @property
    def loaded(self) -> Loaded | None:
        """What came of it, once all of it was done."""
        done = self._record["loaded"]
        if done is None:
            return None
        return Loaded(trip=done["trip"], feeds=tuple(FeedAddress(**feed) for feed in done["feeds"]))

    @property
    def reached(self) -> int:
        """How many steps are known to be done; more may be."""
        return int(self._record["reached"])

    def begin(self, *, of: str, now: datetime) -> None:
        """A new load of a trip; what was known of an earlier one is forgotten."""
        began = now.astimezone(UTC).isoformat()
        self._record = {**_EMPTY, "load": secrets.token_hex(8), "of": of, "began": began, "urls": {}}
        self._write()

    def url_of(self, step: str) -> str | None:
        """The address that a step was answered with."""
        url = self._record["urls"].get(step)
        return None if url is None else str(url)

    def keep_url(self, step: str, url: str) -> None:
        """Keeps a feed's address: its secret is not given a second time."""
        self._record["urls"][step] = url
        self._write()

    def reach(self, steps: int) -> None:
        """So many steps are done: they need no pause when the load is taken up again."""
        self._record["reached"] = steps
        self._write()

    def finish(self, loaded: Loaded) -> None:
        """All of it is done; the feeds' addresses stand in what came of it."""
        self._record = {**self._record, "loaded": loaded.as_json(), "urls": {}}
        self._write()

    def _write(self) -> None:
        beside = self._path.with_name(f"{self._path.name}.new")
        beside.unlink(missing_ok=True)
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(self._record, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


_EMPTY: dict[str, Any] = {
    "load": "",
    "of": "",
    "began": "",
    "reached": 0,
    "urls": {},
    "loaded": None,
}


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {**_EMPTY, "urls": {}}
    except ValueError as fault:
        raise LoadFileWrong(f"{path}: not the record of a load ({fault}); remove it to load the trip anew") from None
    if not isinstance(record, dict) or record.keys() != _EMPTY.keys():
        raise LoadFileWrong(f"{path}: not the record of a load; remove it to load the trip anew")
    return record

"""What a backup is compared by: each service's log, and the newest bytes of each feed, as the databases have them."""

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deploy.server import Server
from deploy.stack import SERVICES

_LOG = """
SELECT (SELECT version_num FROM alembic_version), count(*), coalesce(max(position), 0),
  encode(sha256(coalesce(string_agg(decode(md5(e::text), 'hex'), '' ORDER BY position), '')), 'hex'),
  (SELECT epoch FROM relay_cursor)
FROM events e
"""
_FEEDS = """
SELECT a.id, a.trip, a.delegation, a.level, a.alarm_seconds, b.version, b.etag, encode(b.compressed, 'hex')
FROM audiences a CROSS JOIN LATERAL (
  SELECT version, etag, compressed FROM bodies WHERE audience = a.id ORDER BY version DESC LIMIT 1
) b ORDER BY a.id
"""


@dataclass(frozen=True, kw_only=True)
class Log:
    """One service's log. `sha256` is over all of its rows, so that a changed one is seen."""

    revision: str
    events: int
    last_position: int
    sha256: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Feed:
    """The newest body of one audience: `sha256` and `bytes` are those of what is served (not compressed)."""

    audience: str
    trip: str
    delegation: str
    level: str
    alarm_seconds: int
    version: int
    etag: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is compared, at one moment of a server at rest."""

    logs: Mapping[str, Log]
    feeds: Sequence[Feed]

    def as_json(self) -> dict[str, Any]:
        """As it stands in backup.json."""
        return {
            "services": {name: asdict(log) for name, log in self.logs.items()},
            "feeds": [asdict(feed) for feed in self.feeds],
        }


def read_facts(server: Server) -> Facts:
    """Ask the three databases. Raises `Unable` where one is not there or not migrated."""
    return Facts(logs={name: read_log(server, name) for name in SERVICES}, feeds=_read_feeds(server))


def read_log(server: Server, service: str) -> Log:
    """One service's log."""
    revision, events, last, digest, epoch = next(iter([*server.rows(service, _LOG)]))
    return Log(revision=revision, events=int(events), last_position=int(last), sha256=digest, epoch=int(epoch))


def facts_of(document: Mapping[str, Any]) -> Facts:
    """What `as_json` gave. Raises KeyError, TypeError for what did not come from there."""
    return Facts(
        logs={name: Log(**document["services"][name]) for name in SERVICES},
        feeds=[Feed(**feed) for feed in document["feeds"]],
    )


def differences(before: Facts, after: Facts) -> list[str]:
    """What is not the same, each in one line; a risen epoch and a newer schema are none."""
    found = []
    for name, log in before.logs.items():
        now = after.logs[name]
        for what, was, is_now in (
            ("events", log.events, now.events),
            ("last position", log.last_position, now.last_position),
            ("sha256 of the events", log.sha256, now.sha256),
        ):
            if was != is_now:
                found.append(f"{name}: {what} {is_now} instead of {was}")
    return found + feed_differences(before.feeds, after.feeds)


def feed_differences(before: Sequence[Feed], after: Sequence[Feed]) -> list[str]:
    """The feeds whose newest body is another one, and those that are only on one side."""
    was, now = ({feed.audience: feed for feed in feeds} for feeds in (before, after))
    lines = []
    for audience in sorted(was.keys() | now.keys()):
        if audience not in now:
            lines.append(f"feed {audience}: gone")
        elif audience not in was:
            lines.append(f"feed {audience}: was not there")
        elif was[audience] != now[audience]:
            lines.append(f"feed {audience}: version {now[audience].version} instead of {was[audience].version}")
    return lines


def _read_feeds(server: Server) -> list[Feed]:
    feeds = []
    for audience, trip, delegation, level, alarm, version, etag, compressed in server.rows("notifications", _FEEDS):
        body = gzip.decompress(bytes.fromhex(compressed))
        feeds.append(
            Feed(
                audience=audience,
                trip=trip,
                delegation=delegation,
                level=level,
                alarm_seconds=int(alarm),
                version=int(version),
                etag=etag,
                sha256=hashlib.sha256(body).hexdigest(),
                bytes=len(body),
            )
        )
    return feeds

"""The feeds of a stack as a calendar client gets them: a link of its own for each, and its bytes and tag by HTTP.

Of an audience's older links only hashes are kept, so nobody but their holders can fetch them; a new link to the same
audience is answered with the same body.
"""

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from deploy.facts import Feed
from deploy.stack import Stack, Unable

PATIENCE_SECONDS = 30.0
OVER = (404, 409)
"""A link that is not there, or revoked already."""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""A proxy that the environment names is not on the way to this machine's own stack."""


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link that was issued for the drill; `path` is where its feed is."""

    id: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a GET was answered with; `etag` without its quotes."""

    status: int
    etag: str
    last_modified: str
    sha256: str


class Door:
    """The stack's one published address, with the planner's token."""

    def __init__(self, stack: Stack) -> None:
        self.address = f"http://{stack.compose('port', 'proxy', '8080').strip()}"
        self._token = stack.secret("planner_token")

    def issue(self, feeds: Sequence[Feed], links: dict[str, Link]) -> list[str]:
        """A line for each feed that may not have a link any more; the others' come into `links`, by their audience.

        So those that were made are known also where this ends half way.
        """
        refused = []
        for feed in feeds:
            command: dict[str, Any] = {"delegation": feed.delegation, "level": feed.level, "label": "Restore drill"}
            if feed.alarm_seconds >= 0:
                command["alarm"] = f"PT{feed.alarm_seconds}S"
            status, answer = self._post(f"/notifications/trips/{feed.trip}/feed-links", command)
            if status == 201:
                path = "/feeds/" + answer["url"].rpartition("/feeds/")[2]
                links[feed.audience] = Link(id=answer["id"], path=path)
            else:
                refused.append(f"feed {feed.audience}: no link can be issued ({answer.get('detail', status)})")
        return refused

    def revoke(self, links: dict[str, Link]) -> None:
        """End the links, and leave in `links` those that still stand. Raises `Unable` at the first of them."""
        for audience, link in list(links.items()):
            status, answer = self._post(f"/notifications/feed-links/{link.id}/revoke", {"reason": "The drill is over"})
            if status >= 300 and status not in OVER:
                raise Unable(str(answer.get("detail", f"the proxy answers with {status}")))
            del links[audience]

    def fetch(self, links: Mapping[str, Link], feeds: Sequence[Feed]) -> dict[str, Served]:
        """Each feed by its audience; one that is not yet its newest body is asked for again for a while.

        What is stored takes a moment to come to who serves it.
        """
        until = time.monotonic() + PATIENCE_SECONDS
        served = {audience: self._get(link.path) for audience, link in links.items()}
        while unlike(feeds, served) and time.monotonic() < until:
            time.sleep(0.5)
            for feed in feeds:
                if unlike([feed], served):
                    served[feed.audience] = self._get(links[feed.audience].path)
        return served

    def _get(self, path: str) -> Served:
        request = urllib.request.Request(f"{self.address}{path}")  # noqa: S310  the address is http
        status, headers, body = _open(request)
        return Served(
            status=status,
            etag=headers.get("etag", "").strip('"'),
            last_modified=headers.get("last-modified", ""),
            sha256=hashlib.sha256(body).hexdigest(),
        )

    def _post(self, path: str, command: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/json",
            "Idempotency-Key": str(uuid4()),  # asked again, it is done once
        }
        request = urllib.request.Request(  # noqa: S310
            f"{self.address}{path}", data=json.dumps(command).encode(), headers=headers, method="POST"
        )
        status, _, body = _open(request)
        try:
            return status, json.loads(body)
        except ValueError:
            return status, {}


def unlike(feeds: Sequence[Feed], served: Mapping[str, Served]) -> list[str]:
    """The feeds that were not served as their newest body is, each in one line."""
    lines = []
    for feed in feeds:
        got = served.get(feed.audience)
        if got is None:
            continue
        if got.status != 200:
            lines.append(f"feed {feed.audience}: answered with {got.status}")
        elif got.sha256 != feed.sha256:
            lines.append(f"feed {feed.audience}: other bytes over HTTP")
        elif got.etag != feed.etag:
            lines.append(f"feed {feed.audience}: another ETag over HTTP")
    return lines


def _open(request: urllib.request.Request) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers (lower case) and body; asked again while nobody answers. Raises `Unable`."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with DIRECT.open(request, timeout=PATIENCE_SECONDS) as answer:
                return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
        except urllib.error.HTTPError as refusal:
            if refusal.code < 500 or time.monotonic() > until:
                return refusal.code, {}, refusal.read()
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > until:
                raise Unable(f"the proxy does not answer: {error}") from None
        time.sleep(0.5)

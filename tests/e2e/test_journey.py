"""The journey that the demo is there for: a meeting moves, is cancelled, a link is revoked, and the feed tells it."""

import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from tests.e2e.conftest import Running, Until
else:
    Running = Until = Any

DEADLINE = 120.0
"""Seconds; on an idle machine a change is in the feed within one."""


def _blocks(feed: bytes) -> dict[str, list[str]]:
    """The lines of each item by UID, unfolded; what stands around the items under the empty text."""
    lines = feed.decode().replace("\r\n ", "").split("\r\n")
    blocks: dict[str, list[str]] = {"": []}
    block: list[str] | None = None
    for line in lines:
        if line == "BEGIN:VEVENT":
            block = []
        elif line == "END:VEVENT":
            assert block is not None
            blocks[next(one.removeprefix("UID:") for one in block if one.startswith("UID:"))] = block
            block = None
        else:
            (blocks[""] if block is None else block).append(line)
    return blocks


def _value(block: list[str], name: str) -> str:
    return next(line.partition(":")[2] for line in block if re.split("[:;]", line)[0] == name)


def _get(url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
    return httpx.get(url, headers=headers, trust_env=False, timeout=DEADLINE)


def _changed(url: str, before: httpx.Response) -> tuple[httpx.Response, float]:
    """The feed once its bytes are others, and after how many seconds that was."""
    began = time.monotonic()
    while time.monotonic() - began < DEADLINE:
        answer = _get(url)
        assert answer.status_code == 200
        if answer.content != before.content:
            return answer, time.monotonic() - began
        time.sleep(0.02)
    raise AssertionError(f"the feed did not change within {DEADLINE:g} s")


def _meeting(client: httpx.Client, trip: str, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    items: list[dict[str, Any]] = client.get(f"/schedule/trips/{trip}/meetings", params={"limit": 500}).json()["items"]
    return next(item for item in items if fits(item))


def test_a_moved_and_cancelled_meeting_and_a_revoked_link_show_in_the_feed(running: Running, until: Until) -> None:
    trip = running.run["trip"]
    with running.client() as client:
        own = next(feed for feed in running.run["feeds"] if feed["kind"] == "own")
        issued = client.post(
            f"/notifications/trips/{trip}/feed-links",
            json={"delegation": own["delegation_id"], "level": "full", "label": "The journey's own"},
        ).raise_for_status()
        link, url = issued.json()["id"], issued.json()["url"]

        until(lambda: "etag" in _get(url).headers, what="the first body")
        first, second = _get(url), _get(url)
        assert first.content == second.content
        unchanged = _get(url, {"If-None-Match": first.headers["etag"]})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
        assert unchanged.headers["etag"] == first.headers["etag"]
        assert unchanged.headers["last-modified"] == first.headers["last-modified"]

        meeting = _meeting(client, trip, lambda item: item["start"] == "2023-11-07T18:25:00")
        time.sleep(1.1)  # as a person would: LAST-MODIFIED counts whole seconds, and so does the renderer's quiet
        moved = client.post(f"/schedule/meetings/{meeting['id']}/reschedule", json={"start": "2023-11-07T18:40:00"})
        assert moved.status_code == 200
        after, seconds = _changed(url, first)
        print(f"the moved meeting was in the feed after {seconds * 1000:.0f} ms")
        was, now = _blocks(first.content), _blocks(after.content)
        (uid,) = (uid for uid in was if uid.startswith(meeting["id"]))
        assert {one for one in was.keys() | now.keys() if was.get(one) != now.get(one)} == {uid}
        assert (_value(was[uid], "DTSTART"), _value(now[uid], "DTSTART")) == ("20231107T182500", "20231107T184000")
        assert int(_value(now[uid], "SEQUENCE")) == int(_value(was[uid], "SEQUENCE")) + 1
        assert _value(now[uid], "LAST-MODIFIED") > _value(was[uid], "LAST-MODIFIED")
        assert after.headers["etag"] != first.headers["etag"]

        client.post(f"/schedule/meetings/{meeting['id']}/cancel", json={"reason": "The Diet sits"}).raise_for_status()
        cancelled, seconds = _changed(url, after)
        print(f"the cancelled meeting was in the feed after {seconds * 1000:.0f} ms")
        last = _blocks(cancelled.content)
        assert {one for one in now.keys() | last.keys() if now.get(one) != last.get(one)} == {uid}
        assert _value(last[uid], "STATUS") == "CANCELLED"
        assert _value(last[uid], "SUMMARY").startswith("Cancelled: ")
        assert "The Diet sits" in _value(last[uid], "DESCRIPTION")
        assert int(_value(last[uid], "SEQUENCE")) == int(_value(now[uid], "SEQUENCE")) + 1

        client.post(f"/notifications/feed-links/{link}/revoke", json={"reason": "The journey ends"}).raise_for_status()
        revoked, seconds = _changed(url, cancelled)
        print(f"the revoked link's feed was empty after {seconds * 1000:.0f} ms")
        assert revoked.status_code == 200
        assert list(_blocks(revoked.content)) == [""]
        others = _get(own["url"])
        assert others.content == cancelled.content

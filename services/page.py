"""The page at `/`: the feeds with their addresses, the trip's programme, and each service's API, on one sheet.

HTML as text, nothing fetched from elsewhere, whole without its script (which only adds buttons that copy). It shows
what the API shows to the demo's token, and refreshes itself until all is ready. Everything shown is escaped here.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

import httpx

STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' height='16' "
    "rx='3' fill='%231f4e8c'/%3E%3Cpath d='M4 4h8v2H4zm0 4h8v1H4zm0 3h5v1H4z' fill='white'/%3E%3C/svg%3E"
)
REFRESH_SECONDS = 2


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; style-src {_source(STYLE)}; script-src {_source(SCRIPT)}; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page's Content-Security-Policy: its own style and script by their hashes, and nothing else at all."""


@dataclass(kw_only=True)
class State:
    """How far the start is: steps done of the demo trip's load. `feeds` are as in run.json."""

    ready: bool = False
    done: int = 0
    total: int = 0
    feeds: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


@dataclass(frozen=True, kw_only=True)
class Overview:
    """The trip as the API shows it at the moment; `links` are the feed links by id."""

    trip: Mapping[str, Any]
    stops: Sequence[Mapping[str, Any]]
    meetings: Sequence[Mapping[str, Any]]
    links: Mapping[str, Mapping[str, Any]]


async def overview(client: httpx.AsyncClient, trip: str) -> Overview:
    """Ask the API. Raises httpx's errors where it does not answer, or refuses."""

    async def get(address: str) -> Any:
        answer = await client.get(address, params={"limit": 500} if not address.endswith(trip) else None)
        return answer.raise_for_status().json()

    links = (await get(f"/notifications/trips/{trip}/feed-links"))["items"]
    return Overview(
        trip=await get(f"/schedule/trips/{trip}"),
        stops=(await get(f"/schedule/trips/{trip}/stops"))["items"],
        meetings=(await get(f"/schedule/trips/{trip}/meetings"))["items"],
        links={link["id"]: link for link in links},
    )


def page(state: State, services: Iterable[str], seen: Overview | None) -> str:
    """The whole document. `seen` is None before there is a trip, and when the API does not answer."""
    refresh = "" if state.ready else f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'
    title = escape(seen.trip["title"]) if seen else "the demo trip"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>Attaché: {title}</title>\n{refresh}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="robots" content="noindex">\n'
        f'<meta name="color-scheme" content="light dark">\n<link rel="icon" href="{ICON}">\n<style>{STYLE}</style>\n'
        f"</head>\n<body>\n{_head(state, seen)}\n<main>\n{_feeds(state, seen)}\n{_programme(state, seen)}\n"
        f"{_services(services)}\n</main>\n<footer><p>Everything here runs on this machine. Scripts find these addresses"
        " and a token in <code>run.json</code> in the data folder. Ctrl-C in the terminal stops it.</p></footer>\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _head(state: State, seen: Overview | None) -> str:
    if state.ready:
        status = '<p role="status"><span class="mark good">Ready</span> Every feed is up to date.</p>'
    elif state.total and state.done < state.total:
        status = (
            f'<p role="status"><span class="mark">Loading</span> Step {state.done} of {state.total} of the demo trip. '
            f'<progress aria-label="Steps loaded" max="{state.total}" value="{state.done}"></progress></p>'
        )
    else:
        said = "The feeds are being written." if state.total else "The services are starting."
        status = f'<p role="status"><span class="mark">Starting</span> {said}</p>'
    if seen is None:
        return f'<header><p class="name">Attaché</p><h1>The demo trip</h1>{status}</header>'
    trip = seen.trip
    principals = ", ".join(trip["principals"])
    days = f"{_day(date.fromisoformat(trip['starts_on']))} to {_day(date.fromisoformat(trip['ends_on']))}"
    live = [stop for stop in seen.stops if stop["status"] != "dropped"]
    meetings = [meeting for meeting in seen.meetings if meeting["status"] != "cancelled"]
    facts = [
        ("Principal" if len(trip["principals"]) == 1 else "Principals", principals),
        ("Dates", f"{days} {trip['ends_on'][:4]}"),
        ("From", trip["home"]["place"]),
        ("Status", trip["status"]),
        ("Programme", f"{len(live)} stops, {len(meetings)} meetings"),
    ]
    listed = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f'<header><p class="name">Attaché</p><h1>{escape(trip["title"])}</h1>{status}<dl>{listed}</dl></header>'


def _feeds(state: State, seen: Overview | None) -> str:
    rows = "".join(_feed(feed, seen.links.get(feed["link"]) if seen else None) for feed in state.feeds)
    body = (
        '<table class="feeds"><thead><tr><th scope="col">Delegation</th><th scope="col">Kind</th>'
        f'<th scope="col">Level</th><th scope="col">Address</th></tr></thead><tbody>{rows}</tbody></table>'
        if rows
        else "<p>They come when the plan is loaded.</p>"
    )
    return (
        '<section aria-labelledby="feeds"><h2 id="feeds">Calendar feeds</h2><p>Subscribe to one in any calendar. '
        "Whoever has an address can read that feed: pass it on only to those whom it is for.</p>"
        f"{body}</section>"
    )


def _feed(feed: Mapping[str, Any], link: Mapping[str, Any] | None) -> str:
    url, name = escape(feed["url"]), escape(feed["delegation"])
    webcal = escape("webcal:" + feed["url"].partition(":")[2])
    label = f'<span class="label">{escape(link["label"])}</span>' if link else ""
    ended = ' <span class="mark bad">revoked</span>' if link and link["revoked_at"] else ""
    return (
        f'<tr><th scope="row">{name}{ended}{label}</th><td data-name="Kind">{escape(feed["kind"])}</td>'
        f'<td data-name="Level">{escape(feed["level"])}</td><td><code class="address">{url}</code>'
        f'<span class="acts"><a href="{webcal}" aria-label="Subscribe to the feed of {name}">Subscribe</a> '
        f'<a href="{url}" aria-label="Download the feed of {name}">Download</a> '
        f'<button type="button" hidden data-copy="{url}" aria-label="Copy the address of the feed of {name}">Copy'
        "</button></span></td></tr>"
    )


def _programme(state: State, seen: Overview | None) -> str:
    begin = '<section aria-labelledby="programme"><h2 id="programme">Programme</h2>'
    if seen is None:
        said = "The programme cannot be read just now." if state.feeds else "It comes when the plan is loaded."
        return f"{begin}<p>{said}</p></section>"
    stops = "".join(
        _stop(stop, [meeting for meeting in seen.meetings if meeting["stop"] == stop["id"]]) for stop in seen.stops
    )
    return (
        f"{begin}<p>By the clocks of each place, for whoever may see all of it. "
        f'<abbr title="about">≈</abbr> marks a time that is assumed.</p><ol class="stops">{stops}</ol></section>'
    )


def _stop(stop: Mapping[str, Any], meetings: Sequence[Mapping[str, Any]]) -> str:
    arrives, departs = datetime.fromisoformat(stop["arrives"]), datetime.fromisoformat(stop["departs"])
    until = f"{departs:%H:%M}" if departs.date() == arrives.date() else f"{_day(departs)}, {departs:%H:%M}"
    about = "≈\u202f" if stop["assumed"] else ""
    ended = ' <span class="mark bad">dropped</span>' if stop["status"] == "dropped" else ""
    rows = "".join(_meeting(meeting) for meeting in meetings)
    count = f"{len(meetings)} meeting{'' if len(meetings) == 1 else 's'}"
    table = (
        '<table><thead><tr><th scope="col">Time</th><th scope="col">Meeting</th><th scope="col">Kind</th>'
        f'<th scope="col">Status</th></tr></thead><tbody>{rows}</tbody></table>'
    )
    return (
        f'<li><details><summary><span class="place">{escape(stop["place"])}, {escape(stop["country"])}{ended}</span>'
        f'<span class="when">{about}{_day(arrives)}, {arrives:%H:%M} to {until}</span>'
        f'<span class="zone">{escape(stop["zone"])}</span><span class="count">{count}</span></summary>'
        f"{table if rows else '<p>No meetings here.</p>'}</details></li>"
    )


def _meeting(meeting: Mapping[str, Any]) -> str:
    start = datetime.fromisoformat(meeting["start"])
    about = "≈\u202f" if meeting["assumed"] else ""
    title = escape(meeting["title"])
    cancelled = meeting["status"] == "cancelled"
    shown = f"<s>{title}</s>" if cancelled else title
    reason = f'<span class="label">{escape(meeting["reason"])}</span>' if meeting["reason"] else ""
    mark = "bad" if cancelled else "good" if meeting["status"] == "confirmed" else ""
    return (
        f'<tr><td class="time">{about}{_day(start)}, <time datetime="{escape(meeting["starts_at"])}">{start:%H:%M}'
        f'</time></td><td>{shown}{reason}</td><td data-name="Kind">{escape(meeting["kind"].replace("-", " "))}</td>'
        f'<td data-name="Status"><span class="mark {mark}">{escape(meeting["status"])}</span></td></tr>'
    )


def _services(services: Iterable[str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td><a href="/{name}/docs">API pages<span class="unseen"> of {name}</span></a>'
        f'</td><td><a href="/{name}/openapi.json">OpenAPI<span class="unseen"> of {name}</span></a></td>'
        f'<td><a href="/{name}/readyz">Readiness<span class="unseen"> of {name}</span></a></td>'
        f'<td><a href="/{name}/metrics">Metrics<span class="unseen"> of {name}</span></a></td></tr>'
        for name in services
    )
    return (
        '<section aria-labelledby="services"><h2 id="services">Services</h2><p>Commands, queries and metrics '
        "want a bearer token; <code>run.json</code> has one. The rest is open.</p>"
        '<table class="services"><thead><tr><th scope="col">Service</th><th scope="col">Try it</th>'
        '<th scope="col">Description</th><th scope="col">Is it well?</th><th scope="col">Figures</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></section>"
    )


def _day(day: date) -> str:
    """`Fri 3 Nov`."""
    return f"{day:%a} {day.day} {day:%b}"

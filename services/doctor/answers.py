"""The services as they answer: their clocks, whether they are ready, and the marks against what producers have told."""

import asyncio
import time
from email.utils import parsedate_to_datetime
from typing import Final

import httpx

from services.doctor.databases import beyond_doubt, clock, connected
from services.doctor.findings import Finding, fail, ok, warn
from shared.message_log import MessageLog

AGAIN_SECONDS: Final = 5.0
TAKEN_ANEW: Final = "containers take a changed secret when they are made anew (docker compose up -d --force-recreate)"


async def service(client: httpx.AsyncClient, name: str, base: str) -> list[Finding]:
    """Whether it answers and is ready, and its clock by the header Date."""
    before = time.time()
    try:
        answer = await client.get(f"{base}/{name}/readyz")
        report = answer.json()
        theirs = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (httpx.HTTPError, ValueError, KeyError) as error:
        do = f"start it, or mend {name.upper()}_URL"
        return [fail(f"service {name}", f"{base} does not answer ({type(error).__name__})", do)]
    # a header's instant has whole seconds, and up to one of them is cut off
    skew = beyond_doubt(theirs, before - 1.0, time.time())
    if answer.status_code == 200:
        ready = ok(f"service {name}", "ready")
    else:
        reasons = "; ".join(str(one) for one in dict(report.get("reasons") or {}).values()) or "not ready"
        ready = fail(f"service {name}", reasons, "deploy/RUNBOOK.md says what to do")
    return [ready, clock(f"clock service {name}", skew)]


async def heads(log: MessageLog, topic: str, name: str, url: str, again: float = AGAIN_SECONDS) -> list[Finding]:
    """Keys of which the producer has told more than was applied, and that do not move on."""
    check = f"marks {name} of {log.service}"
    try:
        first, ahead = await _behind(log, topic, url)
        if first:
            await asyncio.sleep(again)
        standing = set(first.items()) & set((await _behind(log, topic, url))[0].items()) if first else set()
    except httpx.HTTPStatusError as error:
        do = f"see the token of {name} in the token file (scope service); {TAKEN_ANEW}"
        return [fail(check, f"the message log refuses with {error.response.status_code}", do)]
    except httpx.HTTPError as error:
        return [fail(check, f"the message log does not answer ({type(error).__name__})", "see whether it is up")]
    if ahead:
        found = (
            f"{len(ahead)} keys are further than {log.service} has told: its database was put back, or is another one"
        )
        do = (
            f"see what {log.service.upper()}_URL leads to; stop it, python -m services.{log.service} restored, start it"
        )
        return [fail(check, found, do)]
    if standing:
        found = f"{len(standing)} keys stand still behind what was told"
        return [warn(check, found, f"they are fetched within 40 s; if not, see the log of {name} (healer.waits)")]
    return [ok(check, "what was told was applied" if not first else f"{len(first)} keys are catching up")]


async def _behind(log: MessageLog, topic: str, url: str) -> tuple[dict[str, int], list[str]]:
    """The marks of the keys that are behind, and the keys that are ahead; those parked have a line of their own."""
    async with connected(url) as database:
        rows = await database.fetch(
            "SELECT key, epoch, sequence, waits_for FROM consumer_marks WHERE topic = $1", topic
        )
    marks = {row["key"]: (row["epoch"], row["sequence"], row["waits_for"]) for row in rows}
    behind: dict[str, int] = {}
    heads: dict[str, int] = {}
    told = set()
    async for page in log.heads(topic):
        heads |= dict(page.heads)
        told.add(page.epoch)
        for key, head in page.heads:
            epoch, mark, waits_for = marks.get(key, (page.epoch, 0, None))
            # one of an earlier epoch is still to be built anew, however far it had come; where the log itself is of an
            # earlier one, nobody has said restored to its service, and all that it tells is dropped
            if epoch != page.epoch or (head > mark and waits_for in (None, "gap")):
                behind[key] = mark
    # marks were read before the heads: what was applied was told by then
    ahead = [key for key, (epoch, mark, _) in marks.items() if {epoch} == told and mark > heads.get(key, 0)]
    return behind, ahead

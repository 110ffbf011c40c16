"""What a check answers, and how many are run side by side: one that hangs is a failure and holds up no other."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeVar

from services.surroundings import line_of
from shared.logs import mask

Level = Literal["ok", "warn", "FAIL"]
CODES: Final[Mapping[Level, int]] = {"ok": 0, "warn": 1, "FAIL": 2}
COULD_NOT_LOOK: Final = 3
LIMIT_SECONDS = 15.0
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: what was looked at, what was found, and what is to be done where it is not well."""

    check: str
    level: Level
    found: str
    do: str = ""

    def line(self) -> str:
        return f"{self.level:4} {self.check}: {self.found}{f' -> {self.do}' if self.do else ''}"


Check = Callable[[], Awaitable[Sequence[Finding]]]


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, level="ok", found=found)


def warn(check: str, found: str, do: str) -> Finding:
    return Finding(check=check, level="warn", found=found, do=do)


def fail(check: str, found: str, do: str) -> Finding:
    return Finding(check=check, level="FAIL", found=found, do=do)


def graded(check: str, found: str, value: float, *, warns: float, fails: float, do: str) -> Finding:
    """`value` is well up to `warns`, and a failure above `fails`."""
    level: Level = "FAIL" if value > fails else "warn" if value > warns else "ok"
    return Finding(check=check, level=level, found=found, do="" if level == "ok" else do)


async def run_all(checks: Mapping[str, Check], limit: float | None = None) -> list[Finding]:
    """All findings, in the order of the checks. `limit`: seconds for each, `LIMIT_SECONDS` unless said."""
    found = await asyncio.gather(*(_run(name, check, limit or LIMIT_SECONDS) for name, check in checks.items()))
    return [one for findings in found for one in findings]


async def _run(name: str, check: Check, limit: float) -> Sequence[Finding]:
    task = asyncio.ensure_future(check())
    # not a time-out around it: that would wait for one that does not heed its cancellation
    await asyncio.wait({task}, timeout=limit)
    if not task.done():
        task.cancel()
        return [fail(name, f"no answer within {limit:g} s", "see whether what it asks is up and can be reached")]
    try:
        return task.result()
    except Exception as error:  # noqa: BLE001  whatever it is, the other checks are worth their lines
        return [fail(name, mask(line_of(error)), "see whether what it asks is up and can be reached")]


async def in_thread(work: Callable[[], T]) -> T:
    """Work that blocks, in a thread that may be left behind: a dead network disk answers nobody."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # None only where T holds it

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001  it is raised where it is awaited
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, daemon=True).start()
    return await done


def code_of(findings: Sequence[Finding]) -> int:
    """The exit code: that of the worst."""
    return max((CODES[one.level] for one in findings), default=COULD_NOT_LOOK)


def said(findings: Sequence[Finding], *, as_json: bool) -> str:
    """What is printed: a line each, or one JSON document."""
    if as_json:
        return json.dumps({"code": code_of(findings), "findings": [asdict(one) for one in findings]}, indent=2)
    return "\n".join(one.line() for one in findings)

"""Steady polling through the proxy: clients in threads of their own, each answer kept with its status and time.

A client is a generator: it yields what it asks for and is sent the answer. One that keeps its connection and finds it
cut tells so in the place of a status: nothing is asked twice behind its back.
"""

import http.client
import threading
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

PAUSE_SECONDS = 0.03
PATIENCE_SECONDS = 90.0


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request. `named` is what a command's event can be found by in the log."""

    path: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None
    named: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of it: `status`, or how the connection failed. It was asked at `begun` and took `seconds`."""

    client: str
    ask: Ask
    status: int | str
    tag: str
    begun: float
    seconds: float

    @property
    def fine(self) -> bool:
        return isinstance(self.status, int) and 200 <= self.status < 400


Caller = Generator[Ask, Answer]


class Polling:
    """While it is entered, each caller asks again and again; those in `fleeting` make a new connection each time."""

    def __init__(self, port: int, callers: Mapping[str, Caller], fleeting: Sequence[str] = ()) -> None:
        self.answers: list[Answer] = []
        self._port = port
        self._fleeting = frozenset(fleeting)
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._poll, args=(name, caller), name=name, daemon=True)
            for name, caller in callers.items()
        ]

    def __enter__(self) -> "Polling":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    def until_each_was_answered(self, times: int = 10) -> None:
        """Returns when every client has had so many answers to what it asked from now on."""
        now = time.monotonic()
        while min(self._answered_since(now).values()) < times:
            assert time.monotonic() < now + PATIENCE_SECONDS, self.told()
            self._ended.wait(0.05)

    def told(self) -> str:
        """Counts by status and the slowest answer, a line for each client."""
        lines = []
        for thread in self._threads:
            own = [answer for answer in self.answers if answer.client == thread.name]
            statuses = ", ".join(f"{status}: {count}" for status, count in Counter(one.status for one in own).items())
            lines.append(f"{thread.name:26} {statuses}; slowest {max((one.seconds for one in own), default=0):.1f} s")
        return "\n".join(lines)

    def _answered_since(self, begun: float) -> Mapping[str, int]:
        found = Counter(answer.client for answer in list(self.answers) if answer.begun >= begun)
        return {thread.name: found[thread.name] for thread in self._threads}

    def _poll(self, name: str, caller: Caller) -> None:
        door = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        ask = next(caller)
        while not self._ended.is_set():
            answer = _answer(door, name, ask)
            self.answers.append(answer)
            if name in self._fleeting or isinstance(answer.status, str):
                door.close()
            ask = caller.send(answer)
            self._ended.wait(PAUSE_SECONDS)
        door.close()


def _answer(door: http.client.HTTPConnection, client: str, ask: Ask) -> Answer:
    begun, tag = time.monotonic(), ""
    found: int | str
    try:
        door.request(ask.method, ask.path, ask.body, dict(ask.headers))
        told = door.getresponse()
        told.read()
        found, tag = told.status, told.getheader("ETag") or ""
    except (OSError, http.client.HTTPException) as error:
        found = type(error).__name__
    return Answer(client=client, ask=ask, status=found, tag=tag, begun=begun, seconds=time.monotonic() - begun)

"""One command, one transaction: the trip is locked, the answer remembered, the streams folded, decided and appended.

The order inside is what makes it both right and quick: the trip's lock first, so that the rules of one trip are
checked without a race while other trips go on; then the idempotency key, the streams, the decision and the read
models; and last, under the log's own lock, the events. Either all of it is there afterwards or nothing.
"""

import asyncio
import dataclasses
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast
from uuid import UUID, uuid4

import asyncpg
import structlog
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.call import Call
from shared.database import driver_of, quick_transaction
from shared.errors import KeyReused, NotFound, NotYetKnown, StaleVersion, StoreAway
from shared.event_store import Append, ConcurrentAppend, EventStore, NewEvent
from shared.tracing import OFF, Tracing

S = TypeVar("S", bound="Thing")
E = TypeVar("E")

WAIT_SECONDS = 2.0
"""How long a command waits for what another service has told already and this one has not heard yet."""
PAUSE_SECONDS = 0.05
ATTEMPTS = 3
ANSWERS_KEPT = "30 days"

log = structlog.get_logger()


class Thing(Protocol):
    """What every state has: its own id and the count of its own changes."""

    @property
    def id(self) -> UUID: ...
    @property
    def revision(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[S, E]):
    """A kind of stream: `<name>/<id>`, its fold, and how the API shows its state (a JSON object)."""

    name: str
    evolve: Callable[[S | None, E], S]
    show: Callable[[S], dict[str, Any]]

    def stream(self, thing: UUID) -> str:
        """The name of one thing's stream."""
        return f"{self.name}/{thing}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the caller gets. `remembered` is the body that a repetition gets, where it may not be the same."""

    status: int
    etag: str
    body: str
    remembered: str | None = None


@dataclass(frozen=True, kw_only=True)
class Changed(Generic[S]):
    """A thing that a command changed, for the read models; `traceparent` is the command's, where there was one."""

    kind: str
    state: S
    traceparent: str | None = None


class Transaction:
    """What one command has read and what it will append. Handlers load, decide and record; they never write."""

    def __init__(self, connection: AsyncConnection, store: EventStore, call: Call, trip: UUID) -> None:
        self.connection = connection
        self.call = call
        self.trip = trip
        self._store = store
        self._versions: dict[str, int] = {}
        self._states: dict[str, Any] = {}
        self._recorded: dict[str, list[object]] = {}
        self._kinds: dict[str, Kind[Any, Any]] = {}

    async def load(self, kind: Kind[S, E], thing: UUID) -> S | None:
        """The state of a thing, folded from its stream; None where there is none."""
        stream = kind.stream(thing)
        if stream not in self._versions:
            events = await self._store.load(self.connection, stream)
            state: S | None = None
            for event in events:
                state = kind.evolve(state, event)
            self._versions[stream], self._states[stream], self._kinds[stream] = len(events), state, kind
        return cast("S | None", self._states[stream])

    async def get(self, kind: Kind[S, E], thing: UUID) -> S:
        """The state of a thing that must be there (`NotFound`), and as new as If-Match says (`StaleVersion`)."""
        state = await self.load(kind, thing)
        if state is None:
            raise NotFound(f"there is no {kind.name} {thing}")
        wanted = self.call.if_match
        if wanted is not None and "*" not in wanted and etag_of(state) not in wanted:
            raise StaleVersion(
                f"the {kind.name} has been changed since",
                given=", ".join(wanted),
                current=etag_of(state),
                thing=kind.show(state),
            )
        return state

    def record(self, kind: Kind[S, E], thing: UUID, events: Sequence[E]) -> S:
        """Take down what was decided for a loaded thing; returns its new state."""
        stream = kind.stream(thing)
        for event in events:
            self._states[stream] = kind.evolve(self._states[stream], event)
        self._recorded.setdefault(stream, []).extend(events)
        return cast(S, self._states[stream])

    def changed(self) -> list[Changed[Any]]:
        """The things that have new events, with their new states."""
        return [
            Changed(kind=self._kinds[stream].name, state=self._states[stream], traceparent=self.call.traceparent)
            for stream, events in self._recorded.items()
            if events
        ]

    def appends(self, openly: Callable[[Any], bool]) -> list[Append]:
        """What is to be appended."""
        return [
            Append(
                stream=stream,
                expected_version=self._versions[stream],
                events=[NewEvent(id=uuid4(), data=event, open=openly(event)) for event in events],
            )
            for stream, events in self._recorded.items()
            if events
        ]


Act = Callable[[Transaction], Awaitable[Answer]]
Project = Callable[[AsyncConnection, Sequence[Changed[Any]]], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Where one service's commands are carried out. `openly` says what is told on the open topic at all."""

    engine: AsyncEngine
    store: EventStore
    project: Project
    openly: Callable[[Any], bool]
    committed: Callable[[], None]
    tracing: Tracing = OFF

    async def execute(self, call: Call, trip: UUID, act: Act, *, name: str = "command") -> Answer:
        """Carry out one command; the answer is given after the commit. Raises `shared.errors.Refusal`.

        `act` may run several times, each time in a transaction of its own that holds nothing of the one before.
        `name` is what the command is called in traces.
        """
        with self.tracing.command(name, str(trip), call.traceparent) as span:
            if self.tracing.on:
                call = dataclasses.replace(call, traceparent=span.traceparent or call.traceparent)
            answer = await self._tried(call, trip, act)
        self.committed()
        return answer

    async def _tried(self, call: Call, trip: UUID, act: Act) -> Answer:
        until = time.monotonic() + WAIT_SECONDS
        attempts = 0
        while True:
            try:
                async with quick_transaction(self.engine, lock_of(trip)) as connection:
                    return await self._within(connection, call, trip, act)
            except (ConcurrentAppend, _KeyTaken) as error:
                # someone else was first: what they wrote is now visible, so read and decide again
                attempts += 1
                if attempts == ATTEMPTS:
                    raise StoreAway("others were first each time; try again") from error
            except NotYetKnown:
                # another service may have told of it a moment ago
                if time.monotonic() >= until:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)

    async def _within(self, connection: AsyncConnection, call: Call, trip: UUID, act: Act) -> Answer:
        if call.idempotency_key is not None and (earlier := await _recall(connection, call)) is not None:
            return earlier
        transaction = Transaction(connection, self.store, call, trip)
        answer = await act(transaction)
        changed = transaction.changed()
        if changed:
            await self.project(connection, changed)
        if call.idempotency_key is not None:
            await _remember(connection, call, answer)
        if changed:
            await self.store.append(connection, str(trip), _metadata(call), transaction.appends(self.openly))
        return answer


def etag_of(thing: Thing) -> str:
    """The strong tag of a thing: how often it itself was changed, and nothing that would count anything else."""
    return f'"{thing.revision}"'


def answer_with(kind: Kind[S, Any], state: S, status: int = 200) -> Answer:
    """The thing as it now is."""
    return Answer(status=status, etag=etag_of(state), body=json.dumps(kind.show(state), ensure_ascii=False))


def lock_of(trip: UUID) -> str:
    """The statement after which nobody else decides on this trip until the transaction ends.

    It works before the trip has a row of its own.
    """
    number = int.from_bytes(trip.bytes[:8], signed=True) ^ int.from_bytes(trip.bytes[8:], signed=True)
    return f"SELECT pg_advisory_xact_lock({number})"


async def forget_old_answers(engine: AsyncEngine) -> None:
    """Drop the remembered answers that are older than is promised."""
    async with engine.begin() as connection:
        await connection.execute(
            text(f"DELETE FROM idempotency WHERE answered_at < clock_timestamp() - interval '{ANSWERS_KEPT}'")
        )


class _KeyTaken(Exception):
    """The same key is being answered by another transaction at this moment."""


async def _recall(connection: AsyncConnection, call: Call) -> Answer | None:
    driver = await driver_of(connection)
    row = await driver.fetchrow(
        "SELECT digest, status, etag, body FROM idempotency WHERE actor = $1 AND key = $2",
        call.actor,
        call.idempotency_key,
    )
    if row is None:
        return None
    if row["digest"] != call.request_digest:
        raise KeyReused("this Idempotency-Key came before with another request")
    return Answer(status=row["status"], etag=row["etag"], body=row["body"])


async def _remember(connection: AsyncConnection, call: Call, answer: Answer) -> None:
    driver = await driver_of(connection)
    try:
        await driver.execute(
            "INSERT INTO idempotency (actor, key, digest, status, etag, body) VALUES ($1, $2, $3, $4, $5, $6)",
            call.actor,
            call.idempotency_key,
            call.request_digest,
            answer.status,
            answer.etag,
            answer.body if answer.remembered is None else answer.remembered,
        )
    except asyncpg.UniqueViolationError as error:
        raise _KeyTaken from error


def _metadata(call: Call) -> Mapping[str, Any]:
    return {
        "actor": call.actor,
        "occurred_at": call.occurred_at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "correlation_id": call.correlation_id,
        "traceparent": call.traceparent,
    }

"""Read models whose rows are states: one table for each kind of thing, written in the transaction of each command.

A row holds the thing as it is shown (`thing`), its id and revision, and the columns that rules and lists ask for. As
every row is the fold of one stream, `rebuild` can make them all anew and `drift` can tell what differs from the log.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from sqlalchemy import Table, delete, select, text
from sqlalchemy.dialects.postgresql import asyncpg, insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.sql.compiler import SQLCompiler

from shared.command import Changed, Kind
from shared.database import driver_of
from shared.errors import NotFound
from shared.event_store import EventStore

TOGETHER = 500
"""How many rows a rebuild writes at a time: no more of the past is held in memory."""


@dataclass(frozen=True, kw_only=True)
class ReadModel:
    """One kind's table, and the fields of its state that stand in columns of their own."""

    kind: Kind[Any, Any]
    table: Table
    columns: tuple[str, ...]

    def row(self, state: Any) -> dict[str, Any]:
        """The row of one thing."""
        columns = {name: _column(getattr(state, name)) for name in self.columns}
        return {"id": state.id, **columns, "revision": state.revision, "thing": self.kind.show(state)}

    async def write(self, connection: AsyncConnection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows over what is there; not as the first statement of a transaction of Core."""
        put, names = self._put
        values = [[json.dumps(row[name]) if name == "thing" else row[name] for name in names] for row in rows]
        driver = await driver_of(connection)
        if len(values) == 1:
            await driver.execute(put, *values[0])
        elif values:
            await driver.executemany(put, values)

    @cached_property
    def _put(self) -> tuple[str, Sequence[str]]:
        """The statement, and the columns that its parameters are for: Core says it once, the driver sends it."""
        statement = insert(self.table)
        over = statement.on_conflict_do_update(index_elements=["id"], set_=dict(statement.excluded))
        compiled = over.compile(dialect=asyncpg.dialect())  # type: ignore[no-untyped-call]  # SQLAlchemy's own
        assert isinstance(compiled, SQLCompiler)
        assert compiled.positiontup is not None
        return str(compiled), compiled.positiontup


@dataclass(frozen=True, kw_only=True)
class ReadModels:
    """All read models of a service, by the name of the kind."""

    store: EventStore
    by_kind: Mapping[str, ReadModel]

    async def project(self, connection: AsyncConnection, changed: Sequence[Changed[Any]]) -> None:
        """Write the rows of what a command changed: in one order of tables, that of `rebuild`'s locks."""
        for name, model in self.by_kind.items():
            if rows := [model.row(change.state) for change in changed if change.kind == name]:
                await model.write(connection, rows)

    async def trip_of(self, engine: AsyncEngine, kind: str, thing: UUID) -> UUID:
        """The trip to which a thing belongs; it never changes, so it is asked for before the command's transaction.

        Raises `NotFound`.
        """
        table = self.by_kind[kind].table
        async with engine.connect() as connection:
            found: UUID | None = await connection.scalar(select(table.c.trip).where(table.c.id == thing))
        if found is None:
            raise NotFound(f"there is no {kind} {thing}")
        return found

    async def ids(self, connection: AsyncConnection, kind: str, **where: object) -> list[UUID]:
        """The ids of the things of a kind whose columns have these values, in order."""
        table = self.by_kind[kind].table
        query = select(table.c.id).where(*(table.c[name] == value for name, value in where.items()))
        return list(await connection.scalars(query.order_by(table.c.id)))

    async def rebuild(self, connection: AsyncConnection) -> int:
        """Make every row anew from the log, in the caller's transaction; returns how many there are.

        Commands wait meanwhile: each writes its rows before its events, so the tables' locks keep the two in step.
        """
        tables = ", ".join(model.table.name for model in self.by_kind.values())
        await connection.execute(text(f"LOCK TABLE {tables} IN EXCLUSIVE MODE"))
        for model in self.by_kind.values():
            await connection.execute(delete(model.table))
        count = 0
        for model in self.by_kind.values():
            rows: list[dict[str, Any]] = []
            async for state in self._states(connection, model.kind):
                rows.append(model.row(state))
                if len(rows) == TOGETHER:
                    count += await _put(connection, model, rows)
            count += await _put(connection, model, rows)
        return count

    async def drift(self, connection: AsyncConnection) -> AsyncIterator[str]:
        """Names every row that is not what its stream folds to: one line each."""
        for model in self.by_kind.values():
            rows = await connection.execute(select(model.table))
            held = {row["id"]: {**row, "thing": json.loads(row["thing"])} for row in rows.mappings()}
            async for state in self._states(connection, model.kind):
                row = held.pop(state.id, None)
                if row is None:
                    yield f"{model.kind.name} {state.id}: the log has it, the read model has not"
                elif row != model.row(state):
                    yield f"{model.kind.name} {state.id}: the read model is not what the log folds to"
            for lost in held:
                yield f"{model.kind.name} {lost}: the read model has it, the log has not"

    async def _states(self, connection: AsyncConnection, kind: Kind[Any, Any]) -> AsyncIterator[Any]:
        """The state of every stream of a kind; one stream is held in memory at a time."""
        driver = await driver_of(connection)
        rows = driver.cursor(
            "SELECT stream, type, data FROM events WHERE stream LIKE $1 ORDER BY stream, version",
            f"{kind.name}/%",
            prefetch=1000,
        )
        stream, state = None, None
        async for row in rows:
            if row["stream"] != stream:
                if stream is not None:
                    yield state
                stream, state = row["stream"], None
            state = kind.evolve(state, self.store.codec.decode(row["type"], row["data"]))
        if stream is not None:
            yield state


async def _put(connection: AsyncConnection, model: ReadModel, rows: list[dict[str, Any]]) -> int:
    """Write what was gathered, and let it go; returns how many rows there were."""
    written = len(rows)
    await model.write(connection, rows)
    rows.clear()
    return written


def _column(value: object) -> object:
    # lists are sorted by text or instant
    if isinstance(value, date) and not isinstance(value, datetime):
        return value.isoformat()
    return value

"""The tables that every service has for its plumbing, and the frozen migration steps that made them.

A service calls `plumbing(metadata)` in its `tables.py`; its migrations call the numbered steps, which are never
changed once released: a new shape is a new step. `tests/shared/test_migrations.py` compares the two.
"""

from alembic import op
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB


def plumbing(metadata: MetaData) -> None:
    """Declare the plumbing's tables in a service's metadata."""
    _store(metadata)
    _relay(metadata)
    _consumer(metadata)


def _store(metadata: MetaData) -> None:
    _events(metadata)
    Table(
        "heads",
        metadata,
        Column("key", Text, primary_key=True),
        Column("open_sequence", BigInteger, nullable=False),
        Column("cleared_sequence", BigInteger, nullable=False),
    )
    Table(
        "idempotency",
        metadata,
        Column("actor", Text, primary_key=True),
        Column("key", Text, primary_key=True),
        Column("digest", LargeBinary, nullable=False),
        Column("status", Integer, nullable=False),
        Column("etag", Text, nullable=False),
        Column("body", Text, nullable=False),
        Column("answered_at", DateTime(timezone=True), nullable=False, server_default=text("clock_timestamp()")),
        Index("idempotency_by_age", "answered_at"),
    )


def _relay(metadata: MetaData) -> None:
    Table(
        "relay_cursor",
        metadata,
        Column("one", Boolean, primary_key=True),
        Column("position", BigInteger, nullable=False),
        Column("epoch", Integer, nullable=False),
    )
    Table(
        "relay_places",
        metadata,
        Column("topic", Text, primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("offset", BigInteger, nullable=False),
        Column("event", Uuid, nullable=False),
    )


def _consumer(metadata: MetaData) -> None:
    Table(
        "consumer_offsets",
        metadata,
        Column("topic", Text, primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("next_offset", BigInteger, nullable=False),
        Column("behind", Boolean, nullable=False),
    )
    Table(
        "consumer_epochs",
        metadata,
        Column("topic", Text, primary_key=True),
        Column("epoch", Integer, nullable=False),
    )
    Table(
        "consumer_marks",
        metadata,
        Column("topic", Text, primary_key=True),
        Column("key", Text, primary_key=True),
        Column("sequence", BigInteger, nullable=False),
        Column("waits_for", Text),
        # the default is for a program of the last release that still runs while the next one starts
        Column("epoch", Integer, nullable=False, server_default=text("1")),
        Index("consumer_marks_epoch", "topic", "epoch"),
        Index("consumer_marks_waiting", "topic", "key", postgresql_where=text("waits_for IS NOT NULL")),
    )
    _parked(metadata)


def _events(metadata: MetaData) -> None:
    Table(
        "events",
        metadata,
        Column("position", BigInteger, Identity(always=True), primary_key=True),
        Column("id", Uuid, nullable=False),
        Column("stream", Text, nullable=False),
        Column("version", Integer, nullable=False),
        Column("type", Text, nullable=False),
        Column("data", JSONB, nullable=False),
        Column("metadata", JSONB, nullable=False),
        Column("key", Text, nullable=False),
        Column("open_sequence", BigInteger),
        Column("cleared_sequence", BigInteger, nullable=False),
        Column("digest", LargeBinary, nullable=False),
        Column("recorded_at", DateTime(timezone=True), nullable=False, server_default=text("clock_timestamp()")),
        UniqueConstraint("id", name="events_id"),
        UniqueConstraint("stream", "version", name="events_stream_version"),
        UniqueConstraint("key", "cleared_sequence", name="events_cleared"),
        UniqueConstraint("key", "open_sequence", name="events_open"),
    )


def _parked(metadata: MetaData) -> None:
    Table(
        "parked_messages",
        metadata,
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column("topic", Text, nullable=False),
        # where it stood on the bus; neither is known of one that was fetched from the producer's log
        Column("number", Integer),
        Column("offset", BigInteger),
        Column("key", Text, nullable=False),
        Column("sequence", BigInteger),
        Column("message_id", Text),
        Column("headers", JSONB, nullable=False),
        Column("body", LargeBinary),
        Column("slug", Text, nullable=False),
        Column("error", Text, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("parked_at", DateTime(timezone=True), nullable=False, server_default=text("clock_timestamp()")),
        Column("announced_at", DateTime(timezone=True)),
        UniqueConstraint("topic", "number", "offset", name="parked_messages_place"),
        Index("parked_messages_key", "topic", "key", "sequence"),
    )
    Table(
        "dropped_messages",
        metadata,
        Column("id", BigInteger, Identity(always=True), primary_key=True),
        Column("topic", Text, nullable=False),
        Column("key", Text, nullable=False),
        # none of these is known of a record that nobody could read; where it stood is known of that alone
        Column("sequence", BigInteger),
        Column("message_id", Text),
        Column("type", Text),
        Column("number", Integer),
        Column("offset", BigInteger),
        Column("slug", Text, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("parked_at", DateTime(timezone=True), nullable=False),
        Column("dropped_by", Text, nullable=False),
        Column("reason", Text, nullable=False),
        Column("dropped_at", DateTime(timezone=True), nullable=False, server_default=text("clock_timestamp()")),
        Index("dropped_messages_key", "topic", "key"),
    )


def create_event_store_1() -> None:
    """The log, its heads and the remembered answers, as first released."""
    op.execute("""
        CREATE TABLE events (
            position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            id uuid NOT NULL CONSTRAINT events_id UNIQUE,
            stream text NOT NULL,
            version integer NOT NULL,
            type text NOT NULL,
            data jsonb NOT NULL,
            metadata jsonb NOT NULL,
            key text NOT NULL,
            open_sequence bigint,
            cleared_sequence bigint NOT NULL,
            digest bytea NOT NULL,
            recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            CONSTRAINT events_stream_version UNIQUE (stream, version),
            CONSTRAINT events_cleared UNIQUE (key, cleared_sequence),
            CONSTRAINT events_open UNIQUE (key, open_sequence)
        )""")
    op.execute("""
        CREATE TABLE heads (
            key text PRIMARY KEY, open_sequence bigint NOT NULL, cleared_sequence bigint NOT NULL
        ) WITH (fillfactor = 50)""")
    op.execute("""
        CREATE TABLE idempotency (
            actor text, key text, digest bytea NOT NULL, status integer NOT NULL, etag text NOT NULL,
            body text NOT NULL,
            answered_at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (actor, key)
        )""")
    op.execute("CREATE INDEX idempotency_by_age ON idempotency (answered_at)")


def create_relay_1() -> None:
    """How far the log has been published, as first released."""
    op.execute("CREATE TABLE relay_cursor (one boolean PRIMARY KEY, position bigint NOT NULL, epoch integer NOT NULL)")
    op.execute("INSERT INTO relay_cursor VALUES (true, 0, 1)")
    op.execute("""
        CREATE TABLE relay_places (
            topic text, number integer, "offset" bigint NOT NULL, event uuid NOT NULL, PRIMARY KEY (topic, number)
        )""")


def create_consumer_1() -> None:
    """How far the others' topics have been taken in, and what could not be, as first released."""
    op.execute("""
        CREATE TABLE consumer_offsets (
            topic text, number integer, next_offset bigint NOT NULL, behind boolean NOT NULL,
            PRIMARY KEY (topic, number)
        )""")
    op.execute("""
        CREATE TABLE consumer_marks (
            topic text, key text, sequence bigint NOT NULL, waits_for text, PRIMARY KEY (topic, key)
        )""")
    op.execute("CREATE INDEX consumer_marks_waiting ON consumer_marks (topic, key) WHERE waits_for IS NOT NULL")
    op.execute("""
        CREATE TABLE parked_messages (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            topic text NOT NULL, number integer, "offset" bigint, key text NOT NULL, sequence bigint,
            message_id text, headers jsonb NOT NULL, body bytea, slug text NOT NULL, error text NOT NULL,
            attempts integer NOT NULL, parked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            announced_at timestamptz,
            CONSTRAINT parked_messages_place UNIQUE (topic, number, "offset")
        )""")
    op.execute("CREATE INDEX parked_messages_key ON parked_messages (topic, key, sequence)")


def add_epochs_2() -> None:
    """Of which epoch of its producer each mark is, and the highest that each producer's log has told."""
    op.execute("CREATE TABLE consumer_epochs (topic text PRIMARY KEY, epoch integer NOT NULL)")
    op.execute("ALTER TABLE consumer_marks ADD COLUMN epoch integer NOT NULL DEFAULT 1")
    op.execute("CREATE INDEX consumer_marks_epoch ON consumer_marks (topic, epoch)")


def add_dropped_3() -> None:
    """Which messages an operator has dropped for good, who it was and why."""
    op.execute("""
        CREATE TABLE dropped_messages (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            topic text NOT NULL, key text NOT NULL, sequence bigint, message_id text, type text,
            number integer, "offset" bigint, slug text NOT NULL, attempts integer NOT NULL,
            parked_at timestamptz NOT NULL, dropped_by text NOT NULL, reason text NOT NULL,
            dropped_at timestamptz NOT NULL DEFAULT clock_timestamp()
        )""")
    op.execute("CREATE INDEX dropped_messages_key ON dropped_messages (topic, key)")

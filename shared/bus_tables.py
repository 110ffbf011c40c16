"""The tables of the local bus, in a database of their own. `shared/bus_migrations` makes them."""

from sqlalchemy import ARRAY, BigInteger, Column, DateTime, Integer, LargeBinary, MetaData, Table, Text
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData()

topics = Table(
    "topics",
    metadata,
    Column("name", Text, primary_key=True),
    Column("partitions", Integer, nullable=False),
)

heads = Table(
    "heads",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("next_offset", BigInteger, nullable=False),
)
"""The offset that the next record of each partition gets: it never falls, though records may be deleted."""

records = Table(
    "records",
    metadata,
    Column("topic", Text, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("key", LargeBinary),
    Column("headers", JSONB, nullable=False),  # [[name, value], ...]: an object would lose order and repetition
    Column("body", LargeBinary),
)

members = Table(
    "members",
    metadata,
    Column("group_name", Text, primary_key=True),
    Column("member", Text, primary_key=True),
    Column("topics", ARRAY(Text), nullable=False),
    Column("backend", Integer, nullable=False),
    Column("seen_at", DateTime(timezone=True), nullable=False),
)

"""The tables of the participants service: the plumbing's, and one read model for each kind of thing."""

from sqlalchemy import Column, Index, Integer, MetaData, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB

from shared.tables import plumbing

metadata = MetaData()
plumbing(metadata)

delegations = Table(
    "delegations",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("trip", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("thing", JSONB, nullable=False),
    Index("delegations_of_trip", "trip", "name", "id"),
)
members = Table(
    "members",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("trip", Uuid, nullable=False),
    Column("delegation", Uuid, nullable=False),
    Column("function", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("thing", JSONB, nullable=False),
    Index("members_of_delegation", "delegation", "function", "id"),
)
known_trips = Table(
    "known_trips",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("status", Text, nullable=False),
)

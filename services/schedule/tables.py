"""The tables of the schedule service: the plumbing's, and one read model for each kind of thing.

A row holds the thing as the API shows it (`thing`), and beside it only what rules and lists ask for.
"""

from sqlalchemy import Column, DateTime, Index, Integer, MetaData, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import JSONB

from shared.tables import plumbing

metadata = MetaData()
plumbing(metadata)


def _instant(name: str) -> Column[object]:
    return Column(name, DateTime(timezone=True), nullable=False)


trips = Table(
    "trips",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("status", Text, nullable=False),
    Column("starts_on", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("thing", JSONB, nullable=False),
    Index("trips_by_start", "starts_on", "id"),
)
stops = Table(
    "stops",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("trip", Uuid, nullable=False),
    Column("status", Text, nullable=False),
    Column("zone", Text, nullable=False),
    _instant("arrives_at"),
    _instant("departs_at"),
    Column("revision", Integer, nullable=False),
    Column("thing", JSONB, nullable=False),
    Index("stops_of_trip", "trip", "arrives_at", "id"),
)
movements = Table(
    "movements",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("trip", Uuid, nullable=False),
    _instant("departs_at"),
    Column("revision", Integer, nullable=False),
    Column("thing", JSONB, nullable=False),
    Index("movements_of_trip", "trip", "departs_at", "id"),
)
meetings = Table(
    "meetings",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("trip", Uuid, nullable=False),
    Column("stop", Uuid, nullable=False),
    Column("status", Text, nullable=False),
    _instant("starts_at"),
    _instant("ends_at"),
    Column("revision", Integer, nullable=False),
    Column("thing", JSONB, nullable=False),
    Index("meetings_of_trip", "trip", "starts_at", "id"),
    Index("meetings_of_stop", "stop"),
)
known_delegations = Table(
    "known_delegations",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("trip", Uuid, nullable=False),
    Column("status", Text, nullable=False),
)

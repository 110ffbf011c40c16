"""The tables of the notifications service.

The picture (`things`) can be built anew from the others' messages at any time. What was served cannot: `revisions`,
`sequence_floors` and `bodies` are facts of this service, and no rebuild drops them.
"""

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
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from shared.tables import plumbing

metadata = MetaData()
plumbing(metadata)

instance = Table(
    "instance",
    metadata,
    Column("one", Boolean, primary_key=True),
    Column("domain", Text, nullable=False),
    Column("renderer", Text, nullable=False),
)
things = Table(
    "things",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("id", Uuid, primary_key=True),
    Column("trip", Uuid, nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("document", JSONB, nullable=False),
    Index("things_of_trip", "trip"),
)
sequence_floors = Table(
    "sequence_floors",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("id", Uuid, primary_key=True),
    # by how much a thing's SEQUENCE is above the fold of its messages, since a restored producer told other ones
    Column("raised", Integer, nullable=False),
)
feed_links = Table(
    "feed_links",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("trip", Uuid, nullable=False),
    Column("audience", Uuid, nullable=False),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("thing", JSONB, nullable=False),
    Column("secrets", JSONB, nullable=False),
    Index("feed_links_of_trip", "trip", "expires_at", "id"),
)
fetches = Table(
    "fetches",
    metadata,
    Column("feed_link", Uuid, primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("client", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("count", BigInteger, nullable=False),
)
audiences = Table(
    "audiences",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("trip", Uuid, nullable=False),
    Column("delegation", Uuid, nullable=False),
    Column("level", Text, nullable=False),
    Column("alarm_seconds", Integer, nullable=False),
    UniqueConstraint("trip", "delegation", "level", "alarm_seconds", name="audiences_whole"),
)
marks = Table(
    "marks",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("trip", Uuid, nullable=False),
    Column("traceparent", Text),
    Index("marks_of_trip", "trip"),
)
renderings = Table(
    "renderings",
    metadata,
    Column("trip", Uuid, primary_key=True),
    Column("second", BigInteger, nullable=False),
)
revisions = Table(
    "revisions",
    metadata,
    Column("audience", Uuid, primary_key=True),
    Column("item", Uuid, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("last_modified", DateTime(timezone=True), nullable=False),
)
body_places = Sequence("body_places", metadata=metadata)
bodies = Table(
    "bodies",
    metadata,
    Column("audience", Uuid, primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("place", BigInteger, body_places, nullable=False, server_default=text("nextval('body_places')")),
    Column("since", DateTime(timezone=True), nullable=False),
    Column("etag", Text, nullable=False),
    Column("compressed", LargeBinary, nullable=False),
    UniqueConstraint("place", name="bodies_place"),
)

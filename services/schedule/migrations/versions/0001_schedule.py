"""The schedule service's tables, as first released."""

from alembic import op

from shared.tables import create_consumer_1, create_event_store_1, create_relay_1

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_event_store_1()
    create_relay_1()
    create_consumer_1()
    op.execute("""
        CREATE TABLE trips (
            id uuid PRIMARY KEY, status text NOT NULL, starts_on text NOT NULL, revision integer NOT NULL,
            thing jsonb NOT NULL
        )""")
    op.execute("CREATE INDEX trips_by_start ON trips (starts_on, id)")
    op.execute("""
        CREATE TABLE stops (
            id uuid PRIMARY KEY, trip uuid NOT NULL, status text NOT NULL, zone text NOT NULL,
            arrives_at timestamptz NOT NULL, departs_at timestamptz NOT NULL, revision integer NOT NULL,
            thing jsonb NOT NULL
        )""")
    op.execute("CREATE INDEX stops_of_trip ON stops (trip, arrives_at, id)")
    op.execute("""
        CREATE TABLE movements (
            id uuid PRIMARY KEY, trip uuid NOT NULL, departs_at timestamptz NOT NULL, revision integer NOT NULL,
            thing jsonb NOT NULL
        )""")
    op.execute("CREATE INDEX movements_of_trip ON movements (trip, departs_at, id)")
    op.execute("""
        CREATE TABLE meetings (
            id uuid PRIMARY KEY, trip uuid NOT NULL, stop uuid NOT NULL, status text NOT NULL,
            starts_at timestamptz NOT NULL, ends_at timestamptz NOT NULL, revision integer NOT NULL,
            thing jsonb NOT NULL
        )""")
    op.execute("CREATE INDEX meetings_of_trip ON meetings (trip, starts_at, id)")
    op.execute("CREATE INDEX meetings_of_stop ON meetings (stop)")
    op.execute("CREATE TABLE known_delegations (id uuid PRIMARY KEY, trip uuid NOT NULL, status text NOT NULL)")


def downgrade() -> None:
    raise NotImplementedError("released data goes forward only: write a new revision, or restore a backup")

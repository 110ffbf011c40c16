"""The participants service's tables, as first released."""

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
        CREATE TABLE delegations (
            id uuid PRIMARY KEY, trip uuid NOT NULL, name text NOT NULL, revision integer NOT NULL, thing jsonb NOT NULL
        )""")
    op.execute("CREATE INDEX delegations_of_trip ON delegations (trip, name, id)")
    op.execute("""
        CREATE TABLE members (
            id uuid PRIMARY KEY, trip uuid NOT NULL, delegation uuid NOT NULL, function text NOT NULL,
            revision integer NOT NULL, thing jsonb NOT NULL
        )""")
    op.execute("CREATE INDEX members_of_delegation ON members (delegation, function, id)")
    op.execute("CREATE TABLE known_trips (id uuid PRIMARY KEY, status text NOT NULL)")


def downgrade() -> None:
    raise NotImplementedError("released data goes forward only: write a new revision, or restore a backup")

"""Marks know the epoch of the producer from which they are, and no SEQUENCE falls when a thing is built anew."""

from alembic import op

from shared.tables import add_epochs_2

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    add_epochs_2()
    op.execute("""
        CREATE TABLE sequence_floors (
            kind text, id uuid, raised integer NOT NULL, PRIMARY KEY (kind, id)
        )""")


def downgrade() -> None:
    raise NotImplementedError("released data goes forward only: write a new revision, or restore a backup")

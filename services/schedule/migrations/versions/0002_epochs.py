"""Marks know the epoch of the producer from which they are."""

from shared.tables import add_epochs_2

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    add_epochs_2()


def downgrade() -> None:
    raise NotImplementedError("released data goes forward only: write a new revision, or restore a backup")

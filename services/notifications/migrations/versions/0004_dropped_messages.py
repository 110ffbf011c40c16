"""What an operator drops for good is written down, and passed over when it is told again."""

from shared.tables import add_dropped_3

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    add_dropped_3()


def downgrade() -> None:
    raise NotImplementedError("released data goes forward only: write a new revision, or restore a backup")

"""A mark keeps the trace context of the change that made it, so that a new body can name what led to it."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE marks ADD COLUMN traceparent text")


def downgrade() -> None:
    raise NotImplementedError("released data goes forward only: write a new revision, or restore a backup")

"""Alembic's way into the notifications database; see `shared.migrations_env`."""

from shared.migrations_env import run

run("services.notifications.tables")

"""Alembic's way into the participants database; see `shared.migrations_env`."""

from shared.migrations_env import run

run("services.participants.tables")

"""Alembic's way into the schedule database; see `shared.migrations_env`."""

from shared.migrations_env import run

run("services.schedule.tables")

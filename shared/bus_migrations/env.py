"""Alembic's entry for the local bus's database."""

from shared import migrations_env

migrations_env.run("shared.bus_tables")

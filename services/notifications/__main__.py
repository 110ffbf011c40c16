"""`python -m services.notifications serve | migrate | rebuild | verify | redrive | restored`."""

import sys

from services.notifications.main import MIGRATIONS, NAME, create_app
from services.notifications.projections import STORE, drift, rebuild
from services.notifications.settings import NotificationsSettings
from shared.cli import Program, run

PROGRAM = Program(
    name=NAME,
    settings=NotificationsSettings,
    create_app=create_app,
    migrations=MIGRATIONS,
    store=STORE,
    rebuild=rebuild,
    drift=drift,
)

if __name__ == "__main__":
    sys.exit(run(PROGRAM))

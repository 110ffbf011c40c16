"""`python -m services.schedule serve | migrate | rebuild | verify | redrive | restored | retime`."""

import sys

from services.schedule.main import MIGRATIONS, NAME, create_app
from services.schedule.projections import MODELS, STORE
from services.schedule.retiming import retime
from services.schedule.settings import ScheduleSettings
from shared.cli import Program, run

PROGRAM = Program(
    name=NAME,
    settings=ScheduleSettings,
    create_app=create_app,
    migrations=MIGRATIONS,
    store=STORE,
    rebuild=MODELS.rebuild,
    drift=MODELS.drift,
    extra={"retime": ("derive instants anew with this program's time zone database", retime)},
)

if __name__ == "__main__":
    sys.exit(run(PROGRAM))

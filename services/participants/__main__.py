"""`python -m services.participants serve | migrate | rebuild | verify | redrive | restored`."""

import sys

from services.participants.main import MIGRATIONS, NAME, create_app
from services.participants.projections import MODELS, STORE
from services.participants.settings import ParticipantsSettings
from shared.cli import Program, run

PROGRAM = Program(
    name=NAME,
    settings=ParticipantsSettings,
    create_app=create_app,
    migrations=MIGRATIONS,
    store=STORE,
    rebuild=MODELS.rebuild,
    drift=MODELS.drift,
)

if __name__ == "__main__":
    sys.exit(run(PROGRAM))

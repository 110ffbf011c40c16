"""The participants service's wiring: settings in, an app out."""

from fastapi import FastAPI

from services.participants import api, projections, published, queries, reactions
from services.participants.settings import ParticipantsSettings
from shared.bus import Bus
from shared.wiring import footing_of, make_app, make_service

NAME = "participants"
MIGRATIONS = "services/participants/migrations"


def create_app(settings: ParticipantsSettings, *, bus: Bus | None = None) -> FastAPI:
    """The app; its lifespan runs the plumbing."""
    service = make_service(
        footing_of(settings, NAME, bus=bus),
        name=NAME,
        migrations=MIGRATIONS,
        store=projections.STORE,
        project=projections.MODELS.project,
        openly=published.is_open,
        body_of=published.body,
        apply={"schedule": reactions.APPLY},
        anew={"schedule": reactions.anew},
        bases={"schedule": settings.schedule_url},
    )
    return make_app(
        service, settings, api.router, queries.router, description="Delegations and the people on their rosters."
    )

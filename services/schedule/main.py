"""The schedule service's wiring: settings in, an app out."""

from fastapi import FastAPI

from services.schedule import api, projections, published, queries, reactions
from services.schedule.settings import ScheduleSettings
from services.schedule.wall_time import pin_time_zones
from shared.bus import Bus
from shared.wiring import footing_of, make_app, make_service

NAME = "schedule"
MIGRATIONS = "services/schedule/migrations"


def create_app(settings: ScheduleSettings, *, bus: Bus | None = None) -> FastAPI:
    """The app; its lifespan runs the plumbing."""
    pin_time_zones()
    service = make_service(
        footing_of(settings, NAME, bus=bus),
        name=NAME,
        migrations=MIGRATIONS,
        store=projections.STORE,
        project=projections.MODELS.project,
        openly=published.is_open,
        body_of=published.body,
        apply={"participants": reactions.APPLY},
        anew={"participants": reactions.anew},
        bases={"participants": settings.participants_url},
    )
    return make_app(
        service, settings, api.router, queries.router, description="Trips and their stops, movements and meetings."
    )

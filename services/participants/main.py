"""The participants service's wiring: settings in, an app out."""

from collections.abc import Mapping

from fastapi import FastAPI

from services.participants import api, projections, published, queries, reactions
from services.participants.settings import ParticipantsSettings
from shared.bus import Bus
from shared.bus_choice import make_bus, topic_like
from shared.database import make_engine
from shared.http import install
from shared.service import Service, lifespan_of, make_service
from shared.tokens import TokenFile

NAME = "participants"
MIGRATIONS = "services/participants/migrations"


def make(settings: ParticipantsSettings, *, bus: Bus | None = None) -> Service:
    """The service's plumbing, not running yet."""
    return make_service(
        name=NAME,
        engine=make_engine(settings.database_url.get_secret_value(), name=NAME),
        store=projections.STORE,
        bus=bus or make_bus(settings, NAME),
        project=projections.MODELS.project,
        openly=published.is_open,
        body_of=published.body,
        apply={"schedule": reactions.APPLY},
        bases=_bases(settings),
        token=settings.service_token.get_secret_value(),
        topic=topic_like(settings),
        migrations=MIGRATIONS,
    )


def create_app(settings: ParticipantsSettings, *, bus: Bus | None = None) -> FastAPI:
    """The app; its lifespan runs the plumbing."""
    service = make(settings, bus=bus)
    app = FastAPI(
        title="Attaché: participants",
        description="Delegations and the people on their rosters.",
        openapi_url=None,
        lifespan=lifespan_of(service),
    )
    app.state.tokens = TokenFile(settings.tokens_file)
    app.state.service = service
    app.state.desk = service.desk
    install(app, service=NAME)
    app.include_router(api.router)
    app.include_router(queries.router)
    app.include_router(service.router())
    return app


def _bases(settings: ParticipantsSettings) -> Mapping[str, str]:
    return {"schedule": settings.schedule_url}

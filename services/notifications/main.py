"""The notifications service's wiring: settings in, an app out."""

import contextlib
import zoneinfo
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.notifications import api, projections, published, reactions
from services.notifications.feeds import FeedDoor, Fetches
from services.notifications.renderer import Renderer
from services.notifications.settings import NotificationsSettings
from services.notifications.shelf import Shelf
from services.notifications.upkeep import forget_old_bodies, write_fetches
from shared import contracts
from shared.bus import Bus
from shared.bus_choice import make_bus
from shared.database import make_engine
from shared.http import install
from shared.service import Service, make_service
from shared.tokens import TokenFile

NAME = "notifications"
MIGRATIONS = "services/notifications/migrations"


class Instance:
    """What is fixed at the first start and the same on every replica for ever."""

    domain = ""

    async def settle(self, engine: AsyncEngine, domain: str) -> None:
        """Keep the domain that the first start named, whatever this one names."""
        async with engine.begin() as connection:
            await connection.execute(
                text("INSERT INTO instance VALUES (true, :domain) ON CONFLICT DO NOTHING"), {"domain": domain}
            )
            self.domain = await connection.scalar(text("SELECT domain FROM instance")) or domain


def create_app(settings: NotificationsSettings, *, bus: Bus | None = None) -> FastAPI:
    """The app; its lifespan fills the shelf and runs the plumbing. Feeds are answered before the framework is asked."""
    zoneinfo.reset_tzpath(())
    engine = make_engine(settings.database_url.get_secret_value(), name=NAME)
    instance, shelf, fetches = Instance(), Shelf(engine), Fetches()
    renderer = Renderer(engine=engine, domain=lambda: instance.domain, rendered=shelf.wake)
    service = _service(settings, engine, bus, shelf, renderer)
    service.waiting = renderer.waiting
    service.extra |= {
        "renderer": renderer.run,
        "shelf": shelf.run,
        "fetches": lambda: write_fetches(engine, fetches),
        "bodies": lambda: forget_old_bodies(engine, settings.bodies_kept_days),
    }

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await instance.settle(engine, settings.domain)
        await shelf.fill()
        async with service.running():
            yield

    app = FastAPI(
        title="Attaché: notifications",
        description="Feed links, and the feeds behind them.",
        openapi_url=None,
        lifespan=lifespan,
    )
    app.state.tokens = TokenFile(settings.tokens_file)
    app.state.service = service
    app.state.desk = service.desk
    app.state.shelf = shelf
    app.state.public_url = settings.public_url
    install(app, service=NAME)
    app.include_router(api.router)
    app.include_router(service.router())
    app.add_middleware(FeedDoor, shelf=shelf, fetches=fetches)  # added last, so it stands outermost
    return app


def _service(
    settings: NotificationsSettings, engine: AsyncEngine, bus: Bus | None, shelf: Shelf, renderer: Renderer
) -> Service:
    service = make_service(
        name=NAME,
        engine=engine,
        store=projections.STORE,
        bus=bus or make_bus(settings, NAME),
        project=projections.project,
        openly=published.is_open,
        body_of=published.body,
        apply={
            "schedule": reactions.apply_of(contracts.SCHEDULE),
            "participants": reactions.apply_of(contracts.PARTICIPANTS),
        },
        bases={"schedule": settings.schedule_url, "participants": settings.participants_url},
        token=settings.service_token.get_secret_value(),
        client=httpx.AsyncClient(),
        migrations=MIGRATIONS,
        applied=renderer.wake,
        committed=[shelf.wake, renderer.wake],
    )
    return service

"""The notifications service's wiring: settings in, an app out."""

import contextlib
import zoneinfo
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.notifications import api, projections, published, reactions
from services.notifications.feeds import FeedDoor, Fetches
from services.notifications.renderer import Renderer
from services.notifications.rendering import renderer_id
from services.notifications.settings import NotificationsSettings
from services.notifications.shelf import Shelf
from services.notifications.upkeep import forget_old_bodies, write_down, write_fetches
from shared import contracts
from shared.bus import Bus
from shared.bus_choice import make_bus, topic_like
from shared.database import make_engine
from shared.http import install
from shared.service import Service, make_service
from shared.tokens import TokenFile

NAME = "notifications"
MIGRATIONS = "services/notifications/migrations"
FEEDS_CONNECTIONS = 4
NO_TELEMETRY: TelemetryConfig = {"tracing": False, "metrics": False, "logs": False, "operation_spans": False}
"""The framework's spans would carry each request's path, and with it the secrets of feeds."""


class Instance:
    """What is fixed at the first start and the same on every replica for ever."""

    domain = ""

    async def settle(self, engine: AsyncEngine, domain: str, renderer: str) -> None:
        """Keep the domain that the first start named, whatever this one names.

        Where another program or other tz data rendered last, everything is rendered anew: the state alone is to tell
        the bytes, and not which program was there when it last changed.
        """
        given = {"domain": domain, "renderer": renderer}
        async with engine.begin() as connection:
            await connection.execute(
                text("INSERT INTO instance VALUES (true, :domain, :renderer) ON CONFLICT DO NOTHING"), given
            )
            moved = await connection.execute(
                text("UPDATE instance SET renderer = :renderer WHERE renderer <> :renderer"), given
            )
            if moved.rowcount:
                await connection.execute(text("INSERT INTO marks (trip) SELECT DISTINCT trip FROM audiences"))
            self.domain = await connection.scalar(text("SELECT domain FROM instance")) or domain


def create_app(
    settings: NotificationsSettings,
    *,
    bus: Bus | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> FastAPI:
    """The app; its lifespan fills the shelf and runs the plumbing. Feeds are answered before the framework is asked.

    `clock` tells which links are live when a feed is asked for.
    """
    zoneinfo.reset_tzpath(())
    url = settings.database_url.get_secret_value()
    engine = make_engine(url, name=NAME)
    # connections of their own: a revocation holds within a second also while commands wait for theirs
    feeds_engine = make_engine(url, name=f"{NAME}-feeds", pool_size=FEEDS_CONNECTIONS)
    instance, shelf, fetches = Instance(), Shelf(feeds_engine, clock=clock), Fetches()
    renderer = Renderer(engine=feeds_engine, domain=lambda: instance.domain, rendered=shelf.wake)
    service = _service(settings, engine, bus, shelf, renderer)
    service.waiting = renderer.waiting
    service.extra |= {
        "renderer": renderer.run,
        "shelf": shelf.run,
        "fetches": lambda: write_fetches(feeds_engine, fetches),
        "bodies": lambda: forget_old_bodies(feeds_engine, settings.bodies_kept_days),
    }

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(feeds_engine.dispose)
            await instance.settle(engine, settings.domain, renderer_id())
            await shelf.fill()
            stack.push_async_callback(write_down, feeds_engine, fetches)
            await stack.enter_async_context(service.running())
            yield

    app = FastAPI(
        title="Attaché: notifications",
        description="Feed links, and the feeds behind them.",
        openapi_url=None,
        lifespan=lifespan,
        telemetry=NO_TELEMETRY,
    )
    app.state.tokens = TokenFile(settings.tokens_file)
    app.state.service = service
    app.state.desk = service.desk
    app.state.shelf = shelf
    app.state.public_url = settings.public_url
    install(app, service=NAME)
    app.include_router(api.router)
    app.include_router(api.documented)
    app.include_router(service.router())
    app.add_middleware(FeedDoor, shelf=shelf, fetches=fetches, clock=clock)  # added last, so it stands outermost
    return app


def _service(
    settings: NotificationsSettings,
    engine: AsyncEngine,
    bus: Bus | None,
    shelf: Shelf,
    renderer: Renderer,
) -> Service:
    return make_service(
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
        topic=topic_like(settings),
        migrations=MIGRATIONS,
        applied=renderer.wake,
        committed=[shelf.wake, renderer.wake],
    )

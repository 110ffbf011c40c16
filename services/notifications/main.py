"""The notifications service's wiring: settings in, an app out."""

import contextlib
import zoneinfo
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from services.notifications import api, projections, published, reactions
from services.notifications.feeds import FeedDoor, Fetches
from services.notifications.metrics import FeedAnswers
from services.notifications.renderer import Renderer
from services.notifications.rendering import renderer_id
from services.notifications.settings import NotificationsSettings
from services.notifications.shelf import Shelf
from services.notifications.upkeep import (
    RENDER_ALL,
    follow_epoch,
    forget_old_bodies,
    write_down,
    write_fetches,
)
from shared import contracts
from shared.bus import Bus
from shared.database import make_engine
from shared.service import Service
from shared.wiring import Footing, footing_of, make_app, make_service

NAME = "notifications"
MIGRATIONS = "services/notifications/migrations"
FEEDS_CONNECTIONS = 4


class Instance:
    """What is fixed at the first start and the same on every replica for ever."""

    domain = ""

    async def settle(self, engine: AsyncEngine, domain: str, renderer: str) -> None:
        """Keep the domain that the first start named, whatever this one names.

        Where another program or other tz data rendered last, or this database was at another epoch, everything is
        rendered anew: the state alone is to tell the bytes, and not what was there when it last changed.
        """
        async with engine.begin() as connection:
            epoch = await connection.scalar(text("SELECT epoch FROM relay_cursor"))
            given = {"domain": domain, "renderer": f"{renderer}/{epoch}"}
            await connection.execute(
                text("INSERT INTO instance VALUES (true, :domain, :renderer) ON CONFLICT DO NOTHING"), given
            )
            moved = await connection.execute(
                text("UPDATE instance SET renderer = :renderer WHERE renderer <> :renderer"), given
            )
            if moved.rowcount:
                await connection.execute(RENDER_ALL)
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
    footing = footing_of(settings, NAME, bus=bus)
    # connections of their own: a revocation holds within a second also while commands wait for theirs
    url = settings.database_url.get_secret_value()
    feeds_engine = make_engine(url, name=f"{NAME}-feeds", pool_size=FEEDS_CONNECTIONS)
    instance, shelf, fetches = Instance(), Shelf(feeds_engine, clock=clock), Fetches()
    answered, serves = FeedAnswers(), "api" in settings.roles
    renderer = Renderer(
        engine=feeds_engine, domain=lambda: instance.domain, rendered=shelf.wake, tracing=footing.tracing
    )
    service = _service(settings, footing, shelf, renderer)
    service.readiness.waiting = renderer.waiting
    service.readiness.pools["feeds"] = feeds_engine
    service.metrics += [renderer.progress.metrics, *([answered.metrics, shelf.metrics] if serves else [])]
    service.extra |= {
        "renderer": renderer.run,
        "bodies": lambda: forget_old_bodies(feeds_engine, settings.bodies_kept_days),
        "stamps": lambda: follow_epoch(feeds_engine),
    }
    service.serving |= {"shelf": shelf.run, "fetches": lambda: write_fetches(feeds_engine, fetches)}

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(feeds_engine.dispose)
            await instance.settle(footing.engine, settings.domain, renderer_id())
            if serves:
                await shelf.fill()
            stack.push_async_callback(write_down, feeds_engine, fetches)
            await stack.enter_async_context(service.running())
            yield

    app = make_app(
        service,
        settings,
        api.router,
        api.documented,
        description="Feed links, and the feeds behind them.",
        lifespan=lifespan,
    )
    app.state.shelf = shelf
    app.state.public_url = settings.public_url
    if serves:
        # added last, so it stands outermost
        app.add_middleware(
            FeedDoor, shelf=shelf, fetches=fetches, answered=answered, clock=clock, tracing=footing.tracing
        )
    return app


def _service(settings: NotificationsSettings, footing: Footing, shelf: Shelf, renderer: Renderer) -> Service:
    return make_service(
        footing,
        name=NAME,
        migrations=MIGRATIONS,
        store=projections.STORE,
        project=projections.project,
        openly=published.is_open,
        body_of=published.body,
        apply={
            "schedule": reactions.apply_of(contracts.SCHEDULE),
            "participants": reactions.apply_of(contracts.PARTICIPANTS),
        },
        anew={
            "schedule": reactions.anew_of(reactions.SCHEDULE),
            "participants": reactions.anew_of(reactions.PARTICIPANTS),
        },
        bases={"schedule": settings.schedule_url, "participants": settings.participants_url},
        applied=renderer.wake,
        committed=[shelf.wake, renderer.wake],
    )

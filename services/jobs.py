"""What is done once before the three services start, and may be done again at any time: `migrate` and `topics`.

Each reads the services' own settings, prefixed (`SCHEDULE_DATABASE_URL`). `migrate` is the first that runs, so it looks
at every secret, whoever uses it: what is empty, a sample or does not fit is said before anything is changed.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

import structlog

from services.notifications.settings import NotificationsSettings
from services.participants.settings import ParticipantsSettings
from services.schedule.settings import ScheduleSettings
from services.surroundings import CannotGoOn, line_of
from shared.bus import Bus, BusAway, Topic, TopicDrift
from shared.bus_choice import make_bus, topic_like
from shared.cli import TOPICS_CURE
from shared.database import WrongDatabase, is_away, why_unusable
from shared.logs import set_up
from shared.migrations import BUS_MIGRATIONS, upgrade
from shared.settings import Settings, WrongSetting, load
from shared.tokens import WrongToken, callers_of
from shared.wiring import topics_of

SETTINGS: Final[Mapping[str, type[Settings]]] = {
    "schedule": ScheduleSettings,
    "participants": ParticipantsSettings,
    "notifications": NotificationsSettings,
}
PATIENCE_SECONDS = 60.0
PAUSE_SECONDS = 1.0
NOT_ASKED: Final = {"database_url": "postgresql+asyncpg://not@asked/for", "service_token": "not asked for"}
"""Stands where a job is not given a secret that it does not need."""

log = structlog.get_logger()


def migrate() -> None:
    """Bring every database to this program's schema. Raises CannotGoOn."""
    settings = _settings("migrate")
    try:
        for name, each in settings.items():
            _check_token(name, each)
    except WrongToken as error:
        raise CannotGoOn(str(error)) from error
    asyncio.run(_migrate(settings))


def topics() -> None:
    """Make the topics that lack; raises CannotGoOn where one differs, or where no broker answers for a minute."""
    asyncio.run(_topics(_settings("topics", **NOT_ASKED)))


def _settings(job: str, **given: str) -> Mapping[str, Settings]:
    try:
        settings = {name: load(each, **given) for name, each in SETTINGS.items()}
    except WrongSetting as error:
        raise CannotGoOn(str(error)) from error
    set_up(job, log_format=settings["schedule"].log_format, level=settings["schedule"].log_level)
    return settings


def _check_token(name: str, settings: Settings) -> None:
    caller = callers_of(settings.tokens_file).caller(settings.service_token.get_secret_value())
    if caller is None or not caller.may("service"):
        raise WrongToken(f"{settings.tokens_file}: the token of the service {name} is not there with the scope service")


async def _migrate(settings: Mapping[str, Settings]) -> None:
    for name, each in settings.items():
        await _upgrade(name, f"services/{name}/migrations", each.database_url.get_secret_value())
        if each.bus == "local" and each.bus_url is not None:
            await _upgrade("bus", BUS_MIGRATIONS, each.bus_url.get_secret_value())


async def _upgrade(name: str, scripts: str, url: str) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            await upgrade(scripts, url)
            log.info("database.migrated", database=name)
            return
        except Exception as error:
            if is_away(error) and time.monotonic() < until:
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            why = str(error) if isinstance(error, WrongDatabase) else why_unusable(error, url) or line_of(error)
            raise CannotGoOn(f"the database {name} cannot be brought to this version: {why}") from error


async def _topics(settings: Mapping[str, Settings]) -> None:
    wanted = [topic for name, each in settings.items() for topic in topics_of(name, topic_like(each))]
    bus = make_bus(settings["schedule"], "topics")
    try:
        await _ensure(bus, wanted, *_where(settings["schedule"]))
    finally:
        await bus.close()
    log.info("topics.ensured", topics=len(wanted))


def _where(settings: Settings) -> tuple[str, str]:
    """Where the bus is, and which setting says so; a database's address is not told, for its password."""
    return (settings.kafka_bootstrap or "", "KAFKA_BOOTSTRAP") if settings.bus == "kafka" else ("BUS_URL", "BUS_URL")


async def _ensure(bus: Bus, wanted: list[Topic], where: str, setting: str) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            await bus.ensure_topics(wanted)
            return
        except TopicDrift as drift:
            raise CannotGoOn(f"the topics on the bus are not as they have to be: {drift} ({TOPICS_CURE})") from drift
        except BusAway as error:
            if time.monotonic() >= until:
                said = f"nobody at {where} made the topics within {PATIENCE_SECONDS:.0f} s ({str(error).strip(' :')})"
                raise CannotGoOn(f"{said}: see whether it is up, and {setting}") from error
            await asyncio.sleep(PAUSE_SECONDS)

"""Which of the two buses the settings ask for, and what they say of topics."""

from shared.bus import Bus, Topic
from shared.bus_kafka import KafkaBus
from shared.bus_local import LocalBus
from shared.database import make_engine
from shared.settings import Settings


class OwnLocalBus(LocalBus):
    """A local bus with an engine of its own, which ends with it."""

    async def close(self) -> None:
        await super().close()
        await self._engine.dispose()


def make_bus(settings: Settings, name: str) -> Bus:
    """The bus of one process; `name` tells its connections apart."""
    if settings.bus == "kafka":
        assert settings.kafka_bootstrap is not None
        return KafkaBus(settings.kafka_bootstrap, client_id=f"attache-{name}", security=settings.kafka_security)
    assert settings.bus_url is not None
    return OwnLocalBus(make_engine(settings.bus_url.get_secret_value(), name=f"{name}-bus", pool_size=5))


def topic_like(settings: Settings) -> Topic:
    """What each of our topics has to be, but for its name."""
    return Topic(
        name="any",
        partitions=settings.topic_partitions,
        replication=settings.topic_replication,
        min_isr=settings.topic_min_isr,
        retention_ms=settings.topic_retention_ms,
        retention_bytes=settings.topic_retention_bytes,
    )

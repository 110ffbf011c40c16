"""Which of the two buses the settings ask for."""

from shared.bus import Bus
from shared.bus_kafka import KafkaBus
from shared.bus_local import LocalBus
from shared.database import make_engine
from shared.settings import Settings


def make_bus(settings: Settings, name: str) -> Bus:
    """The bus of one process; `name` tells its connections apart."""
    if settings.bus == "kafka":
        assert settings.kafka_bootstrap is not None
        return KafkaBus(settings.kafka_bootstrap, client_id=f"attache-{name}")
    assert settings.bus_url is not None
    return LocalBus(make_engine(settings.bus_url.get_secret_value(), name=f"{name}-bus", pool_size=5))

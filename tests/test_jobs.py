"""The jobs before the services: what stops them is one line that names the setting to look at, and no password."""

import pytest

from services import jobs
from services.surroundings import CannotGoOn
from shared.settings import load

NOWHERE = "postgresql+asyncpg://bus:Kanarienvogel@127.0.0.1:9/bus"


@pytest.mark.parametrize(
    ("settings", "where", "setting"),
    [
        ({"BUS": "local", "BUS_URL": NOWHERE, "KAFKA_BOOTSTRAP": "kafka:9092"}, "BUS_URL", "BUS_URL"),
        ({"BUS": "kafka", "KAFKA_BOOTSTRAP": "127.0.0.1:9"}, "127.0.0.1:9", "KAFKA_BOOTSTRAP"),
    ],
)
async def test_topics_that_nobody_makes_are_said_with_the_setting_of_that_bus(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], where: str, setting: str
) -> None:
    monkeypatch.setattr(jobs, "PATIENCE_SECONDS", 0.0)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    told = {name: load(each, **jobs.NOT_ASKED) for name, each in jobs.SETTINGS.items()}
    with pytest.raises(CannotGoOn) as caught:
        await jobs._topics(told)
    said = str(caught.value)
    assert said.startswith(f"nobody at {where} made the topics within 0 s (")
    assert said.endswith(f"): see whether it is up, and {setting}")
    assert "Kanarienvogel" not in said
    assert "\n" not in said

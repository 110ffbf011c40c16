"""What the schedule service is told from outside."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings


class ScheduleSettings(Settings):
    """Prefix `SCHEDULE_`."""

    model_config = SettingsConfigDict(env_prefix="SCHEDULE_")

    port: int = Field(8081, ge=0, le=65535, description="The port on which the schedule service listens.")

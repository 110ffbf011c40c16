"""What the participants service is told from outside."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings


class ParticipantsSettings(Settings):
    """Prefix `PARTICIPANTS_`."""

    model_config = SettingsConfigDict(env_prefix="PARTICIPANTS_")

    port: int = Field(8082, ge=0, le=65535, description="The port on which the participants service listens.")

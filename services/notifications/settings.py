"""What the notifications service is told from outside."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings


class NotificationsSettings(Settings):
    """Prefix `NOTIFICATIONS_`."""

    model_config = SettingsConfigDict(env_prefix="NOTIFICATIONS_")

    port: int = Field(8083, ge=0, le=65535, description="The port on which the notifications service listens.")
    domain: str = Field(
        "attache.local",
        pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$",
        description="Stands behind the @ of every UID; fixed at the first start, whatever is said later.",
    )
    bodies_kept_days: int = Field(
        400, ge=1, description="For how many days a feed's past bodies are kept; the newest is kept in any case."
    )

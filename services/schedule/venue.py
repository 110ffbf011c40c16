"""Where a meeting is held, and what of it the press may see."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from services.schedule.wall_time import check_wall
from shared.deciding import required_text
from shared.errors import Invalid

PressTag = Literal["closed", "spray-at-top", "pooled-spray", "open", "determined-by-host"]


@dataclass(frozen=True, kw_only=True)
class Venue:
    """`geo` is latitude and longitude in degrees (WGS 84), `conference` a URI."""

    name: str
    address: str | None
    geo: tuple[float, float] | None
    conference: str | None


@dataclass(frozen=True, kw_only=True)
class Press:
    """When cameras are set up (`preset`) and let in for the last time (`final`): wall times in the meeting's zone."""

    tag: PressTag
    preset: datetime | None
    final: datetime | None


def check_venue(venue: Venue) -> None:
    """Invalid for a venue without a name, or a place that is not on the globe."""
    required_text("venue", venue.name)
    if venue.geo is not None:
        latitude, longitude = venue.geo
        if not (-90 <= latitude <= 90 and -180 <= longitude <= 180):
            raise Invalid.field("venue", "geo is a latitude and a longitude in degrees")


def check_press(press: Press) -> None:
    """Invalid for access times that are no wall times, or a final access before the pre-set."""
    for time in (press.preset, press.final):
        if time is not None:
            check_wall("press", time)
    if press.preset is not None and press.final is not None and press.final < press.preset:
        raise Invalid.field("press", "the final access is not before the pre-set")

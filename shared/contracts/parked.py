"""What is told of a message that a consumer could not take."""

from typing import ClassVar

from pydantic import Field

from shared.contracts.values import Value


class MessageParked(Value):
    """A consumer could not take a message and keeps it, with all that follow under its key, until it is redriven."""

    VERSION: ClassVar[int] = 1

    topic: str
    partition: int = Field(description="where it stood; -1 where it came from its producer's message log, not the bus")
    offset: int = Field(description="where it stood; -1 as for the partition")
    id: str | None = Field(description="the id of the message, where it could be read")
    slug: str = Field(description="what is wrong with it")

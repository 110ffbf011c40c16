"""What is told of the way of a request through the services: nothing but its trace context, or OpenTelemetry's spans.

`Tracing` records nothing and loads nothing; `shared.tracing_otlp` exports spans, where an endpoint is set. No span ever
holds a path, a query, a value of a command or the text of an error: feeds' addresses are secrets, and plans are too.
"""

import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from shared.bus import Record
from shared.messages import Message
from shared.settings import Settings


class Span:
    """Something that goes on, from `with` to its end. `traceparent` is what that which follows from it carries on."""

    __slots__ = ("traceparent",)

    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It has ended."""

    def answered(self, route: str | None, status: int) -> None:
        """What became of a request. `route` is the template of a path, never a path; None where there is none."""


class Tracing:
    """The traces of one service, not recorded: everything carries on the `traceparent` that it came with."""

    on = False

    def request(self, method: str, traceparent: str | None) -> Span:  # noqa: ARG002  (as in all that follow)
        """A request that is answered; None begins a trace."""
        return Span(traceparent)

    def command(self, name: str, trip: str, traceparent: str) -> Span:  # noqa: ARG002
        """A command from its first attempt to its commit."""
        return Span(traceparent)

    def published(self, records: Sequence[Record], began: int) -> None:
        """Records were acknowledged; `began` (nanoseconds since 1970) is when they were sent."""

    def taking(self, message: Message, group: str) -> Span:  # noqa: ARG002
        """A message becomes rows."""
        return Span(message.traceparent)

    def deriving(self, name: str, trip: str, traceparents: Iterable[str | None]) -> Span:  # noqa: ARG002
        """Something is made of all that was changed since the last time."""
        return Span(None)

    async def close(self) -> None:
        """Send what is not sent yet; it takes no longer than a second or two, whatever is away."""


OFF = Tracing()


def make_tracing(settings: Settings, service: str) -> Tracing:
    """The traces of a service as the settings want them."""
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    endpoint = settings.otel_exporter_otlp_traces_endpoint or settings.otel_exporter_otlp_endpoint
    if endpoint is None or disabled or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return OFF
    from shared.tracing_otlp import otlp_tracing  # the SDK is loaded where it is asked for, and nowhere else

    return otlp_tracing(settings, service)

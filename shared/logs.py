"""Logs: one JSON object a line on stderr, from structlog and from the standard library alike, and no secret in any.

`set_up` is called once, first thing in a process. A line has `timestamp` (ISO, UTC), `level`, `event` (dotted, past
tense), `logger`, `service` and whatever was bound (`correlation_id`, ...). Every text in it goes through `mask`.
"""

import logging
import re
import sys
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["auto", "json", "console"]

STARS: Final = "***"
_SECRETS: Final = re.compile(
    r"""(?P<feed> feeds (?:/|%2f)+ ) [^\s"'<>?\#]+       # a feed's address: everything after the folder
      | (?<![^\s"'<>/=]) [^\s"'<>/?\#]+ \.ics \b         # the same under a mistaken folder
      | (?P<bearer> \b bearer \s+ ) [^\s"',]+             # an Authorization header
      | \b attache_ [A-Za-z0-9_-]{16,}                    # a token (shared.tokens)
      | (?P<user> :// [^\s/:@"']* : ) [^\s/"']+ (?=@)     # the password in an address
      | (?P<input> \b input_value= ) .*? (?= ,\ input_type= | $ )    # what pydantic was given
      | (?P<row> \b DETAIL: \s+ ) [^\n\\]+                # PostgreSQL's own values: Key (...)=(...)
      | (?P<parameters> \[ parameters: \s ) .* (?= \] )   # SQLAlchemy's
    """,
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_QUICK: Final = re.compile(r"feeds|\.ics|bearer|attache_|://|input_value|detail:|parameters:", re.IGNORECASE)
_KEPT: Final = ("feed", "bearer", "user", "input", "row", "parameters")


def set_up(service: str, *, log_format: Format = "auto", level: str = "info", stream: TextIO | None = None) -> None:
    """Sends all logs of the process to `stream` (stderr): JSON, or for people where that is a terminal.

    `service` stands in every line for which nothing else was bound as `service`. May be called again: the last wins.
    """
    out = sys.stderr if stream is None else stream
    handler = _Lines(out)
    handler.setFormatter(_formatter(service, human=log_format == "console" or (log_format == "auto" and out.isatty())))
    handler.addFilter(_is_news)
    handler.addFilter(RateLimit("aiokafka"))  # 90 errors a second while a broker is away
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Lines)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they tell of each request that succeeds
    logging.getLogger("uvicorn.access").disabled = True  # shared.asgi.RequestLog writes that line
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def mask(text: str) -> str:
    """The text with stars for what must not be read in a log: `/feeds/***.ics`, tokens, passwords, personal values."""
    return _SECRETS.sub(_starred, text) if _QUICK.search(text) else text


def mask_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """structlog processor: `mask` for every text in a line, however deep, keys too."""
    return {mask(str(key)): _masked(value) for key, value in event.items()}


class RateLimit(logging.Filter):
    """Lets one record pass per logger, level and message template in `seconds`; the next one says how many did not.

    For loggers whose name begins with `prefix`. Put it on a handler: a filter on a logger does not see what comes from
    the loggers below it.
    """

    def __init__(self, prefix: str = "", *, seconds: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(prefix)
        self._seconds = seconds
        self._clock = clock
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not super().filter(record):
            return True  # none of ours
        key = (record.name, record.levelno, str(record.msg)[:200])
        now = self._clock()
        since, held_back = self._seen.get(key, (float("-inf"), 0))
        if now - since < self._seconds:
            self._seen[key] = since, held_back + 1
            return False
        if len(self._seen) > 1000:  # messages that are no templates
            self._seen.clear()
        self._seen[key] = now, 0
        if held_back:
            record.held_back = held_back
        return True


class _Lines(logging.StreamHandler[TextIO]):
    """The handler of `set_up`, to be known again by a second call."""


def _is_news(record: logging.LogRecord) -> bool:
    """Alembic says twice what kind of database it reads whenever somebody asks for readiness; what it does is kept."""
    return record.name != "alembic.runtime.migration" or str(record.msg).startswith("Running")


def _shared() -> list[Processor]:
    """What is added to a line of either origin."""
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]


def _formatter(service: str, *, human: bool) -> logging.Formatter:
    renderer: Processor = structlog.processors.JSONRenderer(ensure_ascii=False)
    if human:
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=True, exception_formatter=plain)

    def add_service(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event.setdefault("service", service)
        return event

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ExtraAdder(allow=["held_back"]),
            *_shared(),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            add_service,
            structlog.processors.format_exc_info,  # before the masking: messages of exceptions hold values
            mask_secrets,
            renderer,
        ],
    )


def _starred(found: re.Match[str]) -> str:
    kept = next((found[name] for name in _KEPT if found[name] is not None), "")
    return kept + STARS + (".ics" if found["feed"] or found[0].lower().endswith(".ics") else "")


def _masked(value: Any) -> Any:
    match value:
        case str():
            return mask(value)
        case None | bool() | int() | float():
            return value
        case Mapping() | MutableMapping():
            return {mask(str(key)): _masked(inner) for key, inner in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_masked(inner) for inner in value]
        case _:
            return mask(str(value))

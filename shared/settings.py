"""Settings: environment variables, read once at the start, and one readable line where they are wrong.

A service's class derives from `Settings` and gives its prefix:

    class ScheduleSettings(Settings):
        model_config = SettingsConfigDict(env_prefix="SCHEDULE_")
        port: int = Field(8081, description="...", ge=0, le=65535)

Each setting is looked for with the prefix (`SCHEDULE_DATABASE_URL`); the common ones, those of `Settings` itself, then
without (`TOKENS_FILE`). A secret may be in a file instead, `..._FILE` then names it. A variable with the prefix that
is no setting is an error: it is a misspelt one, and would be ignored in silence otherwise. An empty one is not set.
"""

import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import Field, HttpUrl, SecretStr, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from shared.kafka_security import KafkaSecurity, Mechanism, Protocol

S = TypeVar("S", bound="Settings")
Role = Literal["api", "relay", "consumer"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
SAMPLES: Final = frozenset({"change-me", "changeme", "example", "...", "password", "sample", "secret", "todo", "xxx"})
"""What stands in examples, and in the files of those who copied one and meant to put a real secret there."""
A_SAMPLE: Final = "holds a sample and no secret: put a real one there (make secrets makes them)"
_BROKER: Final = re.compile(r"\s*(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}\s*")
ESCAPED: Final = "and in the password %40 for @, %2F for /, %3A for :"
_HTTP_URL: TypeAdapter[HttpUrl] = TypeAdapter(HttpUrl)


class WrongSetting(Exception):
    """The settings do not fit. The text is one line that names each variable and what is wrong, never a value."""


class Settings(BaseSettings):
    """What all services are told. A derived class adds what one service is told, and its prefix."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="", hide_input_in_errors=True)

    database_url: SecretStr = Field(
        description="The service's own PostgreSQL, `postgresql+asyncpg://user:...@host/name`."
    )
    bus: Literal["local", "kafka"] = Field(
        "local", description="Where messages go: a database of this machine, or Kafka."
    )
    bus_url: SecretStr | None = Field(
        None, description="With `BUS=local`: the bus's database, written as `DATABASE_URL`."
    )
    kafka_bootstrap: str | None = Field(None, description="With `BUS=kafka`: `host:port` of its brokers, by commas.")
    kafka_security_protocol: Protocol = Field(
        "PLAINTEXT",
        description="How the brokers are spoken to; by `SSL` their certificate must name the host.",
    )
    kafka_ca_file: Path | None = Field(
        None, description="Who signed the brokers' certificate (PEM), if not a public CA."
    )
    kafka_cert_file: Path | None = Field(None, description="Our own certificate (PEM), where the brokers ask for one.")
    kafka_key_file: Path | None = Field(None, description="Its key, if that is not in the same file.")
    kafka_sasl_mechanism: Mechanism = Field("SCRAM-SHA-512", description="With `SASL_` in the protocol: by which way.")
    kafka_sasl_username: str | None = Field(None, description="The name that is shown to the brokers.")
    kafka_sasl_password: SecretStr | None = Field(None, description="Its password.")
    topic_partitions: int = Field(
        8, ge=1, le=1000, description="Of each topic of ours; a broker whose topics differ is refused."
    )
    topic_replication: int = Field(1, ge=1, le=7, description="Copies of each partition, for topics that are made.")
    topic_min_isr: int = Field(
        1, ge=1, le=7, description="How many copies a message must have before it counts as written."
    )
    topic_retention_ms: int = Field(-1, ge=-1, description="How long our topics keep messages; -1: for ever.")
    topic_retention_bytes: int = Field(-1, ge=-1, description="How much a partition keeps; -1: all.")
    service_token: SecretStr = Field(
        description="This service's own token (scope `service`) for the others' message logs."
    )
    tokens_file: Path = Field(
        Path("tokens"), description="Who may call: the file that `python -m services token` writes."
    )
    oidc_issuer: str | None = Field(
        None, description="An OpenID Connect issuer (https), whose access tokens are taken besides the token file's."
    )
    oidc_audience: str | None = Field(None, description="With `OIDC_ISSUER`: the `aud` that its tokens have for us.")
    oidc_keys_url: str | None = Field(
        None, description="Where its keys are (JWKS), if not where its discovery document says."
    )
    oidc_scopes_claim: str = Field("scope", description="The claim whose words are our scopes (`planner`, ...).")
    oidc_name_claim: str = Field("sub", description="The claim that names the actor; it must never change hands.")
    public_url: str = Field("http://127.0.0.1:8080", description="The address that people and calendars come by.")
    host: str = Field("127.0.0.1", description="The address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="The port to listen on; 0 takes a free one.")
    schedule_url: str = Field("http://127.0.0.1:8081", description="Where the others find schedule's message log.")
    participants_url: str = Field(
        "http://127.0.0.1:8082", description="Where the others find participants' message log."
    )
    notifications_url: str = Field(
        "http://127.0.0.1:8083", description="Where notifications' message log is; none of ours asks it yet."
    )
    roles: Annotated[tuple[Role, ...], NoDecode] = Field(
        ROLES,
        min_length=1,
        description="What this process does, by commas: answers requests, publishes, consumes. Probes are in each.",
    )
    otel_exporter_otlp_endpoint: str | None = Field(
        None, description="Where OpenTelemetry's spans go, by OTLP over HTTP (`http://collector:4318`); else none are."
    )
    otel_exporter_otlp_traces_endpoint: str | None = Field(
        None, description="The same for spans alone, taken as it is: with its path, `/v1/traces` as a rule."
    )
    otel_exporter_otlp_headers: SecretStr | None = Field(
        None, description="What the collector wants in the headers, `name=value` by commas."
    )
    otel_exporter_otlp_traces_headers: SecretStr | None = Field(
        None, description="The same for spans alone, in place of the general ones."
    )
    otel_exporter_otlp_protocol: Literal["http/protobuf", "http/json", "grpc"] = Field(
        "http/protobuf", description="Nothing else is spoken; the other standard `OTEL_` variables hold as well."
    )
    otel_exporter_otlp_traces_protocol: Literal["http/protobuf"] = Field(
        "http/protobuf", description="The same for spans alone."
    )
    otel_service_name: str | None = Field(
        None, description="The name in spans, else `attache-<service>`; where one is for all, set it by prefix."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="`auto`: for people on a terminal, else JSON."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least that is logged.")

    @field_validator(
        "public_url", "schedule_url", "participants_url", "notifications_url", "otel_exporter_otlp_endpoint"
    )
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        if value is None:
            return None
        _HTTP_URL.validate_python(value)
        return value.rstrip("/")

    @field_validator("otel_exporter_otlp_traces_endpoint")
    @classmethod
    def _an_address_as_it_is(cls, value: str | None) -> str | None:
        if value is not None:
            _HTTP_URL.validate_python(value)
        return value

    @field_validator("oidc_issuer", "oidc_keys_url")
    @classmethod
    def _an_authority(cls, value: str | None) -> str | None:
        if value is not None:
            address = _HTTP_URL.validate_python(value)
            if address.scheme != "https" and address.host not in ("localhost", "127.0.0.1", "[::1]"):
                raise ValueError("should be https: whoever can change what it answers can be anybody here")
        return value

    @field_validator("database_url", "bus_url")
    @classmethod
    def _a_database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _names_a_database(value.get_secret_value()):
            raise ValueError(f"should be postgresql+asyncpg://user:password@host:port/name, {ESCAPED}")
        return value

    @field_validator("kafka_bootstrap")
    @classmethod
    def _brokers(cls, value: str | None) -> str | None:
        if value is not None and not all(map(_BROKER.fullmatch, value.split(","))):
            raise ValueError("should be host:port, and more of them by commas")
        return value

    @field_validator("*")
    @classmethod
    def _no_sample(cls, value: object) -> object:
        if isinstance(value, SecretStr) and is_sample(value.get_secret_value()):
            raise ValueError(A_SAMPLE)
        return value

    @field_validator("roles", mode="before")
    @classmethod
    def _by_commas(cls, value: object) -> object:
        return tuple(filter(None, (one.strip() for one in value.split(",")))) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _a_whole_bus(self) -> "Settings":
        if self.bus == "kafka" and not self.kafka_bootstrap:
            raise ValueError("BUS=kafka needs KAFKA_BOOTSTRAP")
        if self.bus == "local" and self.bus_url is None:
            raise ValueError("BUS=local needs BUS_URL")
        if self.topic_min_isr > self.topic_replication:
            raise ValueError("TOPIC_MIN_ISR is more than TOPIC_REPLICATION: nothing could be written")
        return self

    @model_validator(mode="after")
    def _a_whole_way_to_kafka(self) -> "Settings":
        _ = self.kafka_security
        return self

    @model_validator(mode="after")
    def _a_whole_issuer(self) -> "Settings":
        if self.oidc_issuer is not None and self.oidc_audience is None:
            raise ValueError("OIDC_ISSUER needs OIDC_AUDIENCE: else tokens for any other system would count here")
        return self

    @model_validator(mode="after")
    def _a_protocol_that_is_spoken(self) -> "Settings":
        # spans' own goes before: then the general one is that of metrics and logs, of which there are none here
        said = "otel_exporter_otlp_traces_protocol" in self.model_fields_set
        if self.otel_exporter_otlp_protocol != "http/protobuf" and not said:
            raise ValueError(
                "OTEL_EXPORTER_OTLP_PROTOCOL is not http/protobuf, which alone is spoken: "
                "say so for spans by OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, if the collector takes it"
            )
        return self

    @property
    def kafka_security(self) -> KafkaSecurity:
        """How its clients speak to Kafka."""
        password = self.kafka_sasl_password
        return KafkaSecurity(
            protocol=self.kafka_security_protocol,
            ca_file=self.kafka_ca_file,
            cert_file=self.kafka_cert_file,
            key_file=self.kafka_key_file,
            mechanism=self.kafka_sasl_mechanism,
            username=self.kafka_sasl_username,
            password=password.get_secret_value() if password is not None else None,
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the names are pydantic-settings' own
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment; no `.env` that happens to lie about."""
        return init_settings, _Environment(settings_cls)


def is_sample(secret: str) -> bool:
    """Whether a secret, or the password in an address, is one of those that stand in examples."""
    password = (urlsplit(secret).password or "") if "://" in secret else secret
    return password.strip("<>").casefold() in SAMPLES


def secret_in(path: Path) -> str:
    """A secret that stands in a file, for programs that are no service. Raises WrongSetting for none or a sample."""
    secret = _content(path)
    if is_sample(secret):
        raise WrongSetting(f"the secret file {path} {A_SAMPLE}")
    return secret


def secret_files(settings: type[Settings]) -> set[Path]:
    """The files that the environment names for secrets of these settings, whatever they are called."""
    return {Path(path) for variable in _files(settings) if (path := os.environ.get(variable))}


class Setting(NamedTuple):
    """One setting as the README's table shows it. `default` is as it would be written, None where one is needed."""

    variable: str
    default: str | None
    description: str


def load(settings: type[S], **given: Any) -> S:
    """The settings from the environment; `given` (by field name) goes before it. Raises WrongSetting."""
    try:
        return settings(**given)
    except ValidationError as error:
        known = _variables(settings)
        wrong = [_said(settings, known, one["loc"], one["type"], one["msg"]) for one in error.errors()]
    raise WrongSetting("; ".join(wrong))


def table(*services: type[Settings]) -> list[Setting]:
    """All settings: the common ones without a prefix, then what a service has of its own or with another default."""
    rows = [_setting(name.upper(), field) for name, field in Settings.model_fields.items()]
    for service in services:
        for name, field in service.model_fields.items():
            if name not in Settings.model_fields or field.default != Settings.model_fields[name].default:
                rows.append(_setting(_prefix(service) + name.upper(), field))
    return rows


class _Environment(PydanticBaseSettingsSource):
    """The environment's values by field name, and by their own name the variables that are no settings."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        for variable in _names(self.settings_cls, field_name):
            if value := os.environ.get(variable):
                return value, field_name, False
            if _is_secret(field) and (path := os.environ.get(f"{variable}_FILE")):
                return _content(Path(path)), field_name, False
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        found = {}
        for name, field in self.settings_cls.model_fields.items():
            value, _, _ = self.get_field_value(field, name)
            if value is not None:
                found[name] = value
        prefix, known = _prefix(self.settings_cls), _variables(self.settings_cls)
        unknown = {name: "" for name in os.environ if prefix and name.startswith(prefix) and name not in known}
        return found | unknown


def _names(settings: type[BaseSettings], field: str) -> Iterator[str]:
    """Where a field is looked for, in that order."""
    if prefix := _prefix(settings):
        yield prefix + field.upper()
    if field in Settings.model_fields:
        yield field.upper()


def _variables(settings: type[BaseSettings]) -> frozenset[str]:
    """All variables that mean something to this class."""
    return frozenset([*(one for name in settings.model_fields for one in _names(settings, name)), *_files(settings)])


def _files(settings: type[BaseSettings]) -> Iterator[str]:
    """The variables that name a secret's file."""
    for name, field in settings.model_fields.items():
        if _is_secret(field):
            yield from (f"{variable}_FILE" for variable in _names(settings, name))


def _said(settings: type[Settings], known: frozenset[str], loc: tuple[int | str, ...], kind: str, message: str) -> str:
    """One error in words. Pydantic's own message holds no value (`hide_input_in_errors`)."""
    name = str(loc[0]) if loc else ""
    if kind == "extra_forbidden":
        prefix = _prefix(settings)  # compared without it: it would make everything alike
        rests = {one.removeprefix(prefix): one for one in sorted(known)}
        near = [rests[rest] for rest in get_close_matches(name.removeprefix(prefix), rests, n=3)]
        return f"{name} is no setting" + (f" (near it: {', '.join(near)})" if near else "")
    text = message.removeprefix("Value error, ")
    if not name:
        return text
    variable = " or ".join(_names(settings, name)) if name in settings.model_fields else name
    return f"{variable} is not set" if kind == "missing" else f"{variable}: {text[:1].lower()}{text[1:]}"


def _setting(variable: str, field: FieldInfo) -> Setting:
    default = None if field.is_required() else "" if field.default is None else _text_of(field.default)
    return Setting(variable, default, field.description or "")


def _text_of(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _prefix(settings: type[BaseSettings]) -> str:
    return settings.model_config.get("env_prefix", "")


def _is_secret(field: FieldInfo) -> bool:
    return field.annotation in (SecretStr, SecretStr | None)


def _content(path: Path) -> str:
    """A secret file's text, without the line end that editors add. Raises WrongSetting for none, or an empty one."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise WrongSetting(f"the secret file {path} {': '.join(unread(error))}") from None
    if not text:
        raise WrongSetting(f"the secret file {path} is empty: remove it, and make secrets makes another")
    return text


def unread(error: OSError | UnicodeDecodeError) -> tuple[str, str]:
    """What is wrong with a secret's file that could not be read, and what to do."""
    match error:
        case FileNotFoundError():
            return "is not there", "make secrets makes what lacks"
        case PermissionError():
            return "may not be read by this user", "chmod a+r it; the folder alone is closed to others"
        case IsADirectoryError():
            return "is a folder", "remove it, and make secrets makes the file"
        case _:
            return f"cannot be read ({type(error).__name__})", "remove it, and make secrets makes another"


def _names_a_database(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # brackets without an end, or a port that is no number: a password with a / in it looks so
        return False
    return parts.scheme == "postgresql+asyncpg" and bool(parts.path.strip("/"))

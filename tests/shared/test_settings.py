"""Settings: found by prefix, wrong ones told in one line, no value told at all."""

from pathlib import Path

import pytest
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import SettingsConfigDict

from shared.settings import ESCAPED, Setting, Settings, WrongSetting, load, secret_in, table, unread

DATABASE = "postgresql+asyncpg://schedule:Kanarienvogel@127.0.0.1/schedule"
TOKEN = "attache_Kanarienvogel-0123456789"
BUS = "postgresql+asyncpg://bus:Kanarienvogel@127.0.0.1/bus"


class ScheduleSettings(Settings):
    """As a service declares it."""

    model_config = SettingsConfigDict(env_prefix="SCHEDULE_")

    port: int = Field(8081, ge=0, le=65535, description="The port to listen on.")
    slot_minutes: int = Field(15, description="The grain of meetings.")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix in ("", "SCHEDULE_"):
        for name in ScheduleSettings.model_fields:
            monkeypatch.delenv(prefix + name.upper(), raising=False)
    monkeypatch.setenv("SCHEDULE_DATABASE_URL", DATABASE)
    monkeypatch.setenv("BUS_URL", BUS)
    monkeypatch.setenv("SERVICE_TOKEN", TOKEN)


@pytest.mark.parametrize("wrong", ["postgresql://u:p@h/n", "sqlite:///x", "foo", "postgresql+asyncpg://u:p@h/"])
def test_what_is_no_address_of_a_database_is_said_in_a_line(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDULE_DATABASE_URL", wrong)
    with pytest.raises(WrongSetting) as caught:
        load(ScheduleSettings)
    said = f"should be postgresql+asyncpg://user:password@host:port/name, {ESCAPED}"
    assert str(caught.value) == f"SCHEDULE_DATABASE_URL or DATABASE_URL: {said}"


def test_a_way_to_kafka_that_is_not_whole_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("Kanarienvogel\n")
    monkeypatch.setenv("SCHEDULE_KAFKA_SASL_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("KAFKA_SASL_USERNAME", "attache")
    with pytest.raises(WrongSetting) as caught:
        load(ScheduleSettings)
    used = "which KAFKA_SECURITY_PROTOCOL=PLAINTEXT does not use"
    assert str(caught.value) == f"KAFKA_SASL_USERNAME or KAFKA_SASL_PASSWORD is given, {used}"
    monkeypatch.setenv("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    security = load(ScheduleSettings).kafka_security
    assert (security.username, security.password, security.by_tls) == ("attache", "Kanarienvogel", True)


def test_settings_have_defaults_and_take_the_environment() -> None:
    assert load(ScheduleSettings).model_dump() == {
        "database_url": SecretStr(DATABASE),
        "bus": "local",
        "service_token": SecretStr(TOKEN),
        "bus_url": SecretStr(BUS),
        "kafka_bootstrap": None,
        "kafka_security_protocol": "PLAINTEXT",
        "kafka_ca_file": None,
        "kafka_cert_file": None,
        "kafka_key_file": None,
        "kafka_sasl_mechanism": "SCRAM-SHA-512",
        "kafka_sasl_username": None,
        "kafka_sasl_password": None,
        "topic_partitions": 8,
        "topic_replication": 1,
        "topic_min_isr": 1,
        "topic_retention_ms": -1,
        "topic_retention_bytes": -1,
        "tokens_file": Path("tokens"),
        "oidc_issuer": None,
        "oidc_audience": None,
        "oidc_keys_url": None,
        "oidc_scopes_claim": "scope",
        "oidc_name_claim": "sub",
        "public_url": "http://127.0.0.1:8080",
        "host": "127.0.0.1",
        "port": 8081,
        "schedule_url": "http://127.0.0.1:8081",
        "participants_url": "http://127.0.0.1:8082",
        "notifications_url": "http://127.0.0.1:8083",
        "roles": ("api", "relay", "consumer"),
        "otel_exporter_otlp_endpoint": None,
        "otel_exporter_otlp_traces_endpoint": None,
        "otel_exporter_otlp_headers": None,
        "otel_exporter_otlp_protocol": "http/protobuf",
        "otel_exporter_otlp_traces_headers": None,
        "otel_exporter_otlp_traces_protocol": "http/protobuf",
        "otel_service_name": None,
        "log_format": "auto",
        "log_level": "info",
        "slot_minutes": 15,
    }


def test_setting_with_the_prefix_goes_before_the_common_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "9000")
    monkeypatch.setenv("TOKENS_FILE", "/etc/attache/tokens")
    assert load(ScheduleSettings).port == 9000
    monkeypatch.setenv("SCHEDULE_PORT", "9001")
    settings = load(ScheduleSettings)
    assert (settings.port, settings.tokens_file) == (9001, Path("/etc/attache/tokens"))


def test_setting_of_one_service_is_not_found_without_its_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOT_MINUTES", "5")
    assert load(ScheduleSettings).slot_minutes == 15
    monkeypatch.setenv("SCHEDULE_SLOT_MINUTES", "10")
    assert load(ScheduleSettings).slot_minutes == 10


def test_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDULE_PORT", "")
    monkeypatch.setenv("KAFKA_BOOTSTRAP", "")
    settings = load(ScheduleSettings)
    assert (settings.port, settings.kafka_bootstrap) == (8081, None)


def test_address_of_a_service_is_no_unknown_setting_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDULE_URL", "http://schedule:8081/")
    assert load(ScheduleSettings).schedule_url == "http://schedule:8081"


def test_argument_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDULE_PORT", "9001")
    assert load(ScheduleSettings, port=9002).port == 9002


def test_secret_may_be_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "database_url"
    secret.write_text(DATABASE + "\n")
    monkeypatch.delenv("SCHEDULE_DATABASE_URL")
    monkeypatch.setenv("SCHEDULE_DATABASE_URL_FILE", str(secret))
    assert load(ScheduleSettings).database_url.get_secret_value() == DATABASE
    secret.write_text("\n")
    with pytest.raises(WrongSetting, match=r"the secret file .*database_url is empty: remove it, and make secrets"):
        load(ScheduleSettings)
    secret.unlink()
    with pytest.raises(WrongSetting, match=r"the secret file .*database_url is not there: make secrets makes what"):
        load(ScheduleSettings)
    secret.mkdir()
    with pytest.raises(WrongSetting, match=r"the secret file .*database_url is a folder: remove it"):
        load(ScheduleSettings)


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (PermissionError(), "may not be read by this user"),
        (OSError(), "cannot be read (OSError)"),
        (UnicodeDecodeError("utf-8", b"Kanarienvogel", 0, 1, "reason"), "cannot be read (UnicodeDecodeError)"),
    ],
)
def test_a_secret_that_cannot_be_read_is_said_with_what_to_do(error: OSError | UnicodeDecodeError, what: str) -> None:
    found, do = unread(error)
    assert found == what
    assert do


@pytest.mark.parametrize(
    ("ending", "fits"),
    [
        ("@host/name", True),
        ("@host:5433/name", True),
        ("@/name?host=/run/postgresql", True),
        ("@host:0/name", True),
        ("%2F@host/name", True),
        ("/x@host/name", False),
        ("@host:port/name", False),
        ("@host:99999/name", False),
        ("@[::1/name", False),
        ("@host", False),
    ],
)
def test_a_database_s_address_that_makes_no_sense_is_refused(
    ending: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCHEDULE_DATABASE_URL", f"postgresql+asyncpg://schedule:Kanarienvogel{ending}")
    said = ""
    try:
        load(ScheduleSettings)
    except WrongSetting as error:
        said = str(error)
    assert said == (
        ""
        if fits
        else "SCHEDULE_DATABASE_URL or DATABASE_URL: should be postgresql+asyncpg://user:password@host:port/name, "
        f"{ESCAPED}"
    )


@pytest.mark.parametrize("brokers", ["kafka", "kafka:", ":9092", "kafka:abc", "kafka:999999", "kafka:9092,", "a:1;b:2"])
def test_brokers_that_are_no_addresses_are_refused(brokers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP", brokers)
    with pytest.raises(WrongSetting, match="KAFKA_BOOTSTRAP: should be host:port, and more of them by commas"):
        load(ScheduleSettings)
    monkeypatch.setenv("KAFKA_BOOTSTRAP", "kafka:9092, kafka-2:9092,[::1]:9092")
    load(ScheduleSettings)


@pytest.mark.parametrize("sample", ["change-me", "Changeme", "sample", "example", "secret", "PASSWORD", "<secret>"])
def test_a_sample_is_no_secret(sample: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", sample)
    monkeypatch.setenv("SCHEDULE_DATABASE_URL", f"postgresql+asyncpg://schedule:{sample}@127.0.0.1/schedule")
    with pytest.raises(WrongSetting) as caught:
        load(ScheduleSettings)
    said = "holds a sample and no secret: put a real one there (make secrets makes them)"
    assert sorted(str(caught.value).split("; ")) == [
        f"SCHEDULE_DATABASE_URL or DATABASE_URL: {said}",
        f"SCHEDULE_SERVICE_TOKEN or SERVICE_TOKEN: {said}",
    ]


def test_a_database_without_a_password_has_no_sample_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDULE_DATABASE_URL", "postgresql+asyncpg://schedule@127.0.0.1/secret")
    assert load(ScheduleSettings).database_url.get_secret_value().endswith("/secret")


def test_a_secret_in_a_file_is_none_where_it_is_empty_or_a_sample(tmp_path: Path) -> None:
    kept = tmp_path / "token"
    kept.write_text(f"{TOKEN}\n")
    assert secret_in(kept) == TOKEN
    for wrong, said in {"\n": "is empty", "change-me\n": "holds a sample"}.items():
        kept.write_text(wrong)
        with pytest.raises(WrongSetting, match=said):
            secret_in(kept)


def test_roles_are_words_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDULE_ROLES", " relay, consumer")
    assert load(ScheduleSettings).roles == ("relay", "consumer")
    for wrong, said in {"relay,publisher": "should be 'api', 'relay' or 'consumer'", ",": "at least 1 item"}.items():
        monkeypatch.setenv("SCHEDULE_ROLES", wrong)
        with pytest.raises(WrongSetting, match=f"SCHEDULE_ROLES or ROLES: .*{said}"):
            load(ScheduleSettings)


def test_more_copies_than_there_are_can_never_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPIC_MIN_ISR", "2")
    with pytest.raises(WrongSetting, match="TOPIC_MIN_ISR is more than TOPIC_REPLICATION"):
        load(ScheduleSettings)
    monkeypatch.setenv("TOPIC_REPLICATION", "3")
    assert load(ScheduleSettings).topic_min_isr == 2


def test_misspelt_setting_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCHEDULE_PRT", "9001")
    monkeypatch.setenv("SCHEDULE_XYZZY", "1")
    with pytest.raises(WrongSetting) as caught:
        load(ScheduleSettings)
    assert sorted(str(caught.value).split("; ")) == [
        "SCHEDULE_PRT is no setting (near it: SCHEDULE_PORT)",
        "SCHEDULE_XYZZY is no setting",
    ]


def test_wrong_settings_are_told_in_one_line_without_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCHEDULE_DATABASE_URL")
    monkeypatch.setenv("SCHEDULE_PORT", "Kanarienvogel")
    monkeypatch.setenv("PUBLIC_URL", "Kanarienvogel")
    monkeypatch.setenv("LOG_LEVEL", "Kanarienvogel")
    with pytest.raises(WrongSetting) as caught:
        load(ScheduleSettings)
    said = str(caught.value)
    assert "SCHEDULE_DATABASE_URL or DATABASE_URL is not set" in said
    assert "SCHEDULE_PORT or PORT: input should be a valid integer" in said
    assert "SCHEDULE_PUBLIC_URL or PUBLIC_URL: " in said
    assert "SCHEDULE_LOG_LEVEL or LOG_LEVEL: input should be 'debug', 'info', 'warning' or 'error'" in said
    assert "\n" not in said
    assert "Kanarienvogel" not in said
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_bus_needs_its_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUS", "kafka")
    with pytest.raises(WrongSetting, match=r"^BUS=kafka needs KAFKA_BOOTSTRAP$"):
        load(ScheduleSettings)
    monkeypatch.setenv("KAFKA_BOOTSTRAP", "127.0.0.1:9092")
    assert load(ScheduleSettings).kafka_bootstrap == "127.0.0.1:9092"
    monkeypatch.setenv("BUS", "local")
    monkeypatch.delenv("BUS_URL")
    with pytest.raises(WrongSetting, match=r"^BUS=local needs BUS_URL$"):
        load(ScheduleSettings)


def test_settings_do_not_change_and_do_not_show_secrets() -> None:
    settings = load(ScheduleSettings)
    assert "Kanarienvogel" not in repr(settings) + str(settings)
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]  # that is what is tried


def test_table_tells_the_common_settings_once_and_a_service_s_own() -> None:
    rows = table(ScheduleSettings)
    assert rows[0] == Setting("DATABASE_URL", None, Settings.model_fields["database_url"].description or "")
    assert rows[len(Settings.model_fields) :] == [
        Setting("SCHEDULE_PORT", "8081", "The port to listen on."),
        Setting("SCHEDULE_SLOT_MINUTES", "15", "The grain of meetings."),
    ]


def test_every_setting_is_described() -> None:
    assert [row.variable for row in table() if not row.description] == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"OIDC_ISSUER": "https://login.example.org"}, "OIDC_ISSUER needs OIDC_AUDIENCE: else tokens for any other"),
        (
            {"OIDC_ISSUER": "http://login.example.org", "OIDC_AUDIENCE": "attache"},
            "SCHEDULE_OIDC_ISSUER or OIDC_ISSUER: sh",
        ),
        ({"OIDC_ISSUER": "login", "OIDC_AUDIENCE": "attache"}, "SCHEDULE_OIDC_ISSUER or OIDC_ISSUER: "),
    ],
)
def test_an_issuer_that_proves_nothing_is_no_issuer(
    given: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WrongSetting) as caught:
        load(ScheduleSettings)
    assert str(caught.value).startswith(said)

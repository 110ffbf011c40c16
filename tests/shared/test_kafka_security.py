"""TLS and SASL to Kafka, against a real node that asks for them; and what is said where it does not let us in."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic_settings import SettingsConfigDict

from deploy.kafka_node import JARS, KafkaNode, NodeUnable, check_java, fetch_jars, free_port, until_answers
from services.doctor.looks import Look, looked
from shared.bus import BusAway, Partition, Record, Topic
from shared.bus_choice import make_bus, topic_like
from shared.bus_kafka import KafkaBus, KafkaTimes
from shared.kafka_security import KafkaSecurity, Protocol
from shared.settings import Settings, load
from shared.wiring import topics_of
from tests.certificates import Authority, authority
from tests.kafka_fixture import PATIENCE, unavailable

PASSWORD = "Kanarienvogel-0123456789"
TIMES = KafkaTimes(send=60.0, heartbeat=0.3, session=30.0, patience=30.0)
LISTENERS = """\
listeners=PLAINTEXT://127.0.0.1:{PLAINTEXT},SSL://127.0.0.1:{SSL},SASL_PLAINTEXT://127.0.0.1:{SASL_PLAINTEXT},\
SASL_SSL://127.0.0.1:{SASL_SSL},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{PLAINTEXT},SSL://127.0.0.1:{SSL},\
SASL_PLAINTEXT://127.0.0.1:{SASL_PLAINTEXT},SASL_SSL://127.0.0.1:{SASL_SSL}
controller.quorum.voters=1@127.0.0.1:{controller}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL,\
CONTROLLER:PLAINTEXT
listener.name.ssl.ssl.client.auth=required
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={truststore}
sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512,PLAIN
"""
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
PLAIN = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_attache="{PASSWORD}";'


@dataclass(frozen=True)
class Secured:
    """A node with a listener for each protocol; `ports` by its name."""

    ports: Mapping[str, int]
    authority: Authority

    def bus(self, protocol: Protocol, host: str = "127.0.0.1", **given: Any) -> KafkaBus:
        security = KafkaSecurity(protocol=protocol, **given)
        return KafkaBus(f"{host}:{self.ports[protocol]}", times=TIMES, security=security)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    signs = authority(folder / "certificates")
    broker = signs.issue("localhost")
    keystore = folder / "broker.pem"
    keystore.write_bytes(broker.key.read_bytes() + broker.certificate.read_bytes())
    ports = {name: free_port() for name in ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL", "controller")}
    more = LISTENERS.format(**ports, keystore=keystore, truststore=signs.certificate)
    for listener in ("sasl_ssl", "sasl_plaintext"):
        for mechanism, module in (("scram-sha-256", SCRAM), ("scram-sha-512", SCRAM), ("plain", PLAIN)):
            more += f"listener.name.{listener}.{mechanism}.sasl.jaas.config={module}\n"
    try:
        check_java()
        fetch_jars(JARS)
    except NodeUnable as unable:
        unavailable(f"no Kafka: {unable}")
    node = KafkaNode(folder / "kafka", ports["PLAINTEXT"], more=more, users={"attache": PASSWORD})
    node.start()
    try:
        node.wait_ready(PATIENCE)
        for port in ports.values():  # one after the other, in no order
            until_answers(f"127.0.0.1:{port}", PATIENCE)
        yield Secured(ports, signs)
    finally:
        node.stop()


def _login(**more: Any) -> dict[str, Any]:
    return {"username": "attache", "password": PASSWORD, **more}


@pytest.mark.parametrize("way", ["SSL", "SASL_PLAINTEXT", "SASL_SSL SCRAM-SHA-256", "SASL_SSL", "SASL_SSL PLAIN"])
async def test_messages_go_and_come_by_each_way(secured: Secured, way: str) -> None:
    protocol, _, mechanism = way.partition(" ")
    given: dict[str, Any] = _login() if protocol.startswith("SASL") else {}
    if mechanism:
        given["mechanism"] = mechanism
    if protocol.endswith("SSL"):
        given["ca_file"] = secured.authority.certificate
    if protocol == "SSL":
        client = secured.authority.issue("attache")
        given |= {"cert_file": client.certificate, "key_file": client.key}
    bus = secured.bus(protocol, **given)  # type: ignore[arg-type]
    topic = Topic(name=f"test-{uuid4()}", partitions=1)
    await bus.ensure_topics([topic])
    assert await bus.differences([topic]) == []
    producer = await bus.producer()
    try:
        [place] = await producer.send([Record(topic=topic.name, key="trip", headers=(("ce_id", "7"),), body=b"fact")])
        assert await producer.id_at(place) == "7"  # by a client of its own
    finally:
        await producer.close()
    assert await _first(bus, topic.name) == b"fact"


async def _first(bus: KafkaBus, topic: str) -> bytes | None:
    async def from_start(partitions: Any) -> Mapping[Partition, int]:
        return dict.fromkeys(partitions, 0)

    async def let_go(_: Any) -> None:
        """Nothing was kept."""

    reader = await bus.subscribe(f"readers-{uuid4()}", [topic], on_assigned=from_start, on_revoked=let_go)
    try:
        async with asyncio.timeout(120):
            while not (found := await reader.fetch(1, 0.5)):
                pass
        return next(iter(found.values()))[0].body
    finally:
        await reader.close()


class Spoken(Settings):
    """As a service is told by its environment."""

    model_config = SettingsConfigDict(env_prefix="SPOKEN_")


async def test_what_the_settings_say_is_how_a_service_and_the_doctor_come_in(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = secured.authority.issue("attache")
    said = {
        "DATABASE_URL": "postgresql+asyncpg://nobody@127.0.0.1:9/none",
        "SERVICE_TOKEN": "attache_0123456789",
        "BUS": "kafka",
        "KAFKA_BOOTSTRAP": f"127.0.0.1:{secured.ports['SASL_SSL']}",
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_CA_FILE": str(secured.authority.certificate),
        "KAFKA_CERT_FILE": str(own.certificate),
        "KAFKA_KEY_FILE": str(own.key),
        "KAFKA_SASL_USERNAME": "attache",
        "KAFKA_SASL_PASSWORD": PASSWORD,
    }
    for name, value in said.items():
        monkeypatch.setenv(f"SPOKEN_{name}", value)
    settings = load(Spoken)
    await make_bus(settings, "spoken").ensure_topics(topics_of("schedule", topic_like(settings)))
    well = ["topics", "certificate KAFKA_BOOTSTRAP", f"certificate {own.certificate}"]
    assert await _doctors(settings) == {check: ["ok"] for check in well}
    monkeypatch.setenv("SPOKEN_KAFKA_SASL_PASSWORD", "wrong")
    assert (await _doctors(load(Spoken)))["topics"] == ["FAIL"]


async def _doctors(settings: Settings) -> dict[str, list[str]]:
    """What the doctor finds of Kafka, by check; nothing else is there."""
    _, found = await asyncio.to_thread(looked, Look(settings={"schedule": settings}))
    levels: dict[str, list[str]] = {}
    for one in found:
        if one.check == "topics" or (one.check.startswith("certificate") and "PUBLIC_URL" not in one.check):
            levels.setdefault(one.check, []).append(one.level)
    return levels


async def test_who_is_not_let_in_is_told_why(secured: Secured, tmp_path: Path) -> None:
    ca = secured.authority.certificate
    strange = authority(tmp_path / "strange")
    refused: Mapping[str, KafkaBus] = {
        "invalid credentials": secured.bus("SASL_SSL", ca_file=ca, **_login(password="wrong")),
        "invalid credentials ": secured.bus("SASL_PLAINTEXT", **_login(username="nobody")),
        "unable to get local issuer certificate": secured.bus("SASL_SSL", **_login()),
        "certificate verify failed": secured.bus("SASL_SSL", ca_file=strange.certificate, **_login()),
    }
    for why, bus in refused.items():
        for begin in (bus.ensure_topics([]), bus.differences([]), bus.producer()):
            with pytest.raises(BusAway, match=why.strip()) as caught:
                await begin
            assert PASSWORD not in str(caught.value)
            assert "\n" not in str(caught.value)


async def test_who_shows_no_certificate_where_one_is_asked_for_is_not_let_in(secured: Secured) -> None:
    with pytest.raises(BusAway):
        await secured.bus("SSL", ca_file=secured.authority.certificate).producer()


@asynccontextmanager
async def _shown(tmp_path: Path, *, days: float, name: str) -> AsyncIterator[tuple[int, Path]]:
    """A port where a certificate is shown and nothing else comes, and who has signed it."""
    signs = authority(tmp_path)
    files = signs.issue(name, days=days)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], signs.certificate


@pytest.mark.parametrize(
    ("days", "name", "why"),
    [(-1, "localhost", "certificate has expired"), (60, "kafka.example.org", "certificate is not valid for")],
)
async def test_a_broker_s_certificate_that_ran_out_or_is_another_s_is_refused(
    tmp_path: Path, days: float, name: str, why: str
) -> None:
    async with _shown(tmp_path, days=days, name=name) as (port, signed_by):
        security = KafkaSecurity(protocol="SSL", ca_file=signed_by)
        with pytest.raises(BusAway, match=why):
            await KafkaBus(f"127.0.0.1:{port}", times=TIMES, security=security).producer()


async def test_a_renewed_certificate_is_taken_by_the_next_client(secured: Secured, tmp_path: Path) -> None:
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authority(tmp_path / "old").certificate.read_bytes())
    bus = secured.bus("SASL_SSL", ca_file=ca, **_login())
    with pytest.raises(BusAway):
        await bus.producer()
    ca.write_bytes(secured.authority.certificate.read_bytes())
    await (await bus.producer()).close()
    ca.write_text("")
    with pytest.raises(BusAway, match="KAFKA_CA_FILE"):
        await bus.producer()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"protocol": "SASL_SSL"}, "needs KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"),
        ({"protocol": "SASL_SSL", "username": "a"}, "needs KAFKA_SASL_USERNAME and KAFKA_SASL_PASSWORD"),
        (
            {"protocol": "SASL_PLAINTEXT", "username": "a", "password": "b", "mechanism": "PLAIN"},
            "would send the password in the open",
        ),
        ({"username": "a", "password": "b"}, "which KAFKA_SECURITY_PROTOCOL=PLAINTEXT does not use"),
        ({"protocol": "SSL", "password": "b"}, "which KAFKA_SECURITY_PROTOCOL=SSL does not use"),
        ({"ca_file": Path("ca")}, "which KAFKA_SECURITY_PROTOCOL=PLAINTEXT does not use"),
        ({"protocol": "SSL", "key_file": Path("key")}, "KAFKA_KEY_FILE needs KAFKA_CERT_FILE"),
        ({"protocol": "SSL", "ca_file": Path("none")}, "KAFKA_CA_FILE none cannot be used: no such file or directory"),
        ({"protocol": "SSL", "cert_file": Path("none")}, "KAFKA_CERT_FILE none, .*cannot be used: no such file"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KafkaSecurity(**given)


def test_a_key_that_is_another_s_or_locked_is_refused(tmp_path: Path) -> None:
    signs = authority(tmp_path)
    one, other = signs.issue("one"), signs.issue("other")
    with pytest.raises(ValueError, match="cannot be used: key values mismatch"):
        KafkaSecurity(protocol="SSL", cert_file=one.certificate, key_file=other.key)
    with pytest.raises(ValueError, match="cannot be used"):
        KafkaSecurity(protocol="SSL", cert_file=one.certificate)
    assert PASSWORD not in repr(KafkaSecurity(protocol="SASL_SSL", username="attache", password=PASSWORD))

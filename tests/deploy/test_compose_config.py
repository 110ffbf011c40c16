"""The rules that every container keeps. Each is broken once below, and has to be found."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import yaml

from shared.draining import GRACE_SECONDS, LAST_SECONDS, SERVE_ON_SECONDS
from shared.service import END_SECONDS
from tests.deploy.compose_file import ROOT, VARIABLE, Project, by_compose, by_yaml, cluster, compose_answers

OURS = "attache/"
JOBS = ("migrate", "topics")
SERVICES = ("schedule", "participants", "notifications")
# what the official images declare as VOLUME: where nothing of ours is mounted, each new container leaves one behind
IMAGE_VOLUMES = {
    "postgres": ("/var/lib/postgresql",),
    "apache/kafka": ("/var/lib/kafka/data", "/etc/kafka/secrets", "/mnt/shared/config"),
    "prom/prometheus": ("/prometheus",),
}
SECRET_NAME = re.compile(r"PASSWORD|TOKEN|SECRET|DATABASE_URL")
Service = dict[str, Any]


@pytest.fixture(scope="module", params=[by_compose, by_yaml], ids=["compose", "yaml"])
def read(request: pytest.FixtureRequest) -> Callable[[Mapping[str, str]], Project]:
    if request.param is by_compose and not compose_answers():
        pytest.skip("docker compose is not here")
    read: Callable[[Mapping[str, str]], Project] = request.param
    return read


@pytest.fixture(scope="module")
def project(read: Callable[[Mapping[str, str]], Project]) -> Project:
    return read({})


def test_every_container_keeps_the_rules(project: Project) -> None:
    assert list(_faults(project)) == []


def test_each_variable_is_asked_for_or_has_a_default() -> None:
    """One without either is a warning of Compose's own, a line each, before or after the one that says what to do."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert [found[0] for found in VARIABLE.finditer(text) if found[2] is None] == []


def test_three_services_and_two_jobs_are_there(project: Project) -> None:
    always = {name for name, service in project["services"].items() if not service.get("profiles")}
    assert always == {*SERVICES, *JOBS, "postgres", "kafka", "proxy"}
    assert {"kafka-2", "kafka-3", "demo", "mailpit"} <= set(project["services"])


def test_one_broker_says_one_copy_and_the_cluster_three(read: Callable[[Mapping[str, str]], Project]) -> None:
    def said(project: Project) -> list[str]:
        kafka, topics = (project["services"][name]["environment"] for name in ("kafka", "topics"))
        copies = {kafka[name] for name in kafka if name.endswith("REPLICATION_FACTOR")}
        isr = {kafka[name] for name in kafka if name.endswith("MIN_ISR")}
        return [str(one) for one in (*copies, *isr, topics["TOPIC_REPLICATION"], topics["TOPIC_MIN_ISR"])]

    assert said(read({})) == ["1", "1", "1", "1"]
    three = read(cluster())
    assert said(three) == ["3", "2", "3", "2"]
    nodes = [three["services"][name]["environment"] for name in ("kafka", "kafka-2", "kafka-3")]
    assert [str(node["KAFKA_NODE_ID"]) for node in nodes] == ["1", "2", "3"]
    assert {node["KAFKA_CONTROLLER_QUORUM_VOTERS"] for node in nodes} == {"1@kafka:9093,2@kafka-2:9093,3@kafka-3:9093"}
    assert len({node["KAFKA_ADVERTISED_LISTENERS"] for node in nodes}) == 3


def test_the_image_is_built_by_what_every_engine_has() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert "syntax=" not in dockerfile
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"python:3.13-slim-bookworm"}
    assert re.search(r"--require-hashes --no-deps --only-binary :all:", dockerfile)
    last = dockerfile.rpartition("\nFROM ")[2]
    assert "pip uninstall" in last
    assert "USER 10001:10001" in last
    assert (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()[1] == "*"


def test_the_broker_logs_to_its_output_alone() -> None:
    """Files below its read-only root are in memory, and nothing removes them."""
    settings = yaml.safe_load((ROOT / "deploy/kafka/config/log4j2.yaml").read_text(encoding="utf-8"))["Configuration"]
    assert set(settings["Appenders"]) == {"Console"}
    assert settings["Loggers"]["Root"]["AppenderRef"] == [{"ref": settings["Appenders"]["Console"]["name"]}]


BROKEN: Mapping[str, Callable[[Project], object]] = {
    "schedule: its root can be written": lambda p: p["services"]["schedule"].pop("read_only"),
    "proxy: no tmpfs at /tmp": lambda p: p["services"]["proxy"].update(tmpfs=[]),
    "postgres: keeps capabilities": lambda p: p["services"]["postgres"].update(cap_drop=["NET_RAW"]),
    "schedule: adds capabilities": lambda p: p["services"]["schedule"].update(cap_add=["NET_ADMIN"]),
    "kafka: new privileges are possible": lambda p: p["services"]["kafka"].update(security_opt=[]),
    "migrate: no limit mem_limit": lambda p: p["services"]["migrate"].pop("mem_limit"),
    "demo: no limit cpus": lambda p: p["services"]["demo"].pop("cpus"),
    "mailpit: no limit pids_limit": lambda p: p["services"]["mailpit"].pop("pids_limit"),
    "kafka: more than one core: a machine of one refuses it": lambda p: p["services"]["kafka"].update(cpus=1.5),
    "notifications: no init": lambda p: p["services"]["notifications"].pop("init"),
    "participants: its log grows": lambda p: p["services"]["participants"].pop("logging"),
    "topics: is not uid 10001": lambda p: p["services"]["topics"].update(user="0:0"),
    "postgres: runs as root": lambda p: p["services"]["postgres"].pop("user"),
    "schedule: has a name of its own": lambda p: p["services"]["schedule"].update(container_name="schedule"),
    "schedule: publishes a port": lambda p: p["services"]["schedule"].update(ports=["8081:8081"]),
    "kafka: no health check": lambda p: p["services"]["kafka"].pop("healthcheck"),
    "kafka-2: start_interval": lambda p: p["services"]["kafka-2"]["healthcheck"].update(start_interval="1s"),
    "kafka-3: a dear health check": lambda p: p["services"]["kafka-3"]["healthcheck"].update(
        test=["CMD", "kafka-topics.sh"]
    ),
    "schedule: a dear health check": lambda p: p["services"]["schedule"]["healthcheck"].update(
        test=["CMD", "python", "-c", "import urllib.request"]
    ),
    "notifications: stops too soon": lambda p: p["services"]["notifications"].update(stop_grace_period="10s"),
    "topics: nobody waits for it": lambda p: [p["services"][name]["depends_on"].pop("topics") for name in SERVICES],
    "postgres: no restart": lambda p: p["services"]["postgres"].pop("restart"),
    "postgres: on the networks app, data": lambda p: p["services"]["postgres"]["networks"].update(app={}),
    "proxy: on the networks app, data, edge": lambda p: p["services"]["proxy"]["networks"].update(data={}),
    "data: not internal": lambda p: p["networks"]["data"].pop("internal"),
    "schedule: a secret in SERVICE_TOKEN": lambda p: p["services"]["schedule"]["environment"].update(SERVICE_TOKEN="x"),
    "schedule: may read participants_database_url": lambda p: p["services"]["schedule"]["secrets"].append(
        {"source": "participants_database_url"}
    ),
    "demo: may read operator_token": lambda p: p["services"]["demo"]["secrets"].append({"source": "operator_token"}),
    "tokens: no file": lambda p: p["secrets"].update(tokens={"environment": "TOKENS"}),
    "postgres: no volume at /var/lib/postgresql": lambda p: p["services"]["postgres"]["volumes"].pop(0),
    "kafka: no volume at /var/lib/kafka/data": lambda p: p["services"]["kafka"].update(volumes=[]),
    "kafka: KAFKA_LOG_DIRS": lambda p: p["services"]["kafka"]["environment"].update(KAFKA_LOG_DIRS="/opt/logs"),
    "kafka: KAFKA_AUTO_CREATE_TOPICS_ENABLE": lambda p: p["services"]["kafka"]["environment"].update(
        KAFKA_AUTO_CREATE_TOPICS_ENABLE="true"
    ),
    "kafka: KAFKA_HEAP_OPTS": lambda p: p["services"]["kafka"]["environment"].pop("KAFKA_HEAP_OPTS"),
    "kafka: its garbage collector writes files": lambda p: p["services"]["kafka"]["environment"].update(
        KAFKA_GC_LOG_OPTS="-Xlog:gc*:file=/opt/kafka/logs/gc.log"
    ),
    "kafka-2: logs as the image does, to files": lambda p: p["services"]["kafka-2"]["volumes"].pop(),
    "kafka-3: /etc/kafka/secrets is left behind as a volume": lambda p: p["services"]["kafka-3"]["tmpfs"].pop(),
    "prometheus: /prometheus is left behind as a volume": lambda p: p["services"]["prometheus"]["volumes"].pop(),
    "postgres: the order of texts is the image's": lambda p: p["services"]["postgres"]["environment"].update(
        POSTGRES_INITDB_ARGS="--data-checksums"
    ),
    "postgres: no checksums": lambda p: p["services"]["postgres"]["environment"].pop("POSTGRES_INITDB_ARGS"),
    "postgres: no password is asked for at 127.0.0.1": lambda p: p["services"]["postgres"]["environment"].update(
        POSTGRES_INITDB_ARGS="--data-checksums --locale-provider=builtin --locale=C.UTF-8 --auth-host=trust"
    ),
    "kafka: no version": lambda p: p["services"]["kafka"].update(image="apache/kafka:latest"),
    "two containers build": lambda p: p["services"]["topics"].update(build={"context": "."}),
    "schedule: another image": lambda p: p["services"]["schedule"].update(image="attache/other"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_broken_rule_is_found(fault: str, project: Project) -> None:
    broken = copy.deepcopy(project)
    BROKEN[fault](broken)
    assert fault in list(_faults(broken))


def _faults(project: Project) -> Iterator[str]:
    """What breaks a rule, each in a few words."""
    services: Mapping[str, Service] = project["services"]
    for name, service in services.items():
        rules = (_hardening(service), _ours(service), _life(name, service), _reach(name, service), _volumes(service))
        yield from (f"{name}: {fault}" for rule in rules for fault in rule)
        yield from (f"{name}: may read {secret}" for secret in _strange_secrets(name, service))
    for job in JOBS:
        waits = [one.get("depends_on", {}).get(job, {}).get("condition") for one in services.values()]
        if "service_completed_successfully" not in waits:
            yield f"{job}: nobody waits for it"
    for name, service in services.items():
        if name.startswith("kafka"):
            yield from (f"{name}: {fault}" for fault in _kafka(service))
    yield from (f"postgres: {fault}" for fault in _postgres(services["postgres"]))
    if not project["networks"]["data"].get("internal"):
        yield "data: not internal"
    yield from (f"{name}: no file" for name, secret in project["secrets"].items() if not secret.get("file"))
    yield from _one_image(services)


def _hardening(service: Service) -> Iterator[str]:
    if not service.get("read_only"):
        yield "its root can be written"
    if not any(one.startswith("/tmp:") for one in service.get("tmpfs", [])):  # noqa: S108  it is looked for, not used
        yield "no tmpfs at /tmp"
    if service.get("cap_drop") != ["ALL"]:
        yield "keeps capabilities"
    if service.get("cap_add", []) not in ([], ["NET_BIND_SERVICE"]):
        yield "adds capabilities"
    if "no-new-privileges:true" not in service.get("security_opt", []):
        yield "new privileges are possible"
    if str(service.get("user", "0")).partition(":")[0] in ("0", "root"):
        yield "runs as root"
    yield from (f"no limit {name}" for name in ("mem_limit", "cpus", "pids_limit") if not service.get(name))
    if float(service.get("cpus", 0)) > 1:
        yield "more than one core: a machine of one refuses it"
    if not service.get("init"):
        yield "no init"
    log = service.get("logging", {})
    if log.get("driver") != "json-file" or not {"max-size", "max-file"} <= set(log.get("options", {})):
        yield "its log grows"


def _ours(service: Service) -> Iterator[str]:
    if not service["image"].startswith(OURS):
        return
    if service.get("user") != "10001:10001":
        yield "is not uid 10001"
    end = SERVE_ON_SECONDS + 2 * LAST_SECONDS + GRACE_SECONDS + END_SECONDS
    if _seconds(service.get("stop_grace_period", "0s")) <= end:
        yield "stops too soon"


def _life(name: str, service: Service) -> Iterator[str]:
    if name in JOBS or "tools" in service.get("profiles", []):
        if service.get("restart") != "no":
            yield "a job that begins again by itself"
        return
    if service.get("restart") != "unless-stopped":
        yield "no restart"
    check = service.get("healthcheck", {})
    if not check.get("test"):
        yield "no health check"
    if "start_interval" in check:
        yield "start_interval"
    words = " ".join(map(str, check.get("test", [])))
    if re.search(r"\.sh\b|java|urllib|httpx|requests", words) or ("python" in words and "-SEc" not in words):
        yield "a dear health check"


def _reach(name: str, service: Service) -> Iterator[str]:
    if "container_name" in service:
        yield "has a name of its own"
    if service.get("ports") and name != "proxy":
        yield "publishes a port"
    networks = set(service.get("networks", {}))
    wrong = {
        name in ("postgres", *JOBS) or name.startswith("kafka"): networks != {"data"},
        name == "proxy": networks != {"edge", "app"},
        name == "doctor": not {"app", "data"} <= networks,  # it looks from outside too, at the certificate
        name in SERVICES: networks != {"app", "data"},
    }.get(True, "edge" in networks)
    if wrong:
        yield f"on the networks {', '.join(sorted(networks))}"
    for variable, value in service.get("environment", {}).items():
        if SECRET_NAME.search(variable) and not str(value).startswith("/run/secrets/"):
            yield f"a secret in {variable}"


def _strange_secrets(name: str, service: Service) -> set[str]:
    """The secrets that a container is given without being the one that needs them."""
    databases = {f"{one}_database_url" for one in SERVICES}
    needs: dict[str, set[str]] = {
        **{one: {"tokens", f"{one}_service_token", f"{one}_database_url"} for one in SERVICES},
        "migrate": {"tokens", *databases, *(f"{one}_service_token" for one in SERVICES)},
        "postgres": {"postgres_password", *databases},
        "demo": {"planner_token"},
    }
    if name not in needs and name not in ("topics", "kafka", "kafka-2", "kafka-3", "proxy", "mailpit"):
        return set()  # what others bring along is theirs to judge
    return {secret["source"] for secret in service.get("secrets", [])} - needs.get(name, set())


def _volumes(service: Service) -> Iterator[str]:
    mounted = {one["target"] for one in service.get("volumes", [])}
    mounted |= {one.partition(":")[0] for one in service.get("tmpfs", [])}
    for path in IMAGE_VOLUMES.get(service["image"].partition(":")[0], ()):
        if path not in mounted:
            yield f"{path} is left behind as a volume"


def _postgres(service: Service) -> Iterator[str]:
    if not _has_volume(service, "/var/lib/postgresql"):
        yield "no volume at /var/lib/postgresql"
    arguments = str(service["environment"].get("POSTGRES_INITDB_ARGS", "")).split()
    if not {"--locale-provider=builtin", "--locale=C.UTF-8"} <= set(arguments):
        yield "the order of texts is the image's"
    if "--data-checksums" not in arguments:
        yield "no checksums"
    if "--auth-host=scram-sha-256" not in arguments:
        yield "no password is asked for at 127.0.0.1"


def _kafka(service: Service) -> Iterator[str]:
    environment = service["environment"]
    if environment.get("KAFKA_GC_LOG_OPTS") != "-Xlog:gc=off":
        yield "its garbage collector writes files"
    if not _has_volume(service, "/mnt/shared/config"):
        yield "logs as the image does, to files"
    if not re.fullmatch(r"apache/kafka:\d+\.\d+\.\d+", service["image"]):
        yield "no version"
    if not _has_volume(service, "/var/lib/kafka/data"):
        yield "no volume at /var/lib/kafka/data"
    for name, wanted in {
        "KAFKA_LOG_DIRS": "/var/lib/kafka/data(/.*)?",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_HEAP_OPTS": r".*-Xmx\d+m.*",
        "KAFKA_LOG_CLEANER_DEDUPE_BUFFER_SIZE": r"\d{7}",
        "KAFKA_LOG_SEGMENT_BYTES": r"\d{8}",
        "KAFKA_LOG_RETENTION_MS": r"\d+",
        "KAFKA_LOG_RETENTION_BYTES": r"\d+",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": r"(\d@[\w-]+:9093,?)+",
        "CLUSTER_ID": r"[\w-]{22}",
    }.items():
        if not re.fullmatch(wanted, str(environment.get(name, ""))):
            yield name


def _one_image(services: Mapping[str, Service]) -> Iterator[str]:
    if sum("build" in service for service in services.values()) != 1:
        yield "two containers build"
    image = services["migrate"]["image"]
    for name, service in services.items():
        if service["image"].startswith(OURS) and service["image"] != image:
            yield f"{name}: another image"


def _has_volume(service: Service, target: str) -> bool:
    return any(one.get("target") == target for one in service.get("volumes", []))


def _seconds(text: str) -> float:
    parts = re.findall(r"(\d+)([hms])", text)
    return sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)

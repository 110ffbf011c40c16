"""What deploy/kubernetes.md says is what the code needs: topics, settings, ports, probes and files."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.notifications.settings import NotificationsSettings
from services.participants.settings import ParticipantsSettings
from services.schedule.settings import ScheduleSettings
from shared import settings as shared_settings
from shared.bus import Topic
from shared.bus_kafka_topics import settings_of
from shared.dead_letters import dead_letter_topic
from shared.messages import topic_of
from shared.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "deploy" / "kubernetes.md").read_text(encoding="utf-8")
SETTINGS: Mapping[str, type[Settings]] = {
    "schedule": ScheduleSettings,
    "participants": ParticipantsSettings,
    "notifications": NotificationsSettings,
}


def manifests() -> Iterator[dict[str, Any]]:
    for block in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL):
        yield from yaml.safe_load_all(block)


def of_kind(kind: str) -> list[dict[str, Any]]:
    found = [one for one in manifests() if one["kind"] == kind]
    assert found, f"the document shows no {kind}"
    return found


@pytest.fixture
def deployment() -> dict[str, Any]:
    [found] = of_kind("Deployment")
    return found


def test_each_topic_is_as_the_code_wants_it() -> None:
    for shown in of_kind("KafkaTopic"):
        name, spec = shown["metadata"]["name"], shown["spec"]
        wanted = Topic(
            name=name,
            partitions=1 if name.endswith(".dead-letter") else Settings.model_fields["topic_partitions"].default,
            replication=3,
            min_isr=2,
        )
        assert (spec["partitions"], spec["replicas"]) == (wanted.partitions, wanted.replication)
        assert spec["config"] == settings_of(wanted)


def test_every_kind_of_topic_is_shown_and_all_are_counted() -> None:
    names = {one["metadata"]["name"] for one in of_kind("KafkaTopic")}
    assert names == {
        topic_of("schedule", openly=True),
        topic_of("schedule", openly=False),
        dead_letter_topic("schedule"),
    }
    assert "nine `KafkaTopic`s" in DOCUMENT
    assert all(f"`attache.{name}`" in DOCUMENT for name in ("participants", "notifications"))


def test_each_variable_of_the_deployment_is_a_setting(deployment: dict[str, Any]) -> None:
    name = deployment["metadata"]["name"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    given = {one["name"] for one in container["env"]}
    assert given <= shared_settings._variables(SETTINGS[name])
    needed = {field.upper() for field, info in SETTINGS[name].model_fields.items() if info.is_required()}
    assert all(given & {one, f"{one}_FILE", f"{name.upper()}_{one}"} for one in needed)


def test_ports_and_probes_are_the_services_own(deployment: dict[str, Any]) -> None:
    name, pod = deployment["metadata"]["name"], deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [port] = container["ports"]
    assert port["containerPort"] == SETTINGS[name].model_fields["port"].default
    probes = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert probes == {f"/{name}/healthz"}
    assert pod["enableServiceLinks"] is False, "SCHEDULE_PORT=tcp://... would be refused"


def test_what_is_hardened_in_compose_is_hardened_here(deployment: dict[str, Any]) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["schedule"]
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert user == compose["user"]
    assert container["command"] == compose["command"]
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": compose["read_only"],
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": compose["cap_drop"]},
    }
    assert container["resources"]["limits"]["memory"] == compose["mem_limit"].replace("m", "Mi")
    grace = int(compose["stop_grace_period"].removesuffix("s"))
    assert pod["terminationGracePeriodSeconds"] >= grace + container["lifecycle"]["preStop"]["sleep"]["seconds"]


def test_each_service_has_a_role_and_the_clusters_version_is_ours() -> None:
    [cluster] = of_kind("Cluster")
    assert {role["name"] for role in cluster["spec"]["managed"]["roles"]} == set(SETTINGS)
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]["postgres"]
    major, _, flavour = cluster["spec"]["imageName"].rpartition(":")[2].partition("-")
    assert major == compose["image"].rpartition(":")[2]
    assert flavour, "a tag of the version alone is none that CloudNativePG still builds"

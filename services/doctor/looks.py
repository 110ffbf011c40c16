"""Which checks there are, by the settings that are found: a wrong setting is a line, and the others go on.

Settings are the services' own, prefixed (`SCHEDULE_DATABASE_URL`), or those of a folder that `make run` keeps. Beside
them, lists by commas: DOCTOR_VOLUMES (paths whose room is looked at), DOCTOR_CERTIFICATES and DOCTOR_SECRETS (files).
"""

import asyncio
import json
import logging
import os
import zoneinfo
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import httpx

from services.doctor import answers, certificates, databases, machine, rendering, secrets, topics
from services.doctor.findings import COULD_NOT_LOOK, Check, Finding, code_of, fail, run_all, said
from services.jobs import SETTINGS
from services.surroundings import CannotGoOn
from shared import VERSION
from shared.bus_choice import topic_like
from shared.message_log import MessageLog
from shared.messages import topic_of
from shared.settings import Settings, WrongSetting, load, secret_files
from shared.wiring import topics_of

HEARS: Final[Mapping[str, Sequence[str]]] = {
    "schedule": ("participants",),
    "participants": ("schedule",),
    "notifications": ("schedule", "participants"),
}
"""Whose messages each service consumes."""
ASKS: Final[Mapping[str, Sequence[str]]] = {
    "schedule": ("clock events schedule", "time zones"),
    "participants": ("clock events participants",),
    "notifications": ("clock events notifications", "rendering", "links"),
}
"""Checks that ask a service's database, besides those of its messages."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """The settings that could be read, and a line for each that could not."""

    settings: Mapping[str, Settings]
    wrong: Sequence[Finding] = ()
    volumes: Sequence[Path] = ()
    certificates: Sequence[Path] = ()
    secrets: Sequence[Path] = field(default_factory=list)


def doctor(data: Path | None, *, as_json: bool) -> int:
    """Look, print, and return the exit code of the worst. Raises CannotGoOn, where nothing can be looked at."""
    zoneinfo.reset_tzpath(())  # the pinned tzdata, as in every process of the application
    look = of_folder(data) if data is not None else of_environment()
    if not look.settings:
        lines = "; ".join(one.found for one in look.wrong)
        raise CannotGoOn(f"no service's settings can be read: {lines}")
    logging.getLogger().addHandler(logging.NullHandler())  # a client's own lines: what they say is in the findings
    code, found = looked(look)
    print(said(found, as_json=as_json), flush=True)
    return code


def looked(look: Look) -> tuple[int, list[Finding]]:
    """The code of the worst, and all findings: one line where a database lets nobody in, without its echoes."""
    found = [*look.wrong, *_without_echoes(asyncio.run(_all(look)))]
    return code_of(found), found


def _without_echoes(found: Sequence[Finding]) -> list[Finding]:
    """One line says that a database lets nobody in; what all others that ask it say of that is left out."""
    told = {one.check for one in found}
    closed = [name for name in SETTINGS if f"database {name}" in told and f"schema {name}" not in told]
    return [one for one in found if not any(_asks(one.check, name) for name in closed)]


def _asks(check: str, name: str) -> bool:
    """Whether a check is answered by the database of a service."""
    kind, *about = check.split()
    return check in ASKS.get(name, ()) or (kind in ("relay", "parked", "marks", "lag") and name in about)


def of_environment() -> Look:
    """What the environment says."""
    settings, wrong = _loaded({name: {} for name in SETTINGS})
    return Look(
        settings=settings,
        wrong=wrong,
        volumes=_paths("DOCTOR_VOLUMES"),
        certificates=_paths("DOCTOR_CERTIFICATES"),
        secrets=sorted(_named_secrets()),
    )


def of_folder(data: Path) -> Look:
    """What a folder of `make run` says, while that runs. Raises CannotGoOn."""
    try:
        base = json.loads((data / "run.json").read_text(encoding="utf-8"))["base"]
        way = _way(data)
        port = int((data / "postgres" / "port").read_text())
        kept = {one.name: one.read_text(encoding="utf-8").strip() for one in (data / "secrets").iterdir()}
    except (OSError, ValueError, KeyError) as error:
        raise CannotGoOn(f"{data}: nothing runs on this folder ({type(error).__name__}): start make run") from error

    def url(role: str) -> str:
        return f"postgresql+asyncpg://{role}:{kept.get(f'database-{role}', '')}@127.0.0.1:{port}/{role}"

    common: dict[str, object] = {
        **way,
        "bus_url": url("bus"),
        "service_token": kept.get("token-services", ""),
        "tokens_file": data / "tokens",
        **{f"{name}_url": base for name in ("public", *SETTINGS)},
    }
    settings, wrong = _loaded({name: {**common, "database_url": url(name)} for name in SETTINGS})
    return Look(
        settings=settings,
        wrong=wrong,
        volumes=[data, *_paths("DOCTOR_VOLUMES")],
        certificates=_paths("DOCTOR_CERTIFICATES"),
        secrets=sorted({*(data / "secrets" / name for name in kept), *_named_secrets()}),
    )


def _way(data: Path) -> dict[str, object]:
    """The settings of its bus. An earlier program, which still runs, wrote none: there the environment says them."""
    try:
        way: dict[str, object] = json.loads((data / "bus.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return way


def _loaded(given: Mapping[str, Mapping[str, object]]) -> tuple[dict[str, Settings], list[Finding]]:
    settings, wrong = {}, []
    for name, values in given.items():
        try:
            settings[name] = load(SETTINGS[name], **values)
        except WrongSetting as error:
            do = "deploy/SETTINGS.md says what it is"
            wrong += [fail(f"settings {name}", one, do) for one in str(error).split("; ")]
    return settings, wrong


def _named_secrets() -> set[Path]:
    """The files that the environment names."""
    return {path for each in SETTINGS.values() for path in secret_files(each)} | {*_paths("DOCTOR_SECRETS")}


def _paths(variable: str) -> list[Path]:
    return [Path(one.strip()) for one in os.environ.get(variable, "").split(",") if one.strip()]


async def _all(look: Look) -> list[Finding]:
    # proxies of the environment are passed over: these are our own addresses
    async with httpx.AsyncClient(trust_env=False, timeout=5.0) as client:
        return await run_all({**_of_machine(look), **_of_services(look, client), **_of_messages(look, client)})


def _of_machine(look: Look) -> dict[str, Check]:
    one = next(iter(look.settings.values()))
    checks: dict[str, Check] = {
        "program": partial(machine.program, VERSION, list(SETTINGS)),
        "clock kernel": machine.kernel_clock,
        "tokens": partial(secrets.tokens, one.tokens_file),
        "secrets": partial(secrets.secret_files, look.secrets, _trusted(look)),
        "certificate PUBLIC_URL": partial(certificates.of_address, one.public_url),
    }
    if one.bus == "kafka" and one.kafka_security.by_tls and one.kafka_bootstrap is not None:
        checks["certificate KAFKA_BOOTSTRAP"] = partial(certificates.of_brokers, one.kafka_bootstrap)
        if one.kafka_cert_file is not None:
            checks["certificate KAFKA_CERT_FILE"] = partial(certificates.of_file, one.kafka_cert_file)
    checks |= {f"disk {path}": partial(machine.disk, path) for path in look.volumes}
    return checks | {f"certificate {path}": partial(certificates.of_file, path) for path in look.certificates}


def _trusted(look: Look) -> list[Path]:
    """Files by which somebody is let in or believed; what stands in them other checks look at."""
    named = {
        path
        for one in look.settings.values()
        for path in (one.tokens_file, one.kafka_ca_file, one.kafka_cert_file, one.kafka_key_file)
        if path is not None
    }
    return sorted(named)


def _of_services(look: Look, client: httpx.AsyncClient) -> dict[str, Check]:
    checks: dict[str, Check] = {}
    for name, settings in look.settings.items():
        url = settings.database_url.get_secret_value()
        checks |= {
            f"database {name}": partial(databases.server, name, url),
            f"clock events {name}": partial(databases.newest_event, name, url),
            f"service {name}": partial(answers.service, client, name, getattr(settings, f"{name}_url")),
            f"relay {name}": partial(databases.relay, name, url),
            f"parked {name}": partial(databases.parked, name, url),
        }
        if name == "schedule":
            checks["time zones"] = partial(databases.time_zones, url)
        if name == "notifications":
            checks |= {"rendering": partial(rendering.rendering, url), "links": partial(rendering.links, url)}
    return checks


def _of_messages(look: Look, client: httpx.AsyncClient) -> dict[str, Check]:
    checks: dict[str, Check] = {"topics": partial(_topics, look)}
    for name, settings in look.settings.items():
        url, token = settings.database_url.get_secret_value(), settings.service_token.get_secret_value()
        for producer in HEARS[name]:
            log = MessageLog(client=client, service=producer, base=getattr(settings, f"{producer}_url"), token=token)
            topic = topic_of(producer, openly=False)
            checks[f"marks {name} of {producer}"] = partial(answers.heads, log, topic, name, url)
            if producer in look.settings:
                theirs = look.settings[producer].database_url.get_secret_value()
                checks[f"lag {name} of {producer}"] = partial(databases.lag, name, url, producer, theirs, topic)
    return checks


async def _topics(look: Look) -> Sequence[Finding]:
    one = next(iter(look.settings.values()))
    wanted = [topic for name, each in look.settings.items() for topic in topics_of(name, topic_like(each))]
    if one.bus == "kafka" and one.kafka_bootstrap is not None:
        return await topics.on_kafka(one.kafka_bootstrap, wanted, one.kafka_security)
    assert one.bus_url is not None
    return await topics.on_local_bus(one.bus_url.get_secret_value(), wanted)


__all__ = ["COULD_NOT_LOOK", "doctor"]

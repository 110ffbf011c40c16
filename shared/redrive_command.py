"""`python -m services.<name> redrive`: what it can be told, what it says, and its exit codes for cron.

0: nothing that was chosen is parked (any more). 1: something still is. 2: it could not be done, which one line says.
"""

import argparse
import difflib
import json
import sys
import time
from dataclasses import asdict
from datetime import datetime
from typing import Any

from shared.dropping import LONGEST, Dropped, Dropping
from shared.redrive import Parked, Redrive, Selection, Tried, parked
from shared.service import Service

CLEAR, STILL_PARKED, NOT_DONE = 0, 1, 2
TOLD_SECONDS = 2.0
"""From one line of progress to the next."""


class WrongRedrive(Exception):
    """It was told something that cannot be done; the text is one readable line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `redrive` can be told."""
    chosen = parser.add_argument_group("which keys", "those of which one parked message fits all that is given")
    chosen.add_argument("--key", help="the partition key: the trip")
    chosen.add_argument("--topic", help="such as attache.schedule.cleared")
    chosen.add_argument("--type", help="such as MeetingScheduled")
    chosen.add_argument("--since", type=_instant, metavar="INSTANT", help="parked then or later: 2026-11-25T04:00:00Z")
    chosen.add_argument("--until", type=_instant, metavar="INSTANT", help="parked before that")
    parser.add_argument("--dry-run", action="store_true", help="only say what is parked, and change nothing")
    parser.add_argument("--json", action="store_true", help="one document on standard output, for machines")
    dropped = parser.add_argument_group("give up one message", "for good: its key goes on without it")
    dropped.add_argument("--skip", metavar="ID", help="the message, as --dry-run and the dead letter name it")
    dropped.add_argument("--reason", type=_text, help="why, kept with it")
    dropped.add_argument("--by", type=_text, metavar="NAME", help="who stands for it, kept with it")


async def redrive(service: Service, told: argparse.Namespace) -> int:
    """Carry it out on a service that does not run; returns the exit code. Raises `WrongRedrive`, `CannotDrop`."""
    _check(service, told)
    if told.skip is not None:
        return await _skip(service, told)
    selection = Selection(key=told.key, topic=told.topic, type=told.type, since=told.since, until=told.until)
    chosen = await parked(service.engine, selection)
    if told.dry_run:
        _say(service.name, told, [_shown(one) for one in chosen], [_line(one) for one in chosen])
        _sum_up(service.name, told, f"{len(chosen)} keys are parked, nothing was changed")
        return STILL_PARKED if chosen else CLEAR
    tried = await _try(service.name, Redrive(service.engine, service.healer.keys), chosen)
    left = [one for one in tried if one.left]
    shown = [{**_shown(one.left or one.was), "taken": one.left is None, "why": one.why} for one in tried]
    _say(service.name, told, shown, [_tried_line(one) for one in tried])
    _sum_up(service.name, told, f"{len(tried) - len(left)} keys go on, {len(left)} are still parked")
    return STILL_PARKED if left else CLEAR


def _check(service: Service, told: argparse.Namespace) -> None:
    topics = sorted(topic.name for topic in service.consumer.topics)
    if told.topic is not None and told.topic not in topics:
        raise WrongRedrive(f"{service.name} does not hear the topic {told.topic!r}: it is one of {', '.join(topics)}")
    types = sorted({name.rpartition(".")[0] for name in service.consumer.taking.apply})
    if told.type is not None and told.type not in types:
        near = difflib.get_close_matches(told.type, types, 1)
        hint = f"did you mean {near[0]}?" if near else f"such as {types[0]}"
        raise WrongRedrive(f"{service.name} hears no messages of the type {told.type!r}: {hint}")
    if told.since and told.until and told.since >= told.until:
        raise WrongRedrive("--since has to be before --until")
    if told.skip is None and (told.reason or told.by):
        raise WrongRedrive("--reason and --by go with --skip")
    if told.skip is not None:
        _check_skip(told)


def _check_skip(told: argparse.Namespace) -> None:
    if any(one is not None for one in (told.key, told.type, told.since, told.until)):
        raise WrongRedrive("--skip names one message: beside it only --topic chooses")
    if told.reason is None or told.by is None:
        raise WrongRedrive("--skip gives a message up for good: say why with --reason and who with --by")


async def _try(name: str, redriving: Redrive, chosen: list[Parked]) -> list[Tried]:
    tried: list[Tried] = []
    due = time.monotonic() + TOLD_SECONDS
    async for one in redriving.each(chosen):
        tried.append(one)
        if time.monotonic() > due:
            due = time.monotonic() + TOLD_SECONDS
            print(f"{name}: {len(tried)} of {len(chosen)} keys tried", file=sys.stderr, flush=True)
    return tried


async def _skip(service: Service, told: argparse.Namespace) -> int:
    taking, keys = service.consumer.taking, service.healer.keys
    dropping = Dropping(engine=service.engine, taking=taking, keys=keys, by=told.by or "", reason=told.reason or "")
    if told.dry_run:
        found = await dropping.look(told.skip, told.topic)
        one = Dropped(**{name: found[name] for name in ("topic", "key", "sequence", "type")})
    else:
        one = await dropping.drop(told.skip, told.topic)
    left = [] if one.sequence is None else await parked(service.engine, Selection(key=one.key, topic=one.topic))
    left = [] if told.dry_run else [other for other in left if not other.unread]
    what = f"{told.skip} ({one.type or 'unread'}, {one.topic} key {one.key[:80]!r})"
    _say(service.name, told, [{**asdict(one), "id": told.skip}], [])
    _sum_up(service.name, told, f"{'would drop' if told.dry_run else 'dropped'} {what} for good")
    for other in left:
        _sum_up(service.name, told, f"the key is still parked: {_line(other)}")
    return STILL_PARKED if left or told.dry_run else CLEAR


def _say(name: str, told: argparse.Namespace, shown: list[dict[str, Any]], lines: list[str]) -> None:
    if told.json:
        print(json.dumps({"service": name, "dry_run": told.dry_run, "keys": shown}, ensure_ascii=False))
        return
    for line in lines:
        print(f"{name}: {line}")


def _sum_up(name: str, told: argparse.Namespace, line: str) -> None:
    # beside a document the sum is for people, who may read it on the other stream
    print(f"{name}: {line}", file=sys.stderr if told.json else sys.stdout)


def _shown(one: Parked) -> dict[str, Any]:
    return {
        "topic": one.topic,
        "key": one.key,
        "messages": one.messages,
        "id": one.name,
        "type": one.type,
        "slug": one.slug,
        "attempts": one.attempts,
        "parked_at": one.since.isoformat(),
    }


def _line(one: Parked) -> str:
    """Never a body, a header or an error's text: those hold what the trip is about."""
    return (
        f"{one.topic} key {one.key[:80]!r}: {one.messages} messages since {one.since:%Y-%m-%dT%H:%M:%SZ}, "
        f"the first is {one.type or 'unread'} {one.name[:80]}: {one.slug}, {one.attempts} attempts"
    )


def _tried_line(one: Tried) -> str:
    if one.left is None:
        return f"{one.was.topic} key {one.was.key[:80]!r}: {one.was.messages} messages, none is parked any more"
    return _line(one.left) + (f" ({one.why})" if one.why else "")


def _instant(said: str) -> datetime:
    try:
        instant = datetime.fromisoformat(said)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{said!r} is no instant: it is such as 2026-11-25T04:00:00Z") from error
    if instant.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{said!r} has no offset: an instant is such as 2026-11-25T04:00:00Z")
    return instant


def _text(said: str) -> str:
    if not said.strip() or len(said) > LONGEST or not said.isprintable():
        raise argparse.ArgumentTypeError(f"one line is needed, of 1 to {LONGEST} characters")
    return said.strip()

"""Writes the tables of README.md and deploy/SETTINGS.md from the code: `python -m deploy.docs`; `check` only compares.

What stands between `<!-- name -->` and `<!-- /name -->` is replaced; everything else is written by people.
"""

import sys
from pathlib import Path

from services.notifications.settings import NotificationsSettings
from services.participants.settings import ParticipantsSettings
from services.schedule.settings import ScheduleSettings
from shared import contracts
from shared.contracts.values import Message
from shared.messages import topic_of
from shared.problems import STATUS
from shared.settings import table

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "deploy/SETTINGS.md")


def main(arguments: list[str]) -> int:
    """Returns the exit code: with `check`, 1 if a document is behind the code."""
    behind = 0
    for name in DOCUMENTS:
        before = (ROOT / name).read_text(encoding="utf-8")
        after = written(before)
        if before != after and arguments == ["check"]:
            print(f"{name} is behind the code: run python -m deploy.docs", file=sys.stderr)
            behind = 1
        elif before != after:
            (ROOT / name).write_text(after, encoding="utf-8")
    return behind


def written(text: str) -> str:
    """A document's text with those tables that it has as the code has them now."""
    for name, table_of in {"events": events, "settings": settings, "refusals": refusals}.items():
        head, tail = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if head in text:
            before, _, rest = text.partition(head)
            text = before + head + table_of() + tail + rest.partition(tail)[2]
    return text


def events() -> str:
    """The types of messages by topic and thing."""
    lines = ["| topic | about | types (`attache.<type>.v1`) |\n", "|---|---|---|\n"]
    for service, models in {
        "schedule": contracts.SCHEDULE,
        "participants": contracts.PARTICIPANTS,
        "notifications": contracts.NOTIFICATIONS,
    }.items():
        by_thing: dict[str, list[str]] = {}
        for model in models:
            by_thing.setdefault(_thing(model), []).append(f"`{model.__name__}`")
        for thing, types in by_thing.items():
            lines.append(f"| `{topic_of(service, openly=True)}` | {thing} | {', '.join(types)} |\n")
    return "".join(lines)


def settings() -> str:
    """Every setting with its default, a tuple's parts by commas."""
    lines = ["| variable | default | what it says |\n", "|---|---|---|\n"]
    for setting in table(ScheduleSettings, ParticipantsSettings, NotificationsSettings):
        default = "needed" if setting.default is None else f"`{setting.default}`" if setting.default else ""
        lines.append(f"| `{setting.variable}` | {default} | {setting.description} |\n")
    return "".join(lines)


def refusals() -> str:
    """The slugs by status."""
    by_status: dict[int, list[str]] = {}
    for slug, status in STATUS.items():
        by_status.setdefault(status, []).append(f"`{slug}`")
    rows = [f"| {status} | {', '.join(slugs)} |\n" for status, slugs in sorted(by_status.items())]
    return "".join(["| status | slugs |\n", "|---|---|\n", *rows])


def _thing(model: type[Message]) -> str:
    """What a message tells of, which is what its module is named after."""
    return model.__module__.rpartition(".")[2].replace("_", " ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Writes the tables of README.md from the code: `python -m deploy.docs`; with `check` it only compares.

What stands between `<!-- name -->` and `<!-- /name -->` is replaced; everything else is written by people.
"""

import sys
from pathlib import Path

from services.notifications.settings import NotificationsSettings
from services.participants.settings import ParticipantsSettings
from services.schedule.settings import ScheduleSettings
from shared import contracts
from shared.messages import topic_of
from shared.problems import STATUS
from shared.settings import table

README = Path(__file__).resolve().parent.parent / "README.md"


def main(arguments: list[str]) -> int:
    """Returns the exit code: with `check`, 1 if README.md is behind the code."""
    before = README.read_text(encoding="utf-8")
    after = written(before)
    if arguments == ["check"]:
        if before != after:
            print("README.md is behind the code: run python -m deploy.docs", file=sys.stderr)
        return int(before != after)
    README.write_text(after, encoding="utf-8")
    return 0


def written(text: str) -> str:
    """README's text with its tables as the code has them now."""
    for name, content in {"events": events(), "settings": settings(), "refusals": refusals()}.items():
        head, tail = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, _, rest = text.partition(head)
        text = before + head + content + tail + rest.partition(tail)[2]
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
    """Every setting with its default."""
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


_THINGS: dict[type, str] = {
    contracts.StopMessage: "stop",
    contracts.MovementMessage: "movement",
    contracts.MeetingMessage: "meeting",
    contracts.MemberMessage: "member",
    contracts.DelegationMessage: "delegation",
    contracts.FeedLinkMessage: "feed link",
}


def _thing(model: type[contracts.Message]) -> str:
    return next((_THINGS[base] for base in model.__mro__ if base in _THINGS), "trip")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

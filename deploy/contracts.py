"""The contract in files, for other systems: `python -m deploy.contracts` writes schemas/ anew, `check` changes nothing.

`check` fails if a file differs from what `shared.contracts` says now, or if a promise to readers is broken
(`deploy.promises`). Writing adds to the promises what is new; it never takes one back.
"""

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

from deploy.asyncapi import asyncapi
from deploy.promises import Promises, broken, promise
from deploy.schemas import Schema, envelope_schema, is_marked, message_schema, type_of
from shared.contracts import SERVICES
from shared.contracts.parked import MessageParked
from shared.contracts.values import Value
from shared.dead_letters import dead_letter_topic
from shared.messages import topic_of

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "schemas"
PROMISES = "promises.json"

MODELS: tuple[type[Value], ...] = (*(cls for classes in SERVICES.values() for cls in classes), MessageParked)


def main(arguments: list[str]) -> int:
    """Without arguments, write; `check` returns 1 if something is wrong and prints what."""
    folder = ROOT / FOLDER
    if arguments == ["check"]:
        problems = find_problems(folder)
        for problem in problems:
            print(problem, file=sys.stderr)
        return 1 if problems else 0
    for line in (lines := broken(_promised(folder), _given())):
        print(line, file=sys.stderr)
    if not lines:
        write(folder)
    return 1 if lines else 0


def write(folder: Path) -> None:
    """Every file anew; what is not one of them goes."""
    wanted = files(_promised(folder))
    for stale in _present(folder) - wanted.keys():
        (folder / stale).unlink()
    for name, text in wanted.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def find_problems(folder: Path) -> list[str]:
    """What is wrong with the files in a folder, a line each; empty when all is well."""
    promised = _promised(folder)
    lines = broken(promised, _given())
    wanted = files(promised)
    for name in sorted(wanted.keys() | _present(folder)):
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != wanted.get(name):
            lines.append(f"{FOLDER}/{name} is not what shared/contracts says: run make contracts")
    return lines


def files(promised: Promises) -> dict[str, str]:
    """The text of each file by its path in the folder. What was promised stands first, what is new joins it."""
    names = {type_of(model): f"messages/{type_of(model)}.json" for model in MODELS}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    documents: dict[str, Any] = {
        **{names[type_of(model)]: message_schema(model) for model in MODELS},
        "envelope.json": envelope_schema(),
        "asyncapi.json": asyncapi(version, names),
        PROMISES: {name: {**fields, **promised.get(name, {})} for name, fields in {**promised, **_given()}.items()},
    }
    texts = {name: json.dumps(value, indent=2, ensure_ascii=False) + "\n" for name, value in documents.items()}
    return {"README.md": f"{_README}{events_table()}\n", **texts}


def events_table() -> str:
    """The table of events, in Markdown: a table for each service, a line for each type."""
    blocks = []
    for service, classes in SERVICES.items():
        topics = f"`{topic_of(service, openly=True)}` (open) and `{topic_of(service, openly=False)}`"
        blocks += [f"**{service}** sends to {topics}:", "", *_HEAD, *(_line(cls) for cls in classes), ""]
    dead = ", ".join(f"`{dead_letter_topic(service)}`" for service in SERVICES)
    blocks += [f"**Each service** sends to its own of {dead}:", "", *_HEAD, _line(MessageParked), "", _LEGEND]
    return "\n".join(blocks)


_README = """\
# Messages

Made from shared/contracts by `make contracts`; `make check` compares. `asyncapi.json` describes topics and messages,
`messages/` has a JSON Schema for each type and version, `envelope.json` one for the message log's CloudEvents,
`promises.json` what readers may rely on for ever. Examples stand in tests/contracts/examples.

"""
_HEAD = ("| type | when | fields |", "|---|---|---|")
_LEGEND = (
    "In *italics*: on the cleared topic alone. With `?`: only if it changed. `was` has the old values of what changed."
)


def _line(model: type[Value]) -> str:
    schema = message_schema(model)
    fields = [_shown(name, field, schema) for name, field in schema["properties"].items() if name != "trip"]
    return f"| `{type_of(model)}` | {schema['description']} | {', '.join(fields)} |"


def _shown(name: str, field: Schema, schema: Schema) -> str:
    if is_marked(field):
        return f"*{name}{'?' if 'was' in schema['properties'] else ''}*"
    return name if name in schema["required"] else f"{name}?"


def _given() -> dict[str, dict[str, str]]:
    return {type_of(model): promise(message_schema(model)) for model in MODELS}


def _promised(folder: Path) -> Promises:
    path = folder / PROMISES
    promised: Promises = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return promised


def _present(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

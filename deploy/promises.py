"""What was promised to readers of the messages, and whether it is kept.

Topics keep everything, so an old reader meets new messages and a new reader old ones. A promise, once written to
schemas/promises.json, therefore stands: no field goes, none changes its type, its audience or whether it is always
there, and what is added to a message is optional. Anything else is a new version of the type.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from deploy.schemas import Schema

Promises = Mapping[str, Mapping[str, str]]
"""By type, then by path ("venue.geo"; "topics[]"), what a reader may rely on."""


def promise(schema: Schema) -> dict[str, str]:
    """What one message's schema promises, by path."""
    return dict(_fields("", schema, schema.get("definitions", {})))


def broken(promised: Promises, given: Promises) -> list[str]:
    """What of the promises is not kept, a line each."""
    lines = []
    for name, fields in promised.items():
        if name not in given:
            lines.append(f"{name} is not sent any more")
            continue
        for path, what in fields.items():
            now = given[name].get(path)
            if now is None:
                lines.append(f"{name}: {path} is gone")
            elif now != what:
                lines.append(f"{name}: {path} was {what}, and is {now}")
        lines += [f"{name}: {path} is new and required" for path in _new_and_required(fields, given[name])]
    return lines


def _new_and_required(promised: Mapping[str, str], given: Mapping[str, str]) -> list[str]:
    """Messages of the past lack such a field. Inside a part that is new itself it may be required."""
    new = [path for path in given if path not in promised]
    return [path for path in new if given[path].startswith("always") and _parent(path) not in new]


def _parent(path: str) -> str:
    return path.rpartition(".")[0].removesuffix("[]")


def _fields(prefix: str, schema: Schema, definitions: Mapping[str, Schema]) -> Iterator[tuple[str, str]]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        audience = {None: "", True: ", cleared"}.get(mark := field.get("x-above-delegation"), f", cleared {mark}")
        yield path, f"{'always' if name in required else 'maybe'} {_type(field, definitions)}{audience}"
        for part in _objects(field, definitions):
            yield from _fields(f"{path}.", part, definitions)


def _type(field: Schema, definitions: Mapping[str, Schema]) -> str:
    whole = _resolved(field, definitions)
    if "anyOf" in whole:
        return " | ".join(sorted(_type(choice, definitions) for choice in whole["anyOf"]))
    if whole.get("type") == "array":
        length = f" {whole['minItems']}..{whole['maxItems']}" if "maxItems" in whole else ""
        return f"[{_type(whole['items'], definitions)}]{length}"
    rules = [str(whole[name]) for name in ("format", "pattern", "const") if name in whole]
    return " ".join([whole.get("type", "anything"), *rules])


def _objects(field: Schema, definitions: Mapping[str, Schema]) -> Iterator[Schema]:
    whole = _resolved(field, definitions)
    for choice in (*whole.get("anyOf", ()), *([whole["items"]] if "items" in whole else ())):
        yield from _objects(choice, definitions)
    if "properties" in whole:
        yield whole


def _resolved(field: Schema, definitions: Mapping[str, Schema]) -> dict[str, Any]:
    return definitions[field["$ref"].rpartition("/")[2]] if "$ref" in field else field

"""A trip file: the plan, then dated commands of what happened, read into the steps that play it.

    plan:                           every thing with an external id, unique in the file
      trip: {id, title, ...}
      delegations: [{id, name, kind, members: [{id, function, personal}]}]
      stops, movements, meetings, feed_links: [...]
    happened:
      - {step: 1, when: 2023-11-01 12:00 -04:00, command: AnnounceTrip}
      - {step: 2, when: ..., command: RescheduleMeeting, meeting: tokyo-foreign-minister, start: 2023-11-07 18:25}

Fields are the API's own (`trip_commands`). A thing is named by its external id, and only after it was declared. The
whole file is checked before anything is sent; a fault names the file and the line.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import yaml
from yaml import MappingNode, Node

from services.demo.trip_clocks import Clocks, ClockWrong
from services.demo.trip_commands import FORMS, Form
from services.demo.trip_fields import (
    Reader,
    Ref,
    Shape,
    TripFileWrong,
    Value,
    choice,
    external_id,
    instant,
    items,
    keyed,
    line_of,
    ref,
    text,
    wrong,
)

DEMO = Path(__file__).with_name("secretary-of-state-2023-11.yaml")
"""The trip that everything is shown on."""

_COMMAND = choice(*(name for name in FORMS if name != "PlanTrip"))
_PLANNED = {
    "stops": "AddStop",
    "movements": "AddMovement",
    "meetings": "ScheduleMeeting",
    "feed_links": "IssueFeedLink",
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command. `key` names it within a load, for good: `plan:<external id>`, or the number of what happened."""

    key: str
    line: int
    command: str
    when: datetime | None
    """When it happened (aware); None in the plan."""
    target: Ref | None
    """The thing that it is posted to; None for a new trip."""
    makes: Ref | None
    """The thing that it brings into being."""
    body: Mapping[str, Value]
    """What is posted, with `Ref`s where ids will stand."""
    lines: Mapping[str, int] = field(default_factory=dict, compare=False, repr=False)
    """The line of each key."""


@dataclass(frozen=True, kw_only=True)
class TripFile:
    """A trip file that holds: every step can be sent, in this order."""

    name: str
    """As it was given, for messages."""
    id: str
    """The external id of the trip."""
    title: str
    steps: tuple[Step, ...]

    @property
    def plan(self) -> tuple[Step, ...]:
        """What was planned before anything happened."""
        return tuple(step for step in self.steps if step.when is None)

    @property
    def happened(self) -> tuple[Step, ...]:
        """What happened, in its order."""
        return tuple(step for step in self.steps if step.when is not None)


def read_trip_file(path: Path) -> TripFile:
    """Reads and checks a whole file. Raises TripFileWrong, and OSError where it can't be read."""
    content = path.read_bytes()
    root = _compose(content, path.name)
    sections = keyed(root, ("plan",), ("happened",))
    reading = _Reading(path.name)
    trip = reading.read_plan(sections["plan"])
    if "happened" in sections:
        reading.read_happened(sections["happened"])
    return TripFile(
        name=path.name,
        id=trip.makes.id if trip.makes else "",
        title=str(trip.body["title"]),
        steps=tuple(reading.steps),
    )


def refs_in(value: Value) -> Iterator[Ref]:
    """The things that a value names, however deep."""
    match value:
        case Ref():
            yield value
        case Mapping():
            for each in value.values():
                yield from refs_in(each)
        case tuple():
            for each in value:
                yield from refs_in(each)


class _Reading:
    """The steps so far, and what they have declared."""

    def __init__(self, name: str) -> None:
        self.steps: list[Step] = []
        self._name = name
        self._declared: dict[str, Ref] = {}
        self._clocks = Clocks()

    def read_plan(self, node: Node) -> Step:
        """Appends the steps of the plan; gives the first one, the trip's."""
        sections = keyed(node, ("trip",), ("delegations", *_PLANNED))
        trip = self._take(sections["trip"], "PlanTrip")
        if "delegations" in sections:
            for each in items(sections["delegations"]):
                self._read_delegation(each)
        for name, command in _PLANNED.items():
            for each in items(sections[name]) if name in sections else ():
                self._take(each, command)
        return trip

    def _read_delegation(self, node: Node) -> None:
        roster, rest = _split(node, "members")
        delegation = self._take(rest, "RegisterDelegation").makes
        for members in keyed(roster, (), ("members",)).values():
            for member in items(members):
                self._take(member, "AddMember", target=delegation)

    def read_happened(self, node: Node) -> None:
        """Appends what happened: numbers rise, and time does not go back."""
        number, when = 0, datetime.min.replace(tzinfo=UTC)
        for each in items(node):
            head, rest = _split(each, "step", "when", "command")
            values = keyed(head, ("step", "when", "command"))
            before, number = number, _number(values["step"])
            if number <= before:
                raise wrong(values["step"], f"step {number} after step {before}: the numbers have to rise")
            earlier, when = when, datetime.fromisoformat(instant(values["when"]))
            if when < earlier:
                raise wrong(values["when"], f"step {number} is dated before the step above it")
            self._take(rest, _COMMAND(values["command"]), number=number, when=when)

    def _take(
        self,
        node: Node,
        command: str,
        *,
        target: Ref | None = None,
        number: int | None = None,
        when: datetime | None = None,
    ) -> Step:
        form = FORMS[command]
        values = _shape(form, named_target=target is None)(node)
        makes = Ref(form.makes, str(values.pop("id")), line_of(node)) if form.makes else None
        if form.target == "trip":
            target = self.steps[0].makes
        elif form.target and target is None:
            named = values.pop(form.target)
            target = named if isinstance(named, Ref) else None
        if form.patch and not values:
            raise wrong(node, f"{command} says nothing: it takes {', '.join(form.optional)}")
        key = str(number) if number is not None else f"plan:{makes.id}" if makes else ""
        lines = {str(name.value): line_of(name) for name, _ in node.value}
        step = Step(
            key=key,
            line=line_of(node),
            command=command,
            when=when,
            target=target,
            makes=makes,
            body=values,
            lines=lines,
        )
        self._add(step)
        return step

    def _add(self, step: Step) -> None:
        for named in (*refs_in(step.target), *refs_in(step.body)):
            if self._declared.get(named.id) != named:
                raise TripFileWrong(self._name, named.line, self._missing(named))
        if step.makes:
            if first := self._declared.get(step.makes.id):
                line = step.lines.get("id", step.line)
                raise TripFileWrong(self._name, line, f"{first.id!r} is already a {first.kind} (line {first.line})")
            self._declared[step.makes.id] = step.makes
        thing = step.makes or step.target
        if thing and thing.kind in ("stop", "movement", "meeting"):
            try:
                self._clocks.follow(thing, step.body)
            except ClockWrong as fault:
                line = step.lines.get(fault.field, step.line)
                raise TripFileWrong(self._name, line, fault.problem) from None
        self.steps.append(step)

    def _missing(self, named: Ref) -> str:
        other = self._declared.get(named.id)
        if other:
            return f"{named.id!r} is a {other.kind}, and a {named.kind} is expected here"
        return f"no {named.kind} {named.id!r} was declared before this line"


def _compose(content: bytes, name: str) -> Node:
    try:
        loader = yaml.SafeLoader(content.decode())
        loader.name = name
        root = loader.get_single_node()
    except UnicodeDecodeError as fault:
        raise TripFileWrong(name, content.count(b"\n", 0, fault.start) + 1, "this is not UTF-8 text") from None
    except yaml.MarkedYAMLError as fault:
        mark = fault.problem_mark or fault.context_mark
        raise TripFileWrong(name, mark.line + 1 if mark else 1, f"no YAML: {fault.problem}") from None
    except yaml.YAMLError as fault:
        raise TripFileWrong(name, 1, f"no YAML: {' '.join(str(fault).split())}") from None
    if root is None:
        raise TripFileWrong(name, 1, "the file is empty")
    return root


def _shape(form: Form, *, named_target: bool) -> Shape:
    required: dict[str, Reader] = {"id": external_id} if form.makes else {}
    if named_target and form.target and form.target != "trip":
        required[form.target] = ref(form.target)
    return Shape(required={**required, **form.required}, optional=form.optional)


def _split(node: Node, *names: str) -> tuple[Node, Node]:
    """A mapping as two: what stands under these names, and all the rest."""
    if not isinstance(node, MappingNode):
        raise wrong(node, "keys with values are expected here")
    named = [pair for pair in node.value if pair[0].value in names]
    others = [pair for pair in node.value if pair[0].value not in names]
    marks = node.start_mark, node.end_mark
    return MappingNode(node.tag, named, *marks), MappingNode(node.tag, others, *marks)


def _number(node: Node) -> int:
    written = text(node)
    if not written.isdecimal() or not 0 < int(written) < 1_000_000:
        raise wrong(node, f"{written!r} is no number of a step")
    return int(written)

"""Commands, events, states and the values in them are facts: nobody changes one, and every field is named."""

import dataclasses
from types import ModuleType

import pytest

from services.notifications import feed_link
from services.participants import delegation, member
from services.schedule import meeting, movement, stay, stop, trip, venue, wall_time

MODULES = [trip, stop, stay, movement, meeting, venue, wall_time, delegation, member, feed_link]


def values(module: ModuleType) -> list[type]:
    own = [thing for thing in vars(module).values() if isinstance(thing, type) and thing.__module__ == module.__name__]
    return [thing for thing in own if dataclasses.is_dataclass(thing)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_value_is_frozen_and_names_its_fields(module: ModuleType) -> None:
    assert values(module)
    for value in values(module):
        with pytest.raises(TypeError):
            value(*range(len(dataclasses.fields(value))))
        blank: object = object.__new__(value)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(blank, dataclasses.fields(value)[0].name, None)

"""The table of a trip file's commands against the API: a command, an address or a field that one of them lacks."""

import re
from typing import Any

import pytest
from fastapi.routing import APIRoute

from services.demo.trip_commands import FORMS
from services.notifications.api import router as notifications
from services.participants.api import router as participants
from services.schedule.api import router as schedule

POSTS = {
    str(route.summary): route
    for router in (schedule, participants, notifications)
    for route in router.routes
    if isinstance(route, APIRoute) and "POST" in (route.methods or ())
}
NOT_IN_A_FILE = {"id", "person"}
"""Ids are the API's to give."""


def test_every_command_of_the_api_can_stand_in_a_trip_file() -> None:
    assert {name: re.sub(r"\{\w+\}", "{}", route.path) for name, route in POSTS.items()} == {
        name: form.path for name, form in FORMS.items()
    }


@pytest.mark.parametrize("name", FORMS)
def test_command_takes_the_fields_that_the_api_takes(name: str) -> None:
    form = FORMS[name]
    fields = _fields(POSTS[name])

    assert {*form.required, *form.optional} == fields.keys() - NOT_IN_A_FILE
    assert {field for field, required in fields.items() if required} <= form.required.keys()


def _fields(route: APIRoute) -> dict[str, bool]:
    """The fields of a route's body by their names in JSON, each with whether it must be there."""
    body: Any = route.body_field and route.body_field.field_info.annotation
    schema = body.model_json_schema(by_alias=True) if body else {}
    return {name: name in schema.get("required", ()) for name in schema.get("properties", {})}

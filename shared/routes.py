"""What the command routes of every service share: the desk, the planner's call, and an answer as a response."""

import json
from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from shared.call import Call, needs, reads
from shared.command import Answer, Desk
from shared.http import answer


async def _desk_of(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


Planner = Annotated[Call, needs("planner")]
Reader = Annotated[Call, reads()]
At = Annotated[Desk, Depends(_desk_of)]
"""The desk at which this app's commands are carried out."""


def response(given: Answer, address: str) -> Response:
    """The answer over HTTP; what is new is found at `address`.

    When a key gives the first answer again, the thing has the id of then, and not one that was made at the route now.
    """
    made = f"{address.rpartition('/')[0]}/{json.loads(given.body)['id']}" if given.status == 201 else None
    return answer(given.body, status=given.status, etag=given.etag, location=made)

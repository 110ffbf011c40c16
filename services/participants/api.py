"""The participants' commands over HTTP: a body becomes a command, the rules decide, and the thing is the answer."""

from typing import Any
from uuid import UUID, uuid4

from fastapi import APIRouter
from starlette.responses import Response

from services.participants import delegation as delegations
from services.participants import member as members
from services.participants import shapes
from services.participants.projections import DELEGATION, MEMBER, MODELS, check_trip
from shared.call import Call
from shared.command import Answer, Desk, Transaction, answer_with
from shared.openapi import COMMAND, problems
from shared.routes import At, Planner, response
from shared.shapes import Reason

router = APIRouter(prefix="/participants")
for_delegations: dict[str, Any] = {
    "tags": ["delegations"],
    "responses": problems(*COMMAND, "not-yet-known", "reason-missing"),
}
for_members: dict[str, Any] = {"tags": ["members"], "responses": problems(*COMMAND)}


@router.post(
    "/trips/{trip}/delegations",
    status_code=201,
    response_model=shapes.Delegation,
    summary="RegisterDelegation",
    **for_delegations,
)
async def register_delegation(trip: UUID, body: shapes.RegisterDelegation, call: Planner, desk: At) -> Response:
    """Named people who travel, receive, take part or report."""
    command = delegations.RegisterDelegation(trip=trip, delegation=body.id or uuid4(), **body.values("id"))
    return await _on_delegation(call, desk, command)


@router.post(
    "/delegations/{delegation}/rename", response_model=shapes.Delegation, summary="RenameDelegation", **for_delegations
)
async def rename_delegation(delegation: UUID, body: shapes.RenameDelegation, call: Planner, desk: At) -> Response:
    """The same people under another name."""
    return await _on_delegation(call, desk, delegations.RenameDelegation(delegation=delegation, name=body.name))


@router.post(
    "/delegations/{delegation}/name-head", response_model=shapes.Delegation, summary="NameHead", **for_delegations
)
async def name_head(delegation: UUID, body: shapes.NameHead, call: Planner, desk: At) -> Response:
    """Who leads; the functions of the former and the new head follow."""
    return await _on_delegation(call, desk, delegations.NameHead(delegation=delegation, member=body.member))


@router.post(
    "/delegations/{delegation}/reorder", response_model=shapes.Delegation, summary="ReorderMembers", **for_delegations
)
async def reorder_members(delegation: UUID, body: shapes.ReorderMembers, call: Planner, desk: At) -> Response:
    """Precedence: every live member once."""
    return await _on_delegation(
        call, desk, delegations.ReorderMembers(delegation=delegation, members=tuple(body.members))
    )


@router.post(
    "/delegations/{delegation}/dissolve",
    response_model=shapes.Delegation,
    summary="DissolveDelegation",
    **for_delegations,
)
async def dissolve_delegation(delegation: UUID, call: Planner, desk: At, body: Reason = Reason()) -> Response:
    """Its members are withdrawn in the same act."""
    return await _on_delegation(call, desk, delegations.DissolveDelegation(delegation=delegation, reason=body.reason))


@router.post(
    "/delegations/{delegation}/members",
    status_code=201,
    response_model=shapes.Member,
    summary="AddMember",
    **for_members,
)
async def add_member(delegation: UUID, body: shapes.AddMember, call: Planner, desk: At) -> Response:
    """A person on the roster, at the end of the precedence."""
    command = members.AddMember(
        trip=await MODELS.trip_of(desk.engine, DELEGATION.name, delegation),
        delegation=delegation,
        member=body.id or uuid4(),
        person=body.person or uuid4(),
        **body.values("id", "person"),
    )
    return await _on_member(call, desk, command)


@router.post("/members/{member}/change", response_model=shapes.Member, summary="ChangeMember", **for_members)
async def change_member(member: UUID, body: shapes.ChangeMember, call: Planner, desk: At) -> Response:
    """What is absent stays as it is; `personal` is replaced as one."""
    return await _on_member(call, desk, members.ChangeMember(member=member, changes=body.changes()))


@router.post("/members/{member}/withdraw", response_model=shapes.Member, summary="WithdrawMember", **for_members)
async def withdraw_member(member: UUID, call: Planner, desk: At, body: shapes.Withdraw = shapes.Withdraw()) -> Response:
    """Out of every roster. A withdrawn member stays in the log."""
    return await _on_member(call, desk, members.WithdrawMember(member=member, reason=body.reason))


async def _on_delegation(call: Call, desk: Desk, command: delegations.Command) -> Response:
    new_in = command.trip if isinstance(command, delegations.RegisterDelegation) else None
    trip = new_in or await MODELS.trip_of(desk.engine, DELEGATION.name, command.delegation)

    async def act(transaction: Transaction) -> Answer:
        before = await (transaction.load if new_in else transaction.get)(DELEGATION, command.delegation)
        after = transaction.record(DELEGATION, command.delegation, delegations.decide(command, before))
        if new_in:
            await check_trip(transaction.connection, trip)
        await _follow(transaction, command, before, after)
        return answer_with(DELEGATION, after, 201 if new_in else 200)

    answer = await desk.execute(call, trip, act, name=type(command).__name__)
    return response(answer, f"/participants/delegations/{command.delegation}")


async def _follow(
    transaction: Transaction,
    command: delegations.Command,
    before: delegations.Delegation | None,
    after: delegations.Delegation,
) -> None:
    """What a delegation's command brings about for its members, in the same act."""
    if isinstance(command, delegations.NameHead):
        heads = {before.head if before else None, after.head} - {None}
        for head in sorted(head for head in heads if head):
            member = await transaction.load(MEMBER, head)
            if member is not None:
                transaction.record(MEMBER, head, members.follow_head(member, after.head))
    if isinstance(command, delegations.DissolveDelegation):
        for thing in await MODELS.ids(transaction.connection, MEMBER.name, delegation=after.id):
            member = await transaction.load(MEMBER, thing)
            if member is not None:
                transaction.record(MEMBER, thing, members.fall_with_delegation(member, after.reason or ""))


async def _on_member(call: Call, desk: Desk, command: members.Command) -> Response:
    new_in = command.trip if isinstance(command, members.AddMember) else None
    trip = new_in or await MODELS.trip_of(desk.engine, MEMBER.name, command.member)

    async def act(transaction: Transaction) -> Answer:
        before = await (transaction.load if new_in else transaction.get)(MEMBER, command.member)
        of = command.delegation if isinstance(command, members.AddMember) else before.delegation if before else None
        delegation = await transaction.load(DELEGATION, of) if of else None
        after = transaction.record(MEMBER, command.member, members.decide(command, before, delegation))
        if delegation is not None:
            if after.status == "withdrawn":
                follows = delegations.strike(delegation, after.id)
            else:
                follows = delegations.enrol(delegation, after.id, after.function)
            transaction.record(DELEGATION, delegation.id, follows)
        return answer_with(MEMBER, after, 201 if new_in else 200)

    answer = await desk.execute(call, trip, act, name=type(command).__name__)
    return response(answer, f"/participants/members/{command.member}")

"""What a member of a group holds, and its two callbacks: the part of a subscription that both adapters share.

Partitions come and go in a task of the adapter's own, while the caller may be in the middle of a slow transaction.
What was gained is therefore only noted there, and settled inside the caller's next `fetch`.
"""

import asyncio
from collections.abc import Iterable, Mapping

import structlog

from shared.bus import Assigned, Partition, Revoked

log = structlog.get_logger()


class Holding:
    """`patience` is how many seconds `on_revoked` gets before partitions are given away all the same."""

    def __init__(self, on_assigned: Assigned, on_revoked: Revoked, patience: float) -> None:
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._patience = patience
        self._gained: frozenset[Partition] = frozenset()
        self._held: frozenset[Partition] = frozenset()
        self._lost: set[Partition] = set()
        self._callback = asyncio.Lock()

    def held(self) -> frozenset[Partition]:
        """The partitions that may be read."""
        return self._held

    def everything(self) -> frozenset[Partition]:
        """Those that may be read, and those that nobody has been asked about yet."""
        return self._held | self._gained

    def gain(self, partitions: Iterable[Partition]) -> None:
        """These are ours, as soon as `settle` has asked where to read."""
        self._gained |= frozenset(partitions) - self._held

    async def settle(self) -> Mapping[Partition, int]:
        """Ask `on_assigned` about what was gained; answers the offsets to read on from. Raises what it raises."""
        if not self._gained:
            return {}
        async with self._callback:
            asked = self._gained
            self._lost.clear()
            starts = await self._on_assigned(asked)
            # what was lost before the answer came, and perhaps gained again, is asked about again
            kept = asked - self._lost
            self._gained -= kept
            self._held |= kept
            if kept != asked:
                await self._tell(asked - kept)
        return {partition: starts.get(partition, 0) for partition in kept}

    async def lose(self, partitions: Iterable[Partition]) -> None:
        """These go to another member: nothing of them is read any more, and the caller is told first. Never raises."""
        lost = frozenset(partitions)
        self._gained -= lost
        self._lost |= lost
        told = self._held & lost
        self._held -= lost
        try:
            async with asyncio.timeout(self._patience), self._callback:
                if told:
                    await self._tell(told)
        except TimeoutError:
            log.warning("partitions.given_up", reason="the member did not come to an end", seconds=self._patience)

    async def _tell(self, partitions: frozenset[Partition]) -> None:
        try:
            await self._on_revoked(partitions)
        except Exception:
            log.exception("partitions.revoked_badly", partitions=len(partitions))

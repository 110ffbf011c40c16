"""The participants service, running."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.running_api import Api, running_participants


@pytest.fixture
async def participants(
    make_database: Callable[[str], Awaitable[str]], tmp_path: Path, patience: None
) -> AsyncIterator[Api]:
    """Its app behind ASGI, its databases new, and a planner who calls it."""
    async with running_participants(make_database, tmp_path / "tokens") as api:
        yield api

"""The tests' own settings alone: none that stand in the environment of who runs them."""

import os
import re
from pathlib import Path

import pytest

from services.jobs import SETTINGS
from shared.settings import table

COMPOSE = Path(__file__).resolve().parents[2] / "docker-compose.yml"
OURS = frozenset(
    [
        *(row.variable for row in table(*SETTINGS.values())),
        *re.findall(r"\$\{(\w+)", COMPOSE.read_text(encoding="utf-8")),
    ]
)
PREFIXES = ("COMPOSE_", "OTEL_", *(f"{name.upper()}_" for name in SETTINGS))


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith(PREFIXES) or {name, name.removesuffix("_FILE")} & OURS:
            monkeypatch.delenv(name)

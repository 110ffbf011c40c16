"""Golden files of every stored type and version: what was once stored is read for ever, and stays the same content."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shared.event_store import UnknownEventType, canonical

STORED = sorted((Path(__file__).parent / "stored").glob("*.json"))


def test_every_stored_type_and_version_has_its_golden_file(telling: Mapping[str, Any]) -> None:
    types = {stored_type for told in telling.values() for stored_type in told.codec.types}
    assert types <= {path.stem for path in STORED}


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_stored_event_is_read_and_stored_again_as_it_was(path: Path, telling: Mapping[str, Any]) -> None:
    codec = telling[path.stem.partition(".")[0]].codec
    text = path.read_text(encoding="utf-8")
    event = codec.decode(path.stem, text)
    stored_type, again = codec.encode(event)
    assert codec.decode(stored_type, again) == event
    if stored_type == path.stem:  # an older version is upcast, and never stored again
        assert canonical(json.loads(again)) == canonical(json.loads(text))


def test_a_type_of_a_newer_program_is_not_taken_for_another(telling: Mapping[str, Any]) -> None:
    codec = telling["TripPlanned"].codec
    with pytest.raises(UnknownEventType, match=r"TripPlanned\.v9"):
        codec.decode("TripPlanned.v9", "{}")

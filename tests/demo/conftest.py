"""A small trip file with one of everything, for the reader and for the player."""

from collections.abc import Callable
from pathlib import Path

import pytest

SMALL = """\
plan:
  trip:
    id: small-trip
    title: To Oslo and back
    principals: [Minister]
    home: {place: Lisbon, zone: Europe/Lisbon}
    starts_on: 2023-03-01
    ends_on: 2023-03-03
  delegations:
    - id: ours
      name: Our delegation
      kind: own
      members:
        - {id: minister, function: head, personal: {name: Una Vardy, title: Minister}}
    - id: theirs
      name: Host delegation
      kind: host
  stops:
    - id: oslo
      place: Oslo
      country: Norway
      zone: Europe/Oslo
      arrives: 2023-03-01 12:00
      departs: 2023-03-03 09:00
      host: theirs
  movements:
    - id: there
      mode: flight
      label: Lisbon to Oslo
      from: {place: Lisbon, zone: Europe/Lisbon}
      to: {place: Oslo, zone: Europe/Oslo}
      stop: oslo
      departs: 2023-03-01 07:00
      arrives: 2023-03-01 12:00
  meetings:
    - id: talks
      stop: oslo
      title: Talks
      kind: bilateral
      start: 2023-03-02 10:00
      duration: PT1H
      venue: {name: Hall, geo: [59.91, 10.75]}
      topics: [fish, wind]
      press: {tag: open, preset: 2023-03-02 09:30}
      delegations: [ours, theirs]
  feed_links:
    - {id: link-ours, delegation: ours, level: full, label: Ours}
    - {id: link-theirs, delegation: theirs, level: delegation, label: Theirs}
happened:
  - {step: 1, when: 2023-02-20 12:00 +00:00, command: AnnounceTrip}
  - {step: 2, when: 2023-02-21 12:00 +01:00, command: RescheduleMeeting, meeting: talks, start: 2023-03-02 11:00}
  - {step: 3, when: 2023-02-21 13:00 +01:00, command: RenameDelegation, delegation: theirs, name: Hosts in Oslo}
  - {step: 5, when: 2023-03-01 12:09 +01:00, command: ReportWheelsDown, movement: there, at: 2023-03-01 12:04 +01:00}
"""


@pytest.fixture
def small_text() -> str:
    return SMALL


@pytest.fixture
def write_trip(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Writes a trip file, `trip.yaml`, and answers where."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "trip.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
